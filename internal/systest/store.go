package systest

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/store/testdb"
)

// onServer says, in the environment, that clusters have their stores in
// PostgreSQL.
const onServer = "SYSTEST_ON_SERVER"

// newDSN is the address of an empty store.
func newDSN(t testing.TB) string {
	t.Helper()
	if os.Getenv(onServer) != "" {
		return testdb.Database(t)
	}
	return "sqlite:" + filepath.Join(t.TempDir(), "authority.db")
}

// files is the store's SQLite database with what is kept beside it.
func (c *Cluster) files() []string {
	c.t.Helper()
	return filesOf(c.t, c.dsn)
}

func filesOf(t testing.TB, dsn string) []string {
	t.Helper()
	list, err := filepath.Glob(strings.TrimPrefix(dsn, "sqlite:") + "*")
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// copyStore is the address of a copy of the store as it is, for which the
// authority is started again.
func (c *Cluster) copyStore() (dsn string) {
	c.t.Helper()
	c.StopAuthority()
	defer c.StartAuthority()
	return copyOf(c.t, c.dsn)
}

// restoreStore puts an old copy in the store's place; the authority is down. The
// copy stays as it is.
func (c *Cluster) restoreStore(old string) {
	c.t.Helper()
	c.dsn = copyOf(c.t, old)
}

// copyOf is the address of a copy of a store that nobody uses.
func copyOf(t testing.TB, dsn string) string {
	t.Helper()
	if !strings.HasPrefix(dsn, "sqlite:") {
		return testdb.CopyDatabase(t, dsn)
	}
	dir := t.TempDir()
	for _, name := range filesOf(t, dsn) {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(name)), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return "sqlite:" + filepath.Join(dir, filepath.Base(dsn))
}

// Reinitialise stops the authority and gives it an empty store with a new root, made
// for the draft of a genesis.
func (c *Cluster) Reinitialise(genesis []byte) {
	c.t.Helper()
	c.StopAuthority()
	c.dsn = newDSN(c.t)
	c.Root = c.initialise(draftOf(c.t, string(genesis)))
}

// authorityOf is a client of the cluster's authority that checks nothing: what
// tests ask with it authenticates itself or is not believed.
func authorityOf(t testing.TB, c *Cluster) *api.Authority {
	t.Helper()
	a, err := api.NewAuthority(c.URL(), &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	return a
}
