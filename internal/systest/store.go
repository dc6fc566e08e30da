package systest

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/api"
)

// files is the store's database with what SQLite keeps beside it.
func (c *Cluster) files() []string {
	c.t.Helper()
	list, err := filepath.Glob(strings.TrimPrefix(c.dsn, "sqlite:") + "*")
	if err != nil {
		c.t.Fatal(err)
	}
	return list
}

// copyStore is the store as it is; the authority must be down or idle.
func (c *Cluster) copyStore() map[string][]byte {
	c.t.Helper()
	c.StopAuthority()
	defer c.StartAuthority()
	copied := map[string][]byte{}
	for _, name := range c.files() {
		b, err := os.ReadFile(name)
		if err != nil {
			c.t.Fatal(err)
		}
		copied[name] = b
	}
	return copied
}

// restoreStore puts an old copy in the store's place; the authority is down.
func (c *Cluster) restoreStore(copied map[string][]byte) {
	c.t.Helper()
	for _, name := range c.files() {
		if err := os.Remove(name); err != nil {
			c.t.Fatal(err)
		}
	}
	for name, b := range copied {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			c.t.Fatal(err)
		}
	}
}

// Reinitialise stops the authority and gives it an empty store with a new root.
func (c *Cluster) Reinitialise() {
	c.t.Helper()
	c.StopAuthority()
	c.dsn = "sqlite:" + filepath.Join(c.t.TempDir(), "authority.db")
	c.Root = c.initialise()
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
