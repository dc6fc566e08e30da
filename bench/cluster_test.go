package bench

import (
	"context"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/channelhttp"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// stapled adds a chip's certificates to its evidence.
type stapled struct {
	attest.Attester
	more attest.Endorsements
}

func (s stapled) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	e, err := s.Attester.Attest(ctx, data)
	return e.WithEndorsements(s.more), err
}

// cluster returns n units on SNP that share their sessions.
func (s *server) cluster(n int) []http.Handler {
	return s.clusterOn(stapled{s.vendors.device(attest.SNP, "scoring"), s.vendors.chip.Endorsements()}, n)
}

// clusterOn returns a cluster that sends its clients evidence of a device.
func (s *server) clusterOn(device attest.Attester, n int) []http.Handler {
	r := &relay{units: make([]*channel.Host, n)}
	var units []http.Handler
	for i := range n {
		r.units[i] = s.estate.host(s.t)
		units = append(units, testworld.Must(channelhttp.NewServer(channelhttp.ServerConfig{
			Host: r.units[i], App: http.HandlerFunc(echo), Relay: r, Serves: func(string) bool { return true }, Attester: device, RingUnknown: func() {}, Clock: func() (time.Time, error) { return time.Now(), nil }, Log: slog.New(slog.DiscardHandler),
		})))
	}
	return units
}

// relay is a manager that forwards every push to all units at once.
type relay struct {
	number atomic.Uint64
	units  []*channel.Host
}

func (r *relay) Number() uint64 { return r.number.Add(1) }

func (r *relay) RequestCopy(context.Context, wire.SessionID) ([]byte, error) { return nil, nil }

func (r *relay) Push(kind envelope.Kind, sealed []byte) {
	for _, u := range r.units {
		take := u.ImportSession
		if kind == envelope.Tombstone {
			take = u.Terminate
		}
		testworld.Must(take(sealed, time.Now()))
	}
}

// gateway opens sessions with the first unit and forwards requests to the others in turn.
func gateway(units []http.Handler) http.Handler {
	var turn atomic.Int64
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		unit := units[0]
		if r.URL.Path == wire.PathRequest && len(units) > 1 {
			unit = units[1+turn.Add(1)%int64(len(units)-1)]
		}
		unit.ServeHTTP(w, r)
	})
}
