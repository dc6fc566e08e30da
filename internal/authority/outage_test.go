package authority

import (
	"context"
	"errors"
	"math"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/authority/store/testdb"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// outcome is the result of a request for an issuance, or of a search for its record.
type outcome string

const (
	issuedNow outcome = "issued"  // the response arrived
	used      outcome = "used"    // its nonce was used before, with any result
	unknown   outcome = "unknown" // neither; it may take effect at any later time
	present   outcome = "present" // a search found the record
	absent    outcome = "absent"  // a search found no record
)

// observed is one operation on the issuance of a nonce, with its outcome.
type observed struct {
	nonce     string
	call, end int64
	result    outcome
}

// step models the issuance of one nonce: it is recorded at most once, and a record stays. The
// state is whether it is recorded.
func (s observed) step(recorded bool) (after, possible bool) {
	switch s.result {
	case issuedNow:
		return true, !recorded
	case present:
		return true, recorded
	case used:
		return recorded, true
	case absent:
		return false, !recorded
	}
	return true, true // an operation without effect is ordered after all others
}

// issuances reports whether the operations are linearizable, nonce by nonce: one store could have
// produced them.
func issuances(operations []observed) bool {
	of := map[string][]testworld.Operation[bool]{}
	for _, o := range operations {
		of[o.nonce] = append(of[o.nonce], testworld.Operation[bool]{Call: o.call, Return: o.end, Step: o.step})
	}
	for _, one := range of {
		if !testworld.Linearizable(false, one) {
			return false
		}
	}
	return true
}

// record has all operations and reports that the clients observed.
type record struct {
	start time.Time

	mu         sync.Mutex
	operations []observed   // guarded by mu
	reports    []api.Report // guarded by mu
}

func (h *record) now() int64 { return time.Since(h.start).Nanoseconds() }

func (h *record) add(nonce []byte, call int64, result outcome) {
	end := h.now()
	if result == unknown {
		end = math.MaxInt64
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.operations = append(h.operations, observed{string(nonce), call, end, result})
}

func (h *record) issued() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.reports)
}

// ask sends a request to one authority after the other, as a unit does.
func (h *record) ask(ctx context.Context, p *applicant, r api.CertificateRequest, authorities []*child) {
	for _, a := range authorities {
		call := h.now()
		sealed, err := a.Certify(ctx, r)
		switch {
		case err == nil:
			h.add(r.Nonce, call, issuedNow)
			report, err := p.openReport(r, sealed)
			if err != nil {
				p.w.T.Error(err)
			}
			h.mu.Lock()
			h.reports = append(h.reports, report)
			h.mu.Unlock()
			return
		case errors.Is(err, wire.RingElsewhere), errors.Is(err, wire.Behind):
			continue // the request did not reach the store
		case errors.Is(err, wire.NonceUsed):
			h.add(r.Nonce, call, used)
			return
		}
		h.add(r.Nonce, call, unknown)
	}
}

// enrolUntil enrols units until ctx ends. It sends each request twice at once and once more
// later.
func (h *record) enrolUntil(ctx context.Context, w *world, authorities []*child) {
	for n := 0; ctx.Err() == nil; n++ {
		mine := append(append([]*child(nil), authorities[n%len(authorities):]...), authorities[:n%len(authorities)]...)
		challenge, err := mine[0].Challenge(ctx)
		if err != nil {
			continue
		}
		p := w.scoring()
		r := p.request(challenge.Nonce, nil)
		var twice sync.WaitGroup
		for range 2 {
			twice.Go(func() { h.ask(ctx, p, r, mine) })
		}
		twice.Wait()
		h.ask(ctx, p, r, mine)
	}
}

// TestServerKilled kills PostgreSQL again and again while units enrol with three authorities,
// each in its own process. Each issuance is durable and was acknowledged, or is absent, or its
// outcome was reported as unknown; no nonce serves twice. The authorities recover by themselves.
func TestServerKilled(t *testing.T) {
	if os.Getenv(onServer) != "" {
		t.Skip("it has a server of its own")
	}
	kills, between := 3, 25
	if os.Getenv("COHORT_FULL") != "" {
		kills = 100
	}
	server := testdb.NewServer(t, "fsync=off")
	vendor, chip := sameChip(t)
	w := newWorldAt(t, server.Database(t), vendor, chip)
	first := w.open()
	authorities := make([]*child, 3)
	for i := range authorities {
		authorities[i] = w.startChild(0, w.clientTLS(first))
		if authorities[i].Authority == nil {
			t.Fatalf("starting an authority: %v\n%s", authorities[i].stop(), w.log)
		}
	}
	h := &record{start: time.Now()}
	ctx, stop := context.WithTimeout(t.Context(), 10*time.Minute)
	defer stop()
	var asking sync.WaitGroup
	for range 4 {
		asking.Go(func() { h.enrolUntil(ctx, w, authorities) })
	}
	for n := range kills {
		h.await(ctx, (n+1)*between)
		if err := errors.Join(server.Kill(), server.Start()); err != nil {
			t.Fatal(err)
		}
	}
	h.await(ctx, (kills+1)*between)
	stop()
	asking.Wait()
	for _, a := range authorities {
		if err := a.stop(); err != nil {
			t.Errorf("an authority: %v\n%s", err, w.log)
		}
	}
	w.judge(h)
	t.Logf("%d kills, %d certificates, %d operations", kills, h.issued(), len(h.operations))
}

// await blocks until n certificates were issued.
func (h *record) await(ctx context.Context, n int) {
	for h.issued() < n && ctx.Err() == nil {
		time.Sleep(5 * time.Millisecond)
	}
}

// judge searches for the record of each nonce, and checks that all observations are consistent.
func (w *world) judge(h *record) {
	w.T.Helper()
	found := map[string]bool{}
	rows := testworld.Must(testworld.Must(store.Open(w.T.Context(), w.dsn)).ReadLog(w.T.Context(), store.Query{Limit: 1 << 20}))
	for _, r := range rows {
		found[string(r.Key)] = true
	}
	nonces := map[string]bool{}
	for _, o := range h.operations {
		nonces[o.nonce] = true
	}
	for nonce := range nonces {
		result := absent
		if found[nonce] {
			result = present
		}
		h.add([]byte(nonce), h.now(), result)
	}
	if !issuances(h.operations) {
		w.T.Error("what was seen is not what one store of issuances does")
	}
	serials := map[string]string{}
	for _, r := range h.reports {
		serial := serialOf(w.T, r.Unit)
		if other, ok := serials[serial]; ok && other != string(r.Unit) {
			w.T.Errorf("two certificates of serial %s", serial)
		}
		serials[serial] = string(r.Unit)
	}
}

// TestImpossibleHistories: judge's check refuses histories that no correct store can produce.
func TestImpossibleHistories(t *testing.T) {
	for name, results := range map[string][]outcome{
		"a nonce that served twice":  {issuedNow, issuedNow},
		"an answer without a record": {issuedNow, absent},
		"a record that was lost":     {present, absent},
	} {
		h := &record{start: time.Now()}
		for _, result := range results {
			h.add([]byte("nonce"), h.now(), result)
			time.Sleep(time.Microsecond)
		}
		if issuances(h.operations) {
			t.Errorf("%s: accepted", name)
		}
	}
	h := &record{start: time.Now()}
	for _, result := range []outcome{unknown, absent, unknown, used, present} {
		h.add([]byte("nonce"), h.now(), result)
	}
	if !issuances(h.operations) {
		t.Error("an outage that lost nothing: refused")
	}
}
