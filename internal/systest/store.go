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

// onServer is the environment variable that puts the stores of clusters into PostgreSQL.
const onServer = "SYSTEST_ON_SERVER"

// newDSN returns the data source name of an empty store.
func newDSN(t testing.TB) string {
	t.Helper()
	if os.Getenv(onServer) != "" {
		return testdb.Database(t)
	}
	return "sqlite:" + filepath.Join(t.TempDir(), "authority.db")
}

// files returns the store's SQLite database and the files beside it.
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

// copyStore copies the store while the authority is stopped, starts the authority again,
// and returns the copy's data source name.
func (c *Cluster) copyStore() (dsn string) {
	c.t.Helper()
	c.StopAuthority()
	defer c.StartAuthority()
	return copyOf(c.t, c.dsn)
}

// restoreStore replaces the store by a copy, which stays unchanged. The authority must be
// down.
func (c *Cluster) restoreStore(old string) {
	c.t.Helper()
	c.dsn = copyOf(c.t, old)
}

// copyOf copies a store that is not in use, and returns the copy's data source name.
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

// Reinitialise stops the authority and gives it an empty store with a new root, created for
// a draft of the genesis policy.
func (c *Cluster) Reinitialise(genesis []byte) {
	c.t.Helper()
	c.StopAuthority()
	c.dsn = newDSN(c.t)
	c.Root = c.initialise(draftOf(c.t, string(genesis)))
}

// authorityOf returns a client of the cluster's authority that does not authenticate the
// server: the responses that tests read authenticate themselves, or are not relied on.
func authorityOf(t testing.TB, c *Cluster) *api.Authority {
	t.Helper()
	a, err := api.NewAuthority(c.URL(), &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	return a
}
