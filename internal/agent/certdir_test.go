package agent

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/unit/unittest"
	"golang.org/x/sys/unix"
)

// tmpfs is a fresh directory on the machine's tmpfs.
func tmpfs(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "cohort-unit-test-")
	if err != nil {
		t.Skipf("SKIPPED, no tmpfs: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestCertDir(t *testing.T) {
	dir := filepath.Join(tmpfs(t), "certs")
	w := unittest.New(t, "1h")
	authority := w.Authority(w.AuthorityKeys)
	authority.Spread = 0 // a policy that concerns the unit renews it at once
	a := runAgentIn(t, w, started(w, "scoring", authority), "http", func(c *Config) { c.CertDir, c.Reload = dir, syscall.SIGHUP })
	if got := a.text("/hups"); got != "0" {
		t.Errorf("got %s reload signals before any renewal", got)
	}
	for i := range 3 {
		before := readPair(t, dir)
		w = w.Edited(fmt.Sprintf("LANG = \"C%s\"", strings.Repeat("x", i)), fmt.Sprintf("LANG = \"C%s\"", strings.Repeat("x", i+1)))
		authority.Set(func(f *unittest.Authority) { f.Steps = w.Entries() })
		told := fmt.Sprint(i + 1)
		testworld.Within(t, 5*time.Second, "the program was told", func() bool { return a.text("/hups") == told })
		if readPair(t, dir) == before {
			t.Error("the pair was not replaced")
		}
	}
	pairs, err := filepath.Glob(filepath.Join(dir, freshPrefix+"*"))
	if err != nil || len(pairs) != 2 {
		t.Errorf("got pairs %q, %v, want the newest and the one before", pairs, err)
	}
	a.stop()
	testworld.NoError(t, <-a.done)
	if pairs, _ := filepath.Glob(filepath.Join(dir, freshPrefix+"*")); len(pairs) != 0 {
		t.Errorf("got pairs %q after the agent's end, want none", pairs)
	}
}

// readPair checks the files of a certificate directory, and gives the name of
// the directory they are in.
func readPair(t *testing.T, dir string) string {
	t.Helper()
	current, err := os.Readlink(filepath.Join(dir, currentName))
	testworld.NoError(t, err)
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"))
	testworld.NoError(t, err)
	if len(pair.Certificate) != 2 {
		t.Errorf("got %d certificates, want leaf and cross-certificate", len(pair.Certificate))
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	testworld.NoError(t, err)
	roots := x509.NewCertPool()
	if block, rest := pem.Decode(ca); block == nil || len(rest) > 0 || !roots.AppendCertsFromPEM(ca) {
		t.Errorf("ca.crt is not one certificate")
	}
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "scoring.clinic.example"}); err != nil {
		t.Errorf("checking tls.crt under ca.crt: %v", err)
	}
	for _, name := range []string{"tls.crt", "tls.key", "ca.crt"} {
		info, err := os.Stat(filepath.Join(dir, name))
		testworld.NoError(t, err)
		if got := info.Mode().Perm(); got != 0o600 {
			t.Errorf("%s: got mode %o, want 600", name, got)
		}
	}
	return current
}

// TestCertDirMedium: keys are not written to a disk unless told so.
func TestCertDirMedium(t *testing.T) {
	dir := t.TempDir()
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil || fs.Type == unix.TMPFS_MAGIC {
		t.Skipf("SKIPPED: the temporary directory is a tmpfs, or %v", err)
	}
	a := runAgent(t, "http", func(c *Config) { c.CertDir = dir })
	giveUp := time.AfterFunc(5*time.Second, a.stop)
	defer giveUp.Stop()
	testworld.Refused(t, <-a.done, wire.NotAllowed)
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 0 {
		t.Errorf("got %v, %v, want nothing written", entries, err)
	}
	a = runAgent(t, "http", func(c *Config) { c.CertDir, c.Disk = dir, true })
	a.text("/hups")
	readPair(t, dir)
}

// TestCertDirWithoutListener: a program that serves TLS itself, after an agent
// that was killed between two steps.
func TestCertDirWithoutListener(t *testing.T) {
	dir := tmpfs(t)
	stale := filepath.Join(dir, freshPrefix+"stale")
	testworld.NoError(t, os.Mkdir(stale, 0o700))
	testworld.NoError(t, os.Symlink("nowhere", filepath.Join(dir, nextName)))
	var listen net.Listener
	started := make(chan struct{})
	a := runAgent(t, "http", func(c *Config) {
		listen, c.Listen, c.CertDir = c.Listen, nil, dir
		c.Started = func() { close(started) }
	})
	testworld.NoError(t, listen.Close())
	select {
	case <-started:
	case err := <-a.done:
		t.Fatal(err)
	}
	if !strings.HasPrefix(readPair(t, dir), freshPrefix) {
		t.Error("the link leads elsewhere")
	}
	if _, err := os.Stat(stale); err == nil {
		t.Error("the pair of the killed agent is still there")
	}
	a.stop()
	testworld.NoError(t, <-a.done)
}
