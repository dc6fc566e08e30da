package systest

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/soft"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Build compiles packages of this module with the release flags into a directory that ends
// with the test, and returns the directory.
func Build(t testing.TB, packages ...string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("SKIPPED: a race build of the test tells nothing about programs that are not built so; run without -short")
	}
	mod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		t.Fatalf("finding the module: %v", err)
	}
	dir := t.TempDir()
	cmd := exec.Command("go", append([]string{"build", "-trimpath", "-o", dir + "/"}, packages...)...)
	cmd.Dir = filepath.Dir(strings.TrimSpace(string(mod)))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building %v: %v\n%s", packages, err, out)
	}
	return dir
}

// Dev is a running `cohort dev`.
type Dev struct {
	Bin string // directory of the binaries
	Dir string

	t testing.TB
}

// DevInfo is the content of the file dev.json that `cohort dev` writes.
type DevInfo struct {
	Schema     string    `json:"schema"`
	Genesis    string    `json:"genesis"`
	Authority  string    `json:"authority"`
	Gateway    string    `json:"gateway"`
	Task       string    `json:"task"`
	ServerName string    `json:"server_name"`
	Root       string    `json:"root"`
	Units      []DevUnit `json:"units"`
}

// DevUnit is one unit of a dev cluster; Pid is the process with its TLS listener.
type DevUnit struct {
	Address string `json:"address"`
	Pid     int    `json:"pid"`
}

// StartDev builds the binaries and runs `cohort dev` with the arguments until the test
// ends. It returns once dev.json says that the cluster is up.
func StartDev(t testing.TB, args ...string) *Dev {
	t.Helper()
	d := &Dev{t: t, Bin: Build(t, "./cmd/cohort", "./examples/scoring"), Dir: t.TempDir()}
	cmd := exec.Command(filepath.Join(d.Bin, "cohort"), append([]string{"dev", "--dir", d.Dir, "--base-port", "0"}, args...)...)
	log, err := os.Create(filepath.Join(t.TempDir(), "dev.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceFunc(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil || t.Failed() {
			b, _ := os.ReadFile(log.Name())
			t.Logf("cohort dev ended with %v:\n%s", err, b)
		}
		log.Close()
	})
	t.Cleanup(stop)
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if _, err := d.readInfo(); err == nil {
			return d
		}
	}
	t.Fatal("cohort dev is not up after a minute")
	return nil
}

func (d *Dev) readInfo() (DevInfo, error) {
	var info DevInfo
	b, err := os.ReadFile(filepath.Join(d.Dir, "dev.json"))
	if err != nil {
		return info, err
	}
	return info, json.Unmarshal(b, &info)
}

// WaitInfo returns the current content of dev.json.
func (d *Dev) WaitInfo() DevInfo {
	d.t.Helper()
	info, err := d.readInfo()
	if err != nil {
		d.t.Fatalf("reading dev.json: %v", err)
	}
	return info
}

// URL returns the base URL of the task.
func (i DevInfo) URL() string { return "https://" + i.ServerName }

// Addresses returns the units' addresses.
func (i DevInfo) Addresses() []string {
	var list []string
	for _, u := range i.Units {
		list = append(list, u.Address)
	}
	return list
}

// Client returns a client of the cluster's task, closed with the test.
func (d *Dev) Client() *client.Client {
	d.t.Helper()
	info := d.WaitInfo()
	genesis, err := wire.ParseDigest(info.Genesis)
	if err != nil {
		d.t.Fatal(err)
	}
	trust, err := client.FetchTrust(d.t.Context(), client.TrustConfig{
		Authorities: []string{info.Authority}, Genesis: genesis, Task: info.Task,
		Verifier: attest.NewVerifier(soft.Platform().Appraiser()),
	})
	if err != nil {
		d.t.Fatal(err)
	}
	cl, err := client.New(client.Config{Trust: trust, Addresses: info.Addresses()})
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(cl.Close)
	return cl
}

// KillUnit kills a unit with SIGKILL.
func (d *Dev) KillUnit(i int) {
	d.t.Helper()
	u := d.WaitInfo().Units[i]
	if err := syscall.Kill(u.Pid, syscall.SIGKILL); err != nil {
		d.t.Errorf("killing unit %d (process %d): %v", i+1, u.Pid, err)
	}
}
