package authority

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/authority/records"
	"github.com/cohort-tee/cohort/internal/authority/sealed"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/authority/store/testdb"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// raw opens the world's database directly, without the authority.
func raw(t testing.TB, dsn string) *sql.DB {
	t.Helper()
	driver, address := "pgx", dsn
	if file, ok := strings.CutPrefix(dsn, "sqlite:"); ok {
		driver, address = "sqlite", file
	}
	db, err := sql.Open(driver, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// toPostgres translates the statements that tests run on the database to PostgreSQL.
var toPostgres = strings.NewReplacer("zeroblob(32)", "decode(repeat('00', 32), 'hex')",
	"CAST(content AS TEXT)", "convert_from(content, 'UTF8')", "CAST(", "convert_to(", " AS BLOB)", ", 'UTF8')",
	"BEGIN IMMEDIATE", "BEGIN; SELECT pg_advisory_xact_lock(hashtext('cohort'), hashtext(current_schema()))")

// dialect returns a statement in the dialect of the database at dsn.
func dialect(dsn, statement string) string {
	if strings.HasPrefix(dsn, "sqlite:") {
		return statement
	}
	return toPostgres.Replace(statement)
}

func exec(t testing.TB, dsn string, statement string, args ...any) {
	t.Helper()
	if _, err := raw(t, dsn).Exec(dialect(dsn, statement), args...); err != nil {
		t.Fatal(err)
	}
}

// copyStore copies a store, which may be in use, and returns the address of the copy.
func copyStore(t testing.TB, dsn string) string {
	t.Helper()
	if !strings.HasPrefix(dsn, "sqlite:") {
		return testdb.CopyDatabase(t, dsn)
	}
	file := filepath.Join(t.TempDir(), "copy.db")
	exec(t, dsn, `VACUUM INTO ?`, file)
	return "sqlite:" + file
}

// lockStore takes the write lock of the store and returns a function that releases it.
func lockStore(t testing.TB, dsn string) func() {
	t.Helper()
	c, err := raw(t, dsn).Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ExecContext(t.Context(), dialect(dsn, "BEGIN IMMEDIATE")); err != nil {
		t.Fatal(err)
	}
	return func() {
		if _, err := c.ExecContext(context.WithoutCancel(t.Context()), "ROLLBACK"); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
}

func TestInit(t *testing.T) {
	w := newWorld(t)
	db := testworld.Must(store.Create(t.Context(), w.dsn))
	defer db.Close()
	tee := w.Device("authority")
	_, err := sealed.CreateRoot(t.Context(), sealed.InitConfig{Store: db, Attester: tee, Sealer: tee, Draft: w.draft()})
	testworld.Refused(t, err, wire.StoreForeign)
	_, err = sealed.CreateRoot(t.Context(), sealed.InitConfig{Store: db, Attester: tee, Sealer: tee})
	testworld.Refused(t, err, wire.BadPolicy)

	made := w.init(newDSN(t), "authority")
	if made.Root == w.root {
		t.Error("two inits made one root")
	}
	var evidence attest.Evidence
	if err := evidence.UnmarshalJSON(made.Evidence); err != nil {
		t.Fatal(err)
	}
	draft := w.draft().Digest()
	_, err = attesttest.Verifier().Appraise(attest.Question{
		Evidence: evidence, ReportData: attest.BindReportData(wire.LabelInit, made.Root[:], draft[:]), Rules: w.Vendor.Rules(), At: noon,
	})
	if err != nil {
		t.Errorf("appraising the evidence of init: %v", err)
	}
}

// TestOpenRefusals changes the least thing in a good store, policy or machine. Each change must
// give exactly one reason.
func TestOpenRefusals(t *testing.T) {
	rows := []struct {
		name   string
		want   wire.Reason
		change func(*world, *Config)
	}{
		{"no configuration", wire.BadRequest, func(_ *world, c *Config) { *c = Config{} }},
		{"no genesis on the first run", wire.WrongGenesis, func(_ *world, c *Config) { c.Genesis = nil }},
		{"one owner only", wire.NoQuorum, func(w *world, c *Config) { g := w.SignPolicy(w.text(), "ana"); c.Genesis = &g }},
		{"one owner twice", wire.NoQuorum, func(w *world, c *Config) { g := w.SignPolicy(w.text(), "ana", "ana"); c.Genesis = &g }},
		{"signed over another text", wire.BadSignature, func(w *world, c *Config) {
			g := w.SignPolicy(w.text(), "ana", "ben")
			g.Policy = append(g.Policy, '\n')
			c.Genesis = &g
		}},
		{"a policy that names another root", wire.WrongRoot, func(w *world, c *Config) {
			g := w.SignPolicy(testworld.EditPolicy(w.T, w.text(), w.root.String(), wire.Sum([]byte("other")).String()), "ana", "ben")
			c.Genesis = &g
		}},
		{"a build that policy does not name", wire.NotMeasured, func(w *world, c *Config) {
			w.dsn = newDSN(w.T)
			w.found(`{ platform = "soft", program = "authority" } ]`, fmt.Sprintf(`{ platform = "soft", program = %q } ] # not authority`, wire.Sum([]byte("rebuilt"))))
			*c = w.config("authority")
		}},
		{"a machine that policy does not name", wire.WrongChip, func(w *world, c *Config) {
			w.dsn = newDSN(w.T)
			w.found(`machines = "any"`, `machines = ["chip:0123456789abcdef"]`)
			*c = w.config("authority")
		}},
		{"a policy of another draft", wire.WrongDraft, func(w *world, c *Config) {
			g := w.SignPolicy(w.text("lifetime = \"30m\"", "lifetime = \"31m\""), "ana", "ben")
			c.Genesis = &g
		}},
		{"another build", wire.NotMeasured, func(w *world, c *Config) {
			c.Sealer = w.Device("rebuilt")
		}},
		{"a platform root that policy does not name", wire.UnknownRoot, func(w *world, c *Config) {
			c.Attester.(*attesttest.Device).Faults.OtherRoot = true
		}},
		{"a policy of the day after", wire.ClockSkew, func(w *world, c *Config) { w.clock.JumpWall(-24 * time.Hour) }},
		{"the sealed root changed", wire.StoreForeign, func(w *world, c *Config) {
			exec(w.T, w.dsn, `UPDATE root SET key = zeroblob(32)`)
		}},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld(t)
			c := w.config("authority")
			row.change(w, &c)
			_, err := Open(t.Context(), c)
			testworld.Refused(t, err, row.want)
		})
	}
}

// TestChangedRows changes one row of each table directly. The row is reported and skipped. If it
// was a step of the history, nothing is issued until the step is pushed again.
func TestChangedRows(t *testing.T) {
	rows := []struct {
		name, statement, table string
		behind                 bool
	}{
		{"history content", `UPDATE history SET content = CAST(replace(CAST(content AS TEXT), '"policy"', '"policY"') AS BLOB) WHERE step = 2`, records.TableHistory, true},
		{"history tag", `UPDATE history SET mac = zeroblob(32) WHERE step = 2`, records.TableHistory, true},
		{"history head", `UPDATE history SET head = zeroblob(32) WHERE step = 2`, records.TableHistory, true},
		{"history in the middle", `UPDATE history SET mac = zeroblob(32) WHERE step = 2 OR step = 3`, records.TableHistory, true},
		{"log content", `UPDATE log SET content = CAST(replace(CAST(content AS TEXT), 'scoring', 'scorinG') AS BLOB)`, records.TableLog, false},
		{"proposal content", `UPDATE proposals SET content = CAST('{}' AS BLOB)`, records.TableProposals, false},
		{"proposal in another's place", `UPDATE proposals SET digest = zeroblob(32) WHERE digest = (SELECT digest FROM proposals ORDER BY digest DESC LIMIT 1)`, records.TableProposals, false},
		{"lease", `UPDATE lease SET mac = zeroblob(32)`, records.TableLease, false},
		{"backup record", `INSERT INTO backup ("only", key, content, mac) VALUES (1, zeroblob(32), zeroblob(32), zeroblob(32))`, records.TableBackup, false},
		{"contradiction", `INSERT INTO forks (key, content, mac) VALUES (zeroblob(32), zeroblob(32), zeroblob(32))`, records.TableForks, false},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld(t)
			a := w.open()
			w.change(a, tighter...)
			w.change(a, "lifetime = \"20m\"", "lifetime = \"15m\"")
			testworld.Must(w.scoring().enrol(direct{a}))
			testworld.Must(a.history.Propose(t.Context(), proposal(w.SignPolicy(w.NextText(a.inForce().approved, "lifetime = \"15m\"", "lifetime = \"14m\""), "ana"))))
			newest := a.history.Current().StepsFrom(0)
			exec(t, w.dsn, row.statement)

			b := w.open()
			_ = b.rings.ReadLease(t.Context())
			_, _ = b.history.ShowProposals(t.Context())
			if named := b.damage.RowsOf(row.table); len(named) == 0 || !strings.Contains(named[0], "of "+row.table) {
				t.Errorf("got damaged rows %q, want one of %s named", named, row.table)
			}
			_, err := w.scoring().enrol(direct{b})
			if row.behind {
				testworld.Refused(t, err, wire.Behind)
				testworld.Must(b.history.Push(t.Context(), newest))
				_, err = w.scoring().enrol(direct{b})
			}
			if err != nil {
				t.Errorf("issuing: %v", err)
			}
			if got := b.inForce().approved.PolicyHead(); got != newest.Head {
				t.Errorf("got head %v, want %v", got, newest.Head)
			}
			if c := w.open(); c.history.Behind() != nil {
				t.Errorf("after another start: %v", c.history.Behind())
			}
		})
	}
}

// TestReopen: after a restart, root, policy and log are as before. The genesis is not needed
// again.
func TestReopen(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	one := testworld.Must(w.scoring().enrol(direct{a}))
	c := w.config("authority")
	c.Genesis = nil
	b, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if b.RootDigest() != w.root || b.Genesis() != wire.Sum(w.genesis.Policy) {
		t.Error("another root or genesis after a restart")
	}
	two := testworld.Must(w.scoring().enrol(direct{b}))
	if string(one.Leaf) != string(two.Leaf) {
		t.Error("another shared leaf after a restart")
	}
	other := w.SignPolicy(w.text("lifetime = \"30m\"", "lifetime = \"31m\""), "ana", "ben")
	c = w.config("authority")
	c.Genesis = &other
	_, err = Open(t.Context(), c)
	testworld.Refused(t, err, wire.WrongGenesis)
}

// TestOtherRoot: an authority with the same binary, genesis and policy, but a different root
// secret, is refused.
func TestOtherRoot(t *testing.T) {
	w := newWorld(t)
	w.open()
	w.dsn = newDSN(t)
	w.init(w.dsn, "authority")
	_, err := Open(t.Context(), w.config("authority"))
	testworld.Refused(t, err, wire.WrongRoot)
}

// TestClockJump moves the wall clock against the monotonic clock. A jump above the bound is
// refused with "clock".
func TestClockJump(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	client, _ := w.serve(a)
	w.clock.JumpWall(wire.MaxClockJump)
	if _, err := w.scoring().enrol(client); err != nil {
		t.Errorf("after a jump of %v: %v", wire.MaxClockJump, err)
	}
	w.clock.JumpWall(time.Second)
	_, err := client.Challenge(t.Context())
	testworld.Refused(t, err, wire.ClockSkew)
	w.clock.JumpWall(-time.Second)
	w.clock.Advance(time.Hour)
	if _, err := w.scoring().enrol(client); err != nil {
		t.Errorf("an hour by both clocks later: %v", err)
	}
	w.clock.JumpWall(-4 * time.Minute)
	_, err = client.Challenge(t.Context())
	testworld.Refused(t, err, wire.ClockSkew)
}

// TestClockFloor restarts the authority after its clock went back. Its time does not go below the
// newest record, and a clock too far behind is refused.
func TestClockFloor(t *testing.T) {
	w := newWorld(t)
	testworld.Must(w.scoring().enrol(direct{w.open()}))
	w.clock.JumpWall(-time.Minute)
	a := w.open()
	if now := testworld.Must(a.clock.Now()); now.Before(noon) {
		t.Errorf("got time %v, want not before the newest record, %v", now, noon)
	}
	w.clock.JumpWall(-2 * time.Minute)
	_, err := Open(t.Context(), w.config("authority"))
	testworld.Refused(t, err, wire.ClockSkew)
}
