package unit

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
)

// leaveTime bounds how long the end of a unit waits for the authority: a place that is not
// released expires.
const leaveTime = 2 * time.Second

// leave releases the unit's place among the units of its task. No more certificates are
// issued to this unit. One authority that responds is enough.
func (u *Unit) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), leaveTime)
	defer cancel()
	l := api.LeaveRequest{Unit: u.id, Time: u.now().UTC().Truncate(time.Second)}
	digest := sha256.Sum256(api.LeaveMessage(l.Unit, l.Time, u.seen.Load().Policy().Document().Authority.Root))
	var err error
	if l.Signature, err = ecdsa.SignASN1(rand.Reader, u.signing, digest[:]); err == nil {
		for _, p := range u.peers {
			if _, err = p.Authority.ReleasePlace(ctx, l); err == nil {
				return
			}
		}
	}
	u.config.Log.Info("no authority released the place of this unit; it expires", "unit", u.id, "reason", wire.ReasonOf(err), "cause", err)
}
