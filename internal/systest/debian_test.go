package systest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/cohort-tee/cohort/internal/testworld"
)

// debianRoot is a directory with Debian 13, whose programs are newer than this machine's.
type debianRoot string

// debian13 returns a root of Debian 13 with OpenAI's Python SDK and wine. The first test that needs
// it makes it in the cache of the user, which takes minutes and 1.6 GB; later runs use it again.
// After a change of what is installed, the directory needs another name.
func debian13(t *testing.T) debianRoot {
	t.Helper()
	if !full() || testing.Short() {
		t.Skip("SKIPPED: no root of Debian 13; COHORT_FULL=1 and no -short make one")
	}
	if os.Geteuid() != 0 {
		t.Skip("NO ROOT: only root may make and enter a root of Debian 13")
	}
	cache := filepath.Join(testworld.Must(os.UserCacheDir()), "cohort-tests")
	root := filepath.Join(cache, "debian13")
	if _, err := os.Stat(root); err == nil {
		return debianRoot(root)
	}
	testworld.NoError(t, os.MkdirAll(cache, 0o755))
	// Another name until it is whole, so that a run that ends early leaves no half root behind.
	made := testworld.Must(os.MkdirTemp(cache, "unfinished-"))
	testworld.NoError(t, os.Chmod(made, 0o755))
	// Mounts of a mount namespace end with it.
	out, err := exec.CommandContext(t.Context(), "unshare", "--mount", "debootstrap", "--variant=minbase",
		"--include=python3-openai,python3-httpx", "trixie", made).CombinedOutput()
	if err != nil {
		t.Fatalf("debootstrap: %v; where it is missing, run `make tools-full`\n%s", err, tail(out))
	}
	for _, args := range [][]string{
		{"apt-get", "update"},
		{"env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "--no-install-recommends", "wine"},
		{"apt-get", "clean"},
		{"env", "HOME=/root", "WINEDEBUG=-all", "wine", "wineboot", "--init"},
	} {
		if out, err := debianRoot(made).command(t.Context(), "/", args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, tail(out))
		}
	}
	testworld.NoError(t, os.Rename(made, root))
	return debianRoot(root)
}

// command returns a command that runs in a directory of the root. It shares the machine's network; its
// processes end with it.
func (r debianRoot) command(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "unshare", append([]string{"--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
		"--root=" + string(r), "--wd=" + dir}, args...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	return cmd
}

// tempDir returns a directory in the root that ends with the test, and its path inside.
func (r debianRoot) tempDir(t *testing.T) (outside, inside string) {
	t.Helper()
	outside = testworld.Must(os.MkdirTemp(filepath.Join(string(r), "tmp"), "cohort-"))
	t.Cleanup(func() { os.RemoveAll(outside) })
	return outside, "/tmp/" + filepath.Base(outside)
}

// tail returns the end of a command's output.
func tail(out []byte) []byte { return out[max(0, len(out)-4096):] }
