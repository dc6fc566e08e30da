package systest

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/testworld"
)

// builtCommand is the command cohort as it is built for one system.
type builtCommand struct {
	name    string
	dir     string // its working directory, as this test names it
	command func(ctx context.Context, args ...string) *exec.Cmd
}

// run runs the command, and returns its output, its errors and its exit code.
func (c builtCommand) run(t *testing.T, args ...string) (out, faults string, exit int) {
	t.Helper()
	cmd := c.command(t.Context(), args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatalf("%s %v: %v", c.name, args, err)
	}
	return stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
}

// must runs the command, which must succeed, and returns its output.
func (c builtCommand) must(t *testing.T, args ...string) string {
	t.Helper()
	out, faults, exit := c.run(t, args...)
	if exit != 0 {
		t.Fatalf("%v: exit %d\n%s\n%s", args, exit, out, faults)
	}
	return out
}

// crossBuilt builds cohort for a system into a directory.
func crossBuilt(t *testing.T, system, machine, file string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", file, "./cmd/cohort")
	cmd.Dir = filepath.Dir(rootFolder(t, "cmd"))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+system, "GOARCH="+machine)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building for %s/%s: %v\n%s", system, machine, err, out)
	}
}

// TestClientElsewhere runs the commands of clients as they are built for Windows, by Debian 13's
// wine, and for Linux on arm64, by qemu-user, with a cluster on this machine. Both must do what
// the build for this machine does.
func TestClientElsewhere(t *testing.T) {
	root := debian13(t)
	d := StartDev(t, filepath.Join(rootFolder(t, "examples"), "chat/dev.toml"))
	here := t.TempDir()
	native := builtCommand{"this machine", here, func(ctx context.Context, args ...string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, filepath.Join(d.Bin, "cohort"), args...)
		cmd.Dir = here
		return cmd
	}}
	t.Run("windows/amd64", func(t *testing.T) {
		outside, inside := root.tempDir(t)
		crossBuilt(t, "windows", "amd64", filepath.Join(outside, "cohort.exe"))
		wantSame(t, d, native, builtCommand{"wine", outside, func(ctx context.Context, args ...string) *exec.Cmd {
			cmd := root.command(ctx, inside, append([]string{"wine", "cohort.exe"}, args...)...)
			cmd.Env = append(cmd.Env, "HOME=/root", "WINEDEBUG=-all")
			return cmd
		}})
	})
	t.Run("linux/arm64", func(t *testing.T) {
		qemu, err := exec.LookPath("qemu-aarch64-static")
		if err != nil {
			t.Fatalf("%v; run `make tools-full`", err)
		}
		dir := t.TempDir()
		crossBuilt(t, "linux", "arm64", filepath.Join(dir, "cohort"))
		wantSame(t, d, native, builtCommand{"qemu", dir, func(ctx context.Context, args ...string) *exec.Cmd {
			cmd := exec.CommandContext(ctx, qemu, append([]string{"./cohort"}, args...)...)
			cmd.Dir = dir
			return cmd
		}})
	})
}

// wantSame fails the test unless cohort, built for another system, does what the build for this machine does.
func wantSame(t *testing.T, d *Dev, native, other builtCommand) {
	t.Helper()
	info := d.WaitInfo()
	pin := []string{"--genesis", info.Genesis, "--task", info.Task, "--state", "seen.json"}
	with := func(pin []string, args ...string) []string { return append(args, pin...) }
	files := filesElsewhere(t, d, native.dir)
	for _, name := range files {
		testworld.NoError(t, os.WriteFile(filepath.Join(other.dir, name), testworld.Must(os.ReadFile(filepath.Join(native.dir, name))), 0o644))
	}
	if out := other.must(t, "version"); !strings.HasPrefix(out, "cohort ") {
		t.Errorf("version: got %q", out)
	}
	for _, args := range [][]string{{"policy", "check", files[0]}, {"evidence", "inspect", files[1]}} {
		if got, want := other.must(t, args...), native.must(t, args...); got != want || got == "" {
			t.Errorf("%v: got\n%s\nwant\n%s", args, got, want)
		}
	}
	trust := with(pin, "trust", "--gateway", info.Gateway, "--out", "root.pem")
	other.must(t, trust...)
	native.must(t, trust...)
	got, want := testworld.Must(os.ReadFile(filepath.Join(other.dir, "root.pem"))), testworld.Must(os.ReadFile(filepath.Join(native.dir, "root.pem")))
	if !bytes.Equal(got, want) {
		t.Errorf("trust: got the root\n%s\nwant\n%s", got, want)
	}
	if out := other.must(t, with(pin, "verify", "--session", "--fresh-evidence", info.Gateway)...); !strings.Contains(out, "closed by") {
		t.Errorf("verify --session: got\n%s", out)
	}
	receipt := []string{"--receipt", "--receipt-out", "receipt.json"}
	out := other.must(t, append(with(pin, "request", "--session", "--gateway", info.Gateway, info.URL()+"/"), receipt...)...)
	if !strings.Contains(out, `"service":"chat"`) {
		t.Errorf("request --session: got %s", out)
	}
	other.must(t, with(pin, "verify", "--receipt", "receipt.json")...)
	stranger := []string{"--genesis", strings.Repeat("1", 64), "--task", info.Task, "--state", "stranger.json"}
	_, faults, exit := other.run(t, with(stranger, "trust", "--gateway", info.Gateway)...)
	if exit != 1 || !strings.Contains(faults, "[genesis]") {
		t.Errorf("another genesis: got exit %d and %s, want 1 and [genesis]", exit, faults)
	}
	proxyElsewhere(t, other, with(pin, "proxy", "-o", "json", "--listen", "127.0.0.1:0", "--gateway", info.Gateway))
}

// filesElsewhere writes the cluster's policy and its authority's evidence into a directory, and returns their names.
func filesElsewhere(t *testing.T, d *Dev, dir string) []string {
	t.Helper()
	made := testworld.Must(filepath.Glob(filepath.Join(d.Dir, "cluster-*")))
	if len(made) != 1 {
		t.Fatalf("got %d directories of clusters, want 1", len(made))
	}
	var init struct{ Evidence json.RawMessage }
	testworld.NoError(t, json.Unmarshal(testworld.Must(os.ReadFile(filepath.Join(made[0], "authority-init.json"))), &init))
	testworld.NoError(t, os.WriteFile(filepath.Join(dir, "evidence.json"), init.Evidence, 0o644))
	testworld.NoError(t, os.WriteFile(filepath.Join(dir, "genesis.toml"), testworld.Must(os.ReadFile(filepath.Join(made[0], "genesis.toml"))), 0o644))
	return []string{"genesis.toml", "evidence.json"}
}

// proxyElsewhere: curl on this machine streams through a `cohort proxy` of another system.
func proxyElsewhere(t *testing.T, other builtCommand, args []string) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	cmd := other.command(ctx, args...)
	var faults bytes.Buffer
	cmd.Stderr = &faults
	out := testworld.Must(cmd.StdoutPipe())
	testworld.NoError(t, cmd.Start())
	defer func() { stop(); cmd.Wait() }()
	var start struct{ URL string }
	if err := json.NewDecoder(out).Decode(&start); err != nil {
		stop()
		t.Fatalf("cohort proxy printed no start: %v, %v\n%s", err, cmd.Wait(), &faults)
	}
	body := run(t, "", "curl", "-sSfN", "--max-time", "60", "-H", "Content-Type: application/json", start.URL+"/v1/chat/completions",
		"-d", `{"model":"harbour","messages":[{"role":"user","content":"The keeper"}],"max_tokens":12,"stream":true}`)
	if n := strings.Count(body, "data: {"); n < 12 || !strings.Contains(body, "data: [DONE]") {
		t.Errorf("a stream through the proxy: got %d events, want 12 at least and the end\n%s", n, body)
	}
	if status := run(t, "", "curl", "-sS", "-o", os.DevNull, "-w", "%{http_code}", "-H", "Origin: https://evil.example", start.URL+"/"); status != "403" {
		t.Errorf("a page's request: got status %s, want 403", status)
	}
}
