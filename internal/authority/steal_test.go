package authority

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/authority/records"
	"github.com/cohort-tee/cohort/internal/authority/sealed"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// strangers replaces the keys of all owners by other keys.
func (w *world) strangers() {
	for _, name := range w.Owners {
		w.Keys[name] = testworld.NewKey()
	}
}

// emptied returns a copy of the world's store with only the sealed root.
func (w *world) emptied() (dsn string) {
	w.T.Helper()
	dsn = copyStore(w.T, w.dsn)
	for _, table := range []string{"history", "proposals", "log", "backup", "lease", "collateral"} {
		exec(w.T, dsn, "DELETE FROM "+table)
	}
	return dsn
}

// TestStolenRoot: the operator of an authority copies the sealed root and starts the honest
// program on it with their own history, to get a backup sealed to themselves, or the root sealed
// to their own program. Each attempt is refused.
func TestStolenRoot(t *testing.T) {
	evil := wire.Sum([]byte("evil"))
	rows := []struct {
		name    string
		genesis func(w *world) policy.Step
	}{
		{"the operator as the only owner", func(w *world) policy.Step {
			w.strangers()
			return w.SignPolicy(w.text("quorum = 2", "quorum = 1"), "ana")
		}},
		{"a program of the operator's beside the authority's", func(w *world) policy.Step {
			w.strangers()
			return w.SignPolicy(w.text(`{ platform = "soft", program = "authority" } ]`,
				fmt.Sprintf(`{ platform = "soft", program = "authority" }, { platform = "soft", program = %q } ]`, evil)), "ana", "ben")
		}},
		{"a draft that the founders signed and gave up", func(w *world) policy.Step {
			return w.SignPolicy(w.text("lifetime = \"30m\"", "lifetime = \"31m\""), "ana", "ben")
		}},
		{"the founders' draft with one byte more", func(w *world) policy.Step {
			return w.SignPolicy(w.text()+"#", "ana", "ben")
		}},
		{"the founders' draft on other machines", func(w *world) policy.Step {
			return w.SignPolicy(w.text(`machines = "any"`, `machines = ["chip:0123456789abcdef"]`), "ana", "ben")
		}},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld(t)
			testworld.Must(w.scoring().enrol(direct{w.open()}))
			w.dsn = w.emptied()
			w.genesis = row.genesis(w)
			c := w.config("authority")
			before := testworld.Must(c.Store.RootRow(t.Context()))
			if a, err := Open(t.Context(), c); wire.ReasonOf(err) != wire.WrongDraft {
				t.Errorf("got %v, %v, want reason %q", a, err, wire.WrongDraft)
			}
			after := testworld.Must(c.Store.RootRow(t.Context()))
			if !bytes.Equal(after.Content, before.Content) || !bytes.Equal(after.Key, before.Key) {
				t.Error("the root was sealed anew")
			}
			if head := testworld.Must(c.Store.HistoryHead(t.Context())); !head.IsZero() {
				t.Errorf("the history %v was adopted", head)
			}
			if _, err := w.Device("evil").Unseal(t.Context(), after.Content); err == nil {
				t.Error("a program of the operator's unsealed the root")
			}
		})
	}
}

// TestOwnHistoryAgain: an emptied store adopts the founders' genesis again. This is a rollback,
// which parties that have seen newer policy detect; it exposes no root.
func TestOwnHistoryAgain(t *testing.T) {
	w := newWorld(t)
	before := testworld.Must(w.scoring().enrol(direct{w.open()}))
	w.dsn = w.emptied()
	after := testworld.Must(w.scoring().enrol(direct{w.open()}))
	if !bytes.Equal(before.Authority, after.Authority) {
		t.Error("got another root")
	}
}

// TestRefusalsNameNoOtherRoot: a refusal does not print the sealed root. It could be mistaken for
// the output of init, but without evidence.
func TestRefusalsNameNoOtherRoot(t *testing.T) {
	w := newWorld(t)
	sealed := w.root
	w.root = wire.Sum([]byte("another"))
	w.genesis = w.SignPolicy(w.text(), "ana", "ben")
	_, err := Open(t.Context(), w.config("authority"))
	testworld.Refused(t, err, wire.WrongRoot)
	if err != nil && strings.Contains(err.Error(), sealed.Hex()) {
		t.Errorf("the refusal names the sealed root: %v", err)
	}
	if strings.Contains(w.log.String(), sealed.Hex()) {
		t.Errorf("the log names the sealed root: %s", w.log)
	}
}

// initAgain replaces the root in the world's store.
func (w *world) initAgain(edits ...string) (wire.Digest, error) {
	w.T.Helper()
	db := testworld.Must(store.Open(w.T.Context(), w.dsn))
	defer db.Close()
	tee := w.Device("authority")
	made, err := sealed.CreateRoot(w.T.Context(), sealed.InitConfig{Store: db, Attester: tee, Sealer: tee, Draft: w.draft(edits...), Again: true})
	return made.Root, err
}

// TestInitAgain: after a mistake in the draft, init can replace the root until its policy is
// adopted, and not after that.
func TestInitAgain(t *testing.T) {
	w := newWorld(t)
	corrected := []string{"lifetime = \"30m\"", "lifetime = \"20m\""}
	root, err := w.initAgain(corrected...)
	if err != nil || root == w.root {
		t.Fatalf("got root %v, %v, want another", root, err)
	}
	_, err = Open(t.Context(), w.config("authority")) // under the old genesis
	testworld.Refused(t, err, wire.WrongDraft)
	w.root = root
	w.genesis = w.SignPolicy(w.text(corrected...), "ana", "ben")
	w.open()
	_, err = w.initAgain(corrected...)
	testworld.Refused(t, err, wire.StoreForeign)
	if w.open().RootDigest() != root {
		t.Error("a refused init changed the root")
	}
}

// TestInitAfterAFailure: an init that failed after it created its store, for example at the
// vendor, can be repeated in that store.
func TestInitAfterAFailure(t *testing.T) {
	w := newWorld(t)
	w.dsn = newDSN(t)
	db := testworld.Must(store.Create(t.Context(), w.dsn))
	tee := w.Device("authority")
	tee.Faults.Error = wire.NotThisDevice
	_, err := sealed.CreateRoot(t.Context(), sealed.InitConfig{Store: db, Attester: tee, Sealer: tee, Draft: w.draft()})
	if err == nil {
		t.Error("got a root without evidence")
	}
	db.Close()
	w.found()
	w.open()
}

// TestFirstFormat: a root that was sealed without a draft serves no history.
func TestFirstFormat(t *testing.T) {
	w := newWorld(t)
	tee := w.Device("authority")
	secret := identity.NewSecret()
	keys := testworld.Must(identity.Derive(secret))
	row := store.Row{Key: make([]byte, 32), Content: testworld.Must(tee.Seal(t.Context(), secret.Expose(), nil))}
	row.MAC = records.New(keys).ComputeMAC(records.TableRoot, row)
	w.dsn = newDSN(t)
	db := testworld.Must(store.Create(t.Context(), w.dsn))
	if err := db.CreateRoot(t.Context(), row); err != nil {
		t.Fatal(err)
	}
	db.Close()
	w.root = keys.RootDigest()
	w.genesis = w.SignPolicy(w.text(), "ana", "ben")
	_, err := Open(t.Context(), w.config("authority"))
	testworld.Refused(t, err, wire.RootUnbound)
}
