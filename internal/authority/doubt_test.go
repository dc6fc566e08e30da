package authority

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/records"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// readyz requests an authority's readiness probe.
func readyz(a *Authority) (int, api.Health, wire.Reason) {
	w := httptest.NewRecorder()
	a.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, api.PathReady, nil))
	var h api.Health
	var p api.Problem
	if w.Code == http.StatusOK {
		err := api.Decode(w.Body.Bytes(), &h)
		return w.Code, h, wire.Reason(map[bool]string{true: "not JSON"}[err != nil])
	}
	_ = api.Decode(w.Body.Bytes(), &p)
	return w.Code, h, p.Reason
}

// wantNoDoubt demands an authority that issues and knows no contradiction.
func (w *world) wantNoDoubt(a *Authority) {
	w.T.Helper()
	if code, h, reason := readyz(a); code != http.StatusOK || len(h.Warnings)+len(h.Contradictions) > 0 {
		w.T.Errorf("got %d %+v %q, want ready without a warning", code, h, reason)
	}
	if _, err := w.scoring().enrol(direct{a}); err != nil {
		w.T.Errorf("issuing: %v", err)
	}
}

// wantContradiction demands an authority that issues, and reports one contradiction, with both
// digests, in its probe and its metric.
func (w *world) wantContradiction(a *Authority, kept, other wire.Digest) {
	w.T.Helper()
	code, h, reason := readyz(a)
	if code != http.StatusOK || len(h.Warnings) == 0 || len(h.Contradictions) != 1 || h.Contradictions[0].Kept != kept || h.Contradictions[0].Other != other {
		w.T.Errorf("got %d %+v %q, want 200 and a warning of %v and %v", code, h, reason, kept, other)
	}
	metrics := httptest.NewRecorder()
	a.OperatorHandler().ServeHTTP(metrics, httptest.NewRequest(http.MethodGet, api.PathMetrics, nil))
	if !strings.Contains(metrics.Body.String(), "cohort_authority_contradictions 1") {
		w.T.Error("the metric counts no contradiction")
	}
	if _, err := w.scoring().enrol(direct{a}); err != nil {
		w.T.Errorf("issuing: %v", err)
	}
}

// wantBehind demands an authority that issues and exports nothing, and reports why.
func (w *world) wantBehind(a *Authority) {
	w.T.Helper()
	before := issued(w.T, a)
	if code, _, reason := readyz(a); code != http.StatusConflict || reason != wire.Behind {
		w.T.Errorf("got %d %q from the probe, want 409 behind", code, reason)
	}
	_, err := w.scoring().enrol(direct{a})
	testworld.Refused(w.T, err, wire.Behind)
	_, err = a.trust(w.T.Context(), netip.Addr{}, api.TrustQuery{Task: "scoring", Nonce: make([]byte, 32)})
	testworld.Refused(w.T, err, wire.Behind)
	_, err = a.trust(w.T.Context(), netip.Addr{}, api.TrustQuery{Task: "scoring"})
	testworld.Refused(w.T, err, wire.Behind)
	_, err = a.backup(w.ask(a, "ana"))
	testworld.Refused(w.T, err, wire.Behind)
	_, err = a.getPolicy(nil, nil)
	testworld.Refused(w.T, err, wire.Behind)
	if got := issued(w.T, a); got != before {
		w.T.Errorf("issued %d times while behind", got-before)
	}
}

// putBack returns a world whose history table alone is two steps old, and the newest history.
func putBack(t *testing.T) (w *world, newest api.History) {
	w = newWorld(t)
	a, end := w.process()
	w.change(a, tighter...)
	w.change(a, "lifetime = \"20m\"", "lifetime = \"15m\"")
	testworld.Must(w.scoring().enrol(direct{a}))
	newest = a.history.Current().StepsFrom(0)
	end()
	exec(t, w.dsn, `DELETE FROM history WHERE step > 1`)
	exec(t, w.dsn, `DELETE FROM proposals`)
	return w, newest
}

// TestOneTableBack replaces the history table of a stopped authority by an old copy. Its own log
// names a head that it does not know: it starts, refuses all requests with "behind", and adopts
// no step that leads to another head. The signed files repair it, regardless of who pushes them.
func TestOneTableBack(t *testing.T) {
	unmarked := func(h api.History) api.History {
		entries := make([]api.HistoryEntry, len(h.Entries))
		for i, e := range h.Entries {
			entries[i] = api.HistoryEntry{Policy: e.Policy, Signatures: e.Signatures}
		}
		return api.History{From: h.From, Entries: entries, Head: h.Head}
	}
	for name, heal := range map[string]func(*world, *Authority, api.History) *Authority{
		"a unit pushes": func(w *world, a *Authority, newest api.History) *Authority {
			testworld.Must(a.history.Push(w.T.Context(), newest))
			return a
		},
		"step by step": func(w *world, a *Authority, newest api.History) *Authority {
			testworld.Must(a.history.Push(w.T.Context(), api.History{From: 1, Entries: newest.Entries[1:2]}))
			w.wantBehind(a)
			testworld.Must(a.history.Push(w.T.Context(), api.History{From: 2, Entries: newest.Entries[2:]}))
			return a
		},
		"files of owners, without a mark": func(w *world, a *Authority, newest api.History) *Authority {
			testworld.Must(a.history.Push(w.T.Context(), unmarked(newest)))
			return a
		},
		"--history": func(w *world, a *Authority, newest api.History) *Authority {
			c := w.config("authority")
			c.History = newest.Entries
			return testworld.Must(Open(w.T.Context(), c))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, newest := putBack(t)
			a := w.open()
			w.wantBehind(a)
			if err := a.history.Sync(t.Context()); err != nil {
				t.Errorf("the tick while behind: %v", err)
			}
			other := w.SignPolicy(w.NextText(a.inForce().approved, "lifetime = \"30m\"", "lifetime = \"25m\""), "ana", "ben")
			_, err := a.history.Propose(t.Context(), proposal(other))
			testworld.Refused(t, err, wire.Behind)
			w.wantBehind(a)
			b := heal(w, a, newest)
			if got := b.inForce().approved.PolicyHead(); got != newest.Head {
				t.Errorf("got head %v, want %v", got, newest.Head)
			}
			w.wantNoDoubt(b)
			w.wantNoDoubt(w.open())
		})
	}
}

// TestReadyProposalHealsItself: the adopted proposal is still in its table, and leads to the head
// that the log names. The authority adopts it again by itself.
func TestReadyProposalHealsItself(t *testing.T) {
	w := newWorld(t)
	a, end := w.process()
	w.change(a, tighter...)
	testworld.Must(w.scoring().enrol(direct{a}))
	end()
	exec(t, w.dsn, `DELETE FROM history WHERE step > 1`)
	b := w.open()
	w.wantBehind(b)
	if err := b.history.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.wantNoDoubt(b)
}

// TestBehindKeepsTheRoot: an old policy names an authority program that a newer one removed.
// While rows of the store show that the authority is behind, no authority seals the root to that
// program. A program that only the newer policy names can start, to receive it.
func TestBehindKeepsTheRoot(t *testing.T) {
	w := newWorld(t)
	a, end := w.process()
	reference := "{ platform = \"soft\", program = \"" + wire.Sum([]byte("authority")).String() + "\" }"
	rebuilt := "{ platform = \"soft\", program = \"" + wire.Sum([]byte("rebuilt")).String() + "\" }"
	testworld.Must(a.history.Propose(t.Context(), proposal(w.SignPolicy(w.NextText(a.inForce().approved, reference, reference+", "+rebuilt), "ana", "ben"))))
	w.wait(a, time.Hour+time.Minute)
	end()
	db := testworld.Must(store.Open(t.Context(), w.dsn))
	b := testworld.Must(Open(t.Context(), w.configOn(db, "rebuilt")))
	w.change(b, reference+", ", "")
	testworld.Must(w.scoring().enrol(direct{b}))
	newest, sealed := b.history.Current().StepsFrom(0), testworld.Must(b.store.RootRow(t.Context()))
	db.Close()
	exec(t, w.dsn, `DELETE FROM history WHERE step > 1`)
	exec(t, w.dsn, `DELETE FROM proposals`)

	c := testworld.Must(Open(t.Context(), w.config("rebuilt")))
	w.wantBehind(c)
	if err := c.history.Sync(t.Context()); err != nil {
		t.Error(err)
	}
	if row := testworld.Must(c.store.RootRow(t.Context())); string(row.Content) != string(sealed.Content) {
		t.Error("the root was sealed anew, to the program of yesterday's policy")
	}
	testworld.Must(c.history.Push(t.Context(), newest))
	w.wantNoDoubt(c)
}

// TestDamagedStep damages the newest step of the history, which no other row names. The authority
// is behind all the same, until the step is pushed again.
func TestDamagedStep(t *testing.T) {
	w := newWorld(t)
	a, end := w.process()
	w.change(a, tighter...)
	newest := a.history.Current().StepsFrom(0)
	end()
	exec(t, w.dsn, `DELETE FROM proposals`)
	exec(t, w.dsn, `UPDATE history SET mac = zeroblob(32) WHERE step = 2`)
	b := w.open()
	w.wantBehind(b)
	testworld.Must(b.history.Push(t.Context(), newest))
	w.wantNoDoubt(b)
}

// TestShownAtTheStart starts an authority with a history of another branch (a contradiction is
// reported), an older one (nothing changes), and one of a different genesis (refused).
func TestShownAtTheStart(t *testing.T) {
	w, a, b, _ := forked(t)
	start := func(entries []api.HistoryEntry) (*Authority, error) {
		c := w.config("authority")
		c.History = entries
		return Open(t.Context(), c)
	}
	if c := testworld.Must(start(a.history.Current().Entries[:1])); c.inForce().approved.PolicyHead() != a.inForce().approved.PolicyHead() {
		t.Error("an older history changed the one in force")
	}
	w.wantContradiction(testworld.Must(start(b.history.Current().Entries)), a.inForce().approved.PolicyHead(), b.inForce().approved.Heads()[1])
	other := w.SignPolicy(w.text(looser...), "ana", "ben")
	_, err := start([]api.HistoryEntry{{Policy: other.Policy, Signatures: other.Signatures}})
	testworld.Refused(t, err, wire.WrongGenesis)
}

// TestStoreOfYesterday replaces the whole store by an old copy, which no row contradicts. A unit
// that has seen newer steps pushes them: they are adopted, and counted in log and metric.
func TestStoreOfYesterday(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	old := copyStore(t, w.dsn)
	w.change(a, tighter...)
	testworld.Must(w.scoring().enrol(direct{a}))
	newest := a.history.Current().StepsFrom(0)
	w.dsn = old
	b := w.open()
	testworld.Must(w.scoring().enrol(direct{b}))
	testworld.Must(b.history.Push(t.Context(), newest))
	w.wantNoDoubt(b)
	if got := b.inForce().approved.PolicyHead(); got != newest.Head {
		t.Errorf("got head %v, want %v", got, newest.Head)
	}
	if !strings.Contains(w.log.String(), "the store had lost a step that was in force") {
		t.Error("the log says nothing of a step that was lost")
	}
}

// forked returns two authorities on two copies of one store, which adopted different policies
// after the same head. w.dsn is the store of the first.
func forked(t *testing.T) (w *world, a, b *Authority, copied string) {
	w = newWorld(t)
	a = w.open()
	copied = copyStore(t, w.dsn)
	first := w.dsn
	w.dsn = copied
	b = w.open()
	w.dsn = first
	w.change(a, tighter...)
	w.change(b, "lifetime = \"30m\"", "lifetime = \"25m\"")
	w.change(b, "lifetime = \"25m\"", "lifetime = \"24m\"")
	return w, a, b, copied
}

// TestFork serves two copies of a store at once. When a unit shows one copy the history of the
// other, the authority reports a contradiction that stays: both digests are in the probe (which
// stays 200), the metric, the log and the store.
func TestFork(t *testing.T) {
	w, a, b, _ := forked(t)
	w.wantNoDoubt(a)
	_, err := a.history.Push(t.Context(), b.history.Current().StepsFrom(0))
	testworld.Refused(t, err, wire.WrongSequence)
	kept, other := a.inForce().approved.Heads()[1], b.inForce().approved.Heads()[1]
	w.wantContradiction(a, kept, other)
	_, err = a.history.Push(t.Context(), b.history.Current().StepsFrom(0))
	testworld.Refused(t, err, wire.WrongSequence)
	w.wantContradiction(a, kept, other)
	if !strings.Contains(w.log.String(), other.String()) {
		t.Error("the log does not name the other head")
	}
	w.wantContradiction(w.open(), kept, other)
	exec(t, w.dsn, `DELETE FROM forks`)
	if err := a.history.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.wantContradiction(w.open(), kept, other)
	// The other copy detects it the same way, with the heads exchanged.
	_, err = b.history.Push(t.Context(), a.history.Current().StepsFrom(0))
	testworld.Refused(t, err, wire.WrongSequence)
	w.wantContradiction(b, other, kept)
}

// TestForkEndsTheWait: a known contradiction explains rows that name heads of the other history.
// Those heads can never be reached, so the authority is not behind, also after a restart.
func TestForkEndsTheWait(t *testing.T) {
	w, a, b, copied := forked(t)
	testworld.Must(w.scoring().enrol(direct{b}))
	testworld.Must(a.store.HistoryHead(t.Context()))
	log := testworld.Must(b.store.ReadLog(t.Context(), store.Query{Limit: 1}))[0]
	exec(t, w.dsn, `INSERT INTO log (id, kind, task, unit, serial, certificate, content, mac) SELECT $1, 'issued', 'scoring', 'x', 'y', $1, $2, $3`, log.Key, log.Content, log.MAC)
	c := w.open()
	w.wantBehind(c)
	_, err := c.history.Push(t.Context(), b.history.Current().StepsFrom(0))
	testworld.Refused(t, err, wire.WrongSequence)
	kept, other := a.inForce().approved.Heads()[1], b.inForce().approved.Heads()[1]
	w.wantContradiction(c, kept, other)
	w.wantContradiction(w.open(), kept, other)
	_ = copied
}

// TestForkedStoreBeneath replaces the history under a running authority by that of the other
// copy. The authority issues nothing from a store that forks from its memory, and records the
// contradiction for the next start.
func TestForkedStoreBeneath(t *testing.T) {
	w, a, b, _ := forked(t)
	rows := testworld.Must(b.store.Steps(t.Context()))[1:]
	exec(t, w.dsn, `DELETE FROM history WHERE step > 1`)
	for _, r := range rows {
		exec(t, w.dsn, `INSERT INTO history (head, content, mac) VALUES ($1, $2, $3)`, r.Key, r.Content, r.MAC)
	}
	testworld.Refused(t, a.history.Sync(t.Context()), wire.StoreForeign)
	_, err := w.scoring().enrol(direct{a})
	testworld.Refused(t, err, wire.StoreForeign)
	kept, other := a.inForce().approved.Heads()[1], b.inForce().approved.Heads()[1]
	if got := a.history.Contradictions(); len(got) != 1 || got[0].Kept != kept || got[0].Other != other {
		t.Errorf("got %+v, want %v and %v", got, kept, other)
	}
	w.wantContradiction(w.open(), other, kept) // as seen from the history that is now in the store
}

// TestForkedRow adds rows of the other copy after those of this one: they are recorded as a
// contradiction and removed, and the history can grow again.
func TestForkedRow(t *testing.T) {
	w, a, b, _ := forked(t)
	for _, r := range testworld.Must(b.store.Steps(t.Context()))[1:] {
		exec(t, w.dsn, `INSERT INTO history (head, content, mac) VALUES ($1, $2, $3)`, r.Key, r.Content, r.MAC)
	}
	kept, other := a.inForce().approved.Heads()[1], b.inForce().approved.Heads()[1]
	if err := a.history.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.wantContradiction(a, kept, other)
	c := w.open()
	w.wantContradiction(c, kept, other)
	if got := len(testworld.Must(c.store.Steps(t.Context()))); got != 2 {
		t.Errorf("got %d rows of history, want 2", got)
	}
	w.change(c, "lifetime = \"20m\"", "lifetime = \"10m\"")
	w.wantContradiction(c, kept, other)
}

// TestNoContradiction: owners sign two policies for one place, cancel proposals and let them
// expire; a client sends forged marks, a unit claims heads, a party sends a statement. None of it
// is reported as a contradiction, and none stops the authority from issuing.
func TestNoContradiction(t *testing.T) {
	w := grouped(t)
	a := w.open()
	base := a.inForce().approved
	twice := w.SignPolicy(w.NextText(base, "lifetime = \"30m\"", "lifetime = \"25m\""), "ana", "ben")
	cancelled := w.NextText(base, "lifetime = \"30m\"", "lifetime = \"24m\"")
	testworld.Must(a.history.Propose(t.Context(), proposal(w.SignPolicy(cancelled, "ana"))))
	if err := w.withdraw(a, "ana", cancelled); err != nil {
		t.Fatal(err)
	}
	w.change(a, tighter...)
	testworld.Must(w.say(a, "north", nil))
	entry := func(s policy.Step, mark []byte) api.History {
		return api.History{From: 1, Entries: []api.HistoryEntry{{Policy: s.Policy, Signatures: s.Signatures, Adopted: mark}}}
	}
	for name, h := range map[string]api.History{
		"two policies of one sequence": entry(twice, nil),
		"with a forged mark":           entry(twice, make([]byte, 32)),
		"with the mark of another":     entry(twice, a.history.Current().Entries[1].Adopted),
		"a cancelled one":              entry(w.SignPolicy(cancelled, "ana", "ben"), nil),
	} {
		_, err := a.history.Push(t.Context(), h)
		testworld.Refused(t, err, wire.WrongSequence)
		if code, health, _ := readyz(a); code != http.StatusOK || len(health.Contradictions) > 0 {
			t.Errorf("%s: got %d %+v", name, code, health)
		}
	}
	nonce := testworld.Must(a.challenge(api.ChallengeRequest{})).Nonce
	_, err := a.certify(t.Context(), w.scoring().request(nonce, func(r *api.CertificateRequest) { r.Head = policy.NextHead(base.PolicyHead(), twice.Policy) }), "")
	testworld.Refused(t, err, wire.Behind)
	if err := a.history.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.wantNoDoubt(a)
	w.wantNoDoubt(w.open())
}

// TestDamagedRowsWarn: the probe reports damaged rows.
func TestDamagedRowsWarn(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	testworld.Must(a.history.Propose(t.Context(), proposal(w.SignPolicy(w.version(a, 1), "ana"))))
	exec(t, w.dsn, `UPDATE proposals SET mac = zeroblob(32)`)
	if err := a.history.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if code, h, _ := readyz(a); code != http.StatusOK || len(h.Warnings) != 1 || !strings.Contains(h.Warnings[0], records.TableProposals) {
		t.Errorf("got %d %+v, want a warning that names the table", code, h)
	}
}
