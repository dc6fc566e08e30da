package systest

import (
	"bytes"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// stealRoot plays the operator of an authority, who has a copy of its store, the released
// program and the machine that sealed the root. The operator starts it under a forged
// history, which would make them the owner of backups or allow a program of theirs. Each
// attempt is refused with the reason draft, and the root is not sealed again. The authority
// must not be running.
func (b *binaries) stealRoot(m commander) {
	b.t.Helper()
	mallory := testworld.NewKey()
	genesis := string(b.Steps[0].Policy)
	own := strings.Replace(genesis, b.owner.AuthorizedKey(), mallory.AuthorizedKey(), 1)
	for name, forged := range map[string]struct {
		by   testworld.Key
		text string
	}{
		"owners of the operator's":             {mallory, own},
		"a program of the operator's, as well": {mallory, besides(own)},
		"a draft that was signed and given up": {b.owner, strings.Replace(genesis, `delay = "1h"`, `delay = "2h"`, 1)},
	} {
		if forged.text == genesis {
			b.t.Fatalf("%s: the genesis has nothing to change", name)
		}
		signature, err := sshsig.Sign(forged.by, sshsig.ForPolicy, []byte(forged.text))
		if err != nil {
			b.t.Fatal(err)
		}
		b.write("forged.toml", []byte(forged.text))
		b.write("forged.sig", []byte(signature))
		before := b.emptiedStore("stolen.db")
		out := b.mustRefuse(m.command(b.cohort, b.authorityArgs("--store", "sqlite:stolen.db", "--genesis-policy", "forged.toml", "--signature", "forged.sig")...), wire.WrongDraft)
		if !strings.Contains(out, "draft of the first policy") {
			b.t.Errorf("%s: got %q, want the draft of the first policy named", name, out)
		}
		if after := b.sealedRoot("stolen.db"); !bytes.Equal(after, before) {
			b.t.Errorf("%s: the root was sealed anew", name)
		}
	}
}

// emptiedStore copies the store, deletes everything but its sealed root, and returns that
// root.
func (b *binaries) emptiedStore(name string) []byte {
	b.t.Helper()
	for _, suffix := range []string{"", "-wal", "-shm"} {
		_ = os.Remove(filepath.Join(b.dir, name+suffix))
	}
	db := b.sql("authority.db")
	if _, err := db.Exec("VACUUM INTO ?", filepath.Join(b.dir, name)); err != nil {
		b.t.Fatal(err)
	}
	db.Close()
	db = b.sql(name)
	defer db.Close()
	rows, err := db.Query("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name NOT IN ('root', 'cohort_schema')")
	if err != nil {
		b.t.Fatal(err)
	}
	var tables []string
	for rows.Next() {
		var table string
		if err := rows.Scan(&table); err != nil {
			b.t.Fatal(err)
		}
		tables = append(tables, table)
	}
	rows.Close()
	for _, table := range tables {
		if _, err := db.Exec(fmt.Sprintf("DELETE FROM %q", table)); err != nil {
			b.t.Fatal(err)
		}
	}
	return b.sealedRoot(name)
}

func (b *binaries) sealedRoot(name string) (content []byte) {
	b.t.Helper()
	db := b.sql(name)
	defer db.Close()
	if err := db.QueryRow("SELECT content FROM root").Scan(&content); err != nil {
		b.t.Fatal(err)
	}
	return content
}

func (b *binaries) sql(name string) *sql.DB {
	b.t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(b.dir, name))
	if err != nil {
		b.t.Fatal(err)
	}
	return db
}

// besides returns a policy that allows the authority one more program, which stands for one
// of the operator's: no such program exists.
func besides(text string) string {
	_, authority, _ := strings.Cut(text, "\n[authority]\n")
	old, _, _ := strings.Cut(authority[strings.Index(authority, "reference = [ "):], "\n")
	digits := old[strings.LastIndex(old, ":")+1:][:64]
	return strings.Replace(text, old, strings.TrimSuffix(old, " ]")+", "+strings.Replace(strings.TrimSuffix(strings.TrimPrefix(old, "reference = [ "), " ]"), digits, strings.Repeat("e", 64), 1)+" ]", 1)
}
