package authority

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"net/http"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/records"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/wire"
)

// placeSlack is how much longer than three quarters of its lifetime a unit keeps its place: units
// renew at two thirds of the lifetime, spread over a twelfth of it, and clocks differ.
const placeSlack = time.Minute

// maxLeave bounds the body of a leave request, in bytes.
const maxLeave = 4 << 10

// leaveTries bounds how often leave tries again because the unit renewed in between.
const leaveTries = 3

// place is the content of a row of the places table.
type place struct {
	Unit  string    `json:"unit"`
	Task  string    `json:"task"`
	Key   []byte    `json:"key"` // of the unit: SubjectPublicKeyInfo, DER
	Until time.Time `json:"until"`
	Left  time.Time `json:"left,omitzero"`
}

// placeOf returns the place that an enrolment takes. The place of a unit that does not renew
// ends, because only renewals show that a unit runs.
func (a *Authority) placeOf(e *enrolment) (store.Place, error) {
	until := e.at.Add(e.grant.LeafLifetime()*3/4 + placeSlack)
	if until.After(e.report.NotAfter) {
		until = e.report.NotAfter
	}
	p := place{Unit: wire.UnitIDOf(e.request.SigningKey).String(), Task: e.grant.Task.Name, Key: e.request.SigningKey, Until: until.UTC()}
	row, err := a.records.Seal(records.TablePlaces, []byte(p.Unit), p)
	return store.Place{
		Row: row, Task: p.Task, Now: e.at, Until: until, Limit: e.grant.Task.Units, Believed: a.records.Believed(records.TablePlaces),
	}, err
}

func (a *Authority) postLeave(w http.ResponseWriter, r *http.Request) (any, error) {
	var l api.LeaveRequest
	if err := api.ReadBody(w, r, maxLeave, &l); err != nil {
		return nil, err
	}
	return a.leave(r.Context(), l)
}

// leave releases the place of a unit, on a request that the unit signed. A second request changes
// nothing.
func (a *Authority) leave(ctx context.Context, l api.LeaveRequest) (api.LeaveResponse, error) {
	now, err := a.clock.Now()
	if err != nil {
		return api.LeaveResponse{}, err
	}
	if skew := now.Sub(l.Time); skew.Abs() > wire.MaxClockSkew {
		return api.LeaveResponse{}, wire.Refuse(wire.ClockSkew, "leave: time", l.Time.UTC(), "within 5 minutes of "+now.UTC().String())
	}
	for range leaveTries {
		err = a.leaveOnce(ctx, l, now)
		if !errors.Is(err, wire.Behind) {
			break
		}
	}
	return api.LeaveResponse{Unit: l.Unit}, err
}

func (a *Authority) leaveOnce(ctx context.Context, l api.LeaveRequest, now time.Time) error {
	unit := l.Unit
	row, err := a.store.Place(ctx, unit.String())
	if err != nil {
		return err
	}
	var p place
	if row.Key == nil {
		return wire.Refuse(wire.NotFound, "leave: unit", unit, "a unit that was issued to")
	}
	if err := a.records.Open(records.TablePlaces, row, &p); err != nil {
		return err
	}
	key, err := parseSigningKey(p.Key)
	if err != nil {
		return err
	}
	digest := sha256.Sum256(api.LeaveMessage(unit, l.Time, a.root.Digest))
	if !ecdsa.VerifyASN1(key, digest[:], l.Signature) {
		return wire.Refuse(wire.BadSignature, "leave: signature", "a signature that does not verify", "by the signing key of unit "+unit.String())
	}
	if !p.Left.IsZero() {
		return nil
	}
	p.Left = now.UTC()
	next, err := a.records.Seal(records.TablePlaces, row.Key, p)
	if err != nil {
		return err
	}
	if err := a.store.ReleasePlace(ctx, row, next); err != nil {
		return err
	}
	a.log.Info("unit left", "unit", unit, "task", p.Task)
	return nil
}
