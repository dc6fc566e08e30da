package authority

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// damages returns how many bits are flipped, one after the other, in each place.
func damages() int {
	if os.Getenv("COHORT_FULL") != "" {
		return 500
	}
	return 12
}

// TestFlippedBits flips one bit of the database, of its write-ahead log or of the sealed root.
// The authority serves with the same keys, or refuses to start and names the damage.
func TestFlippedBits(t *testing.T) {
	if os.Getenv(onServer) != "" {
		t.Skip("it damages files")
	}
	w := newWorld(t)
	a := w.open()
	text := w.NextText(a.inForce().approved, tighter...)
	testworld.Must(a.history.Propose(t.Context(), proposal(w.SignPolicy(text, "ana", "ben"))))
	want := testworld.Must(w.scoring().enrol(direct{a}))
	file := strings.TrimPrefix(w.dsn, "sqlite:")
	wal := testworld.Must(os.ReadFile(file + "-wal"))
	whole := strings.TrimPrefix(copyStore(t, w.dsn), "sqlite:")
	sealed := testworld.Must(testworld.Must(store.Open(t.Context(), "sqlite:"+whole)).RootRow(t.Context())).Content
	database, began := testworld.Must(os.ReadFile(whole)), testworld.Must(os.ReadFile(file))
	root := strings.Index(string(database), string(sealed))
	if root < 0 {
		t.Fatal("the sealed root is nowhere in the database")
	}
	places := []struct {
		name          string
		database, wal []byte
		from, size    int
	}{
		{name: "database", database: database, from: 0, size: len(database)},
		{name: "wal", database: began, wal: wal, from: 0, size: len(wal)},
		{name: "sealed root", database: database, from: root, size: len(sealed)},
	}
	for _, place := range places {
		t.Run(place.name, func(t *testing.T) {
			served := 0
			for range damages() {
				bit := rand.N(place.size * 8)
				db, log := append([]byte(nil), place.database...), append([]byte(nil), place.wal...)
				damaged := db
				if len(log) > 0 {
					damaged = log
				}
				damaged[place.from+bit/8] ^= 1 << (bit % 8)
				if w.survives(t, db, log, want.LeafKey) {
					served++
				}
			}
			t.Logf("served %d of %d times", served, damages())
			if place.name == "sealed root" && served > 0 {
				t.Error("served with a damaged root")
			}
		})
	}
}

// survives opens an authority on the bytes of a database, and reports whether it serves. If it
// issues, the shared key must be key.
func (w *world) survives(t *testing.T, database, wal, key []byte) bool {
	t.Helper()
	file := filepath.Join(t.TempDir(), "a.db")
	for name, content := range map[string][]byte{file: database, file + "-wal": wal} {
		if len(content) > 0 {
			if err := os.WriteFile(name, content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	var a *Authority
	db, err := store.Open(t.Context(), "sqlite:"+file)
	if err == nil {
		defer db.Close()
		a, err = Open(t.Context(), w.configOn(db, "authority"))
	}
	if err != nil {
		if text := err.Error(); !strings.Contains(text, "store") && !strings.Contains(text, "root") {
			t.Errorf("refused with %q, which names nothing that is damaged", text)
		}
		return false
	}
	if a.RootDigest() != w.root {
		t.Error("another root")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	p := w.scoring()
	r := p.request(testworld.Must(a.challenge(api.ChallengeRequest{})).Nonce, nil)
	sealed, err := direct{a}.Certify(ctx, r)
	if err != nil {
		return true // it serves, and refuses what it cannot do
	}
	if report := testworld.Must(p.openReport(r, sealed)); string(report.LeafKey) != string(key) {
		t.Errorf("another shared key")
	}
	return true
}

// TestRestored restores an old copy of the store: all of it, one table, or one row. When a unit
// shows a newer head, the authority refuses with "behind" and issues nothing, until the signed
// newer files are pushed.
func TestRestored(t *testing.T) {
	for name, restore := range map[string]func(w *world, old string){
		"whole":     func(w *world, old string) { w.dsn = old },
		"one table": func(w *world, _ string) { exec(w.T, w.dsn, `DELETE FROM history WHERE step > 1`) },
		"one row": func(w *world, _ string) {
			exec(w.T, w.dsn, `DELETE FROM history WHERE step = (SELECT max(step) FROM history)`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			a := w.open()
			old := copyStore(t, w.dsn)
			for _, life := range [][2]string{{"30m", "20m"}, {"20m", "15m"}} {
				text := w.NextText(a.inForce().approved, "lifetime = \""+life[0]+"\"", "lifetime = \""+life[1]+"\"")
				testworld.Must(a.history.Propose(t.Context(), proposal(w.SignPolicy(text, "ana", "ben"))))
			}
			testworld.Must(w.scoring().enrol(direct{a}))
			newest := a.history.Current().StepsFrom(0)
			restore(w, old)
			b := w.open()
			before := issued(t, b)
			for range 2 {
				p := w.scoring()
				r := p.request(testworld.Must(b.challenge(api.ChallengeRequest{})).Nonce, func(r *api.CertificateRequest) { r.Head = newest.Head })
				_, err := direct{b}.Certify(t.Context(), r)
				testworld.Refused(t, err, wire.Behind)
			}
			if got := issued(t, b); got != before {
				t.Errorf("issued %d times while behind", got-before)
			}
			testworld.Must(b.history.Push(t.Context(), newest))
			p := w.scoring()
			r := p.request(testworld.Must(b.challenge(api.ChallengeRequest{})).Nonce, func(r *api.CertificateRequest) { r.Head = newest.Head })
			report := testworld.Must(p.openReport(r, testworld.Must(direct{b}.Certify(t.Context(), r))))
			if report.Head != newest.Head {
				t.Errorf("got head %v after healing, want %v", report.Head, newest.Head)
			}
			if c := w.open(); c.inForce().approved.PolicyHead() != newest.Head {
				t.Error("what healed it is not in the store")
			}
		})
	}
}
