package systest

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	allPlatforms "github.com/cohort-tee/cohort/attest/platforms"
	"github.com/cohort-tee/cohort/internal/collateral"
	"github.com/cohort-tee/cohort/internal/loopback"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// TestHardwareByTheBinaries: the released binaries run on machines with the devices of the
// four platforms and synthetic vendors. An authority that seals its root with SNP or SGX
// issues to units on all four platforms. It refuses a forged history, and unseals its root
// after a restart; a different program on the same chip cannot unseal it. TDX and Nitro run
// units, and report that they cannot seal a root.
func TestHardwareByTheBinaries(t *testing.T) {
	bin := Build(t, "./cmd/cohort", "./examples/scoring")
	for _, first := range []attest.Platform{attest.SNP, attest.SGX} {
		t.Run(string(first), func(t *testing.T) {
			b := settleBinaries(t, bin, newVendors(t), first)
			stop := b.run(b.authority, b.authorityArgs("--genesis-policy", "genesis.toml", "--signature", "genesis.sig"), b.URL()+"/readyz")
			for _, p := range hardware {
				b.serveUnit(t, p)
			}
			if metrics := b.fetch("http://" + b.metrics + "/metrics"); !strings.Contains(metrics, `cohort_authority_collateral_age_seconds{role="pck_crl"}`) {
				t.Error("no age of the collateral among the metrics")
			}
			b.backUp()
			stop()
			b.stealRoot(b.authority)
			b.bringBack(b.vendors.newMachine(t, first, "authority"))
			b.mu.Lock()
			b.down = true // the vendors: their documents are in the store
			b.mu.Unlock()
			stop = b.run(b.authority, b.authorityArgs(), b.URL()+"/readyz")
			b.serveUnit(t, first)
			stop()
			out := b.refused(b.vendors.newMachine(t, first, "another program"), b.authorityArgs()...)
			if !strings.Contains(out, "[signature]") {
				t.Errorf("another program on the same chip: got %q, want signature", out)
			}
		})
	}
	t.Run("evidence", func(t *testing.T) { judgeByTheBinary(t, filepath.Join(bin, "cohort")) })
	for _, p := range []attest.Platform{attest.TDX, attest.Nitro} {
		b := &binaries{estate: &estate{Cluster: &Cluster{t: t}, vendors: newVendors(t)}, cohort: filepath.Join(bin, "cohort"), dir: t.TempDir()}
		b.platform = p
		_, own := b.vendors.device(p, "authority")
		b.owner = testworld.NewKey()
		b.write("genesis.toml", []byte(b.policy(own, p)))
		out := b.refused(b.vendors.newMachine(t, p, "authority"), b.initArgs("--draft", "genesis.toml")...)
		if !strings.Contains(out, "[not-this-device]") || !strings.Contains(out, "keeps no secret") {
			t.Errorf("%s: got %q, want not-this-device", p, out)
		}
	}
}

// binaries is an estate of processes.
type binaries struct {
	*estate
	cohort, dir string
	metrics     string // host:port of the authority's metrics
	platform    attest.Platform
	authority   *teeMachine
}

// settleBinaries creates an authority with the released binary, with the commands of its
// operator and an owner.
func settleBinaries(t *testing.T, bin string, v *vendors, first attest.Platform) *binaries {
	t.Helper()
	c := &Cluster{t: t, owner: testworld.NewKey(), Log: slog.New(slog.DiscardHandler), addr: loopback.FreeAddress(t)}
	b := &binaries{&estate{Cluster: c, vendors: v}, filepath.Join(bin, "cohort"), t.TempDir(), loopback.FreeAddress(t), first, v.newMachine(t, first, "authority")}
	_, own := v.device(first, "authority")
	rest := slices.DeleteFunc(slices.Clone(hardware), func(p attest.Platform) bool { return p == first })
	b.write("genesis.toml", []byte(b.policy(own, append([]attest.Platform{first}, rest...)...)))
	b.found(b.authority)
	return b
}

// found creates a root for the draft genesis.toml on a machine, and signs the resulting
// genesis policy.
func (b *binaries) found(m commander) {
	b.t.Helper()
	b.writeKey("owner.key", b.owner.Private)
	b.write("init.json", b.said(m.command(b.cohort, b.initArgs("--draft", "genesis.toml")...)))
	b.said(b.signing())
	b.founded()
}

// initArgs returns the arguments of `authority init` on the estate's platform.
func (b *binaries) initArgs(more ...string) []string {
	return append(append([]string{"authority", "init", "--platform", string(b.platform)}, b.fromVendors()...), more...)
}

func (b *binaries) fromVendors() []string {
	return []string{"--collateral-amd", b.service, "--collateral-intel", b.service, "--collateral-intel-root", b.service, "--collateral-nvidia", b.service}
}

// signing returns the owner's `policy sign` command for the first policy.
func (b *binaries) signing(more ...string) *exec.Cmd {
	args := append([]string{"policy", "sign", "genesis.toml", "--ssh-key", "owner.key", "--init", "init.json", "--out", "genesis.sig"}, b.fromVendors()...)
	cmd := exec.CommandContext(b.t.Context(), b.cohort, append(args, more...)...)
	cmd.Env = append(os.Environ(), "XDG_STATE_HOME="+filepath.Join(b.dir, "state"))
	return cmd
}

// founded reads the signed genesis policy and its root.
func (b *binaries) founded() {
	b.t.Helper()
	step := policy.Step{Policy: b.read("genesis.toml"), Signatures: []string{string(b.read("genesis.sig"))}}
	doc, err := policyfile.Parse(step.Policy)
	if err != nil {
		b.t.Fatal(err)
	}
	b.Root, b.Steps, b.Genesis = doc.Authority.Root, []policy.Step{step}, wire.Sum(step.Policy)
}

func (b *binaries) read(name string) []byte {
	b.t.Helper()
	content, err := os.ReadFile(filepath.Join(b.dir, name))
	if err != nil {
		b.t.Fatal(err)
	}
	return content
}

func (b *binaries) authorityArgs(more ...string) []string {
	return append(append([]string{"authority", "run", "--platform", string(b.platform), "--listen", b.addr, "--metrics", b.metrics}, b.fromVendors()...), more...)
}

// unitArgs returns the arguments that run the scoring service as a unit.
func (b *binaries) unitArgs(p attest.Platform, address, health string, more ...string) []string {
	args := append([]string{"unit", "--platform", string(p), "--task", "scoring", "--authority", b.URL(),
		"--genesis", b.Genesis.Hex(), "--listen", address, "--health", health}, more...)
	return append(args, "--", filepath.Join(filepath.Dir(b.cohort), "scoring"))
}

// serveUnit runs the scoring service as a unit, and sends it a request as a client that
// trusts the task.
func (b *binaries) serveUnit(t *testing.T, p attest.Platform, more ...string) {
	t.Helper()
	address, health := loopback.FreeAddress(t), loopback.FreeAddress(t)
	defer b.run(b.vendors.newMachine(t, p, "scoring 1"), b.unitArgs(p, address, health, more...), "http://"+health+"/readyz")()
	got, err := get(t, b.dial(address), "https://"+ServerName("scoring")+"/")
	if err != nil || !strings.Contains(got, `"service":"scoring"`) {
		t.Errorf("unit on %s: got %q, %v", p, got, err)
	}
}

// run runs cohort on a machine until stop is called, and waits until the given page
// responds.
func (b *binaries) run(m commander, args []string, page string) (stop func()) {
	b.t.Helper()
	cmd := m.command(b.cohort, args...)
	var log bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = b.dir, &log, &log
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for end := time.Now().Add(20 * time.Second); b.fetch(page) == ""; time.Sleep(20 * time.Millisecond) {
		select {
		case err := <-ended:
			b.t.Fatalf("cohort %s ended with %v:\n%s", args[0], err, log.String())
		default:
		}
		if time.Now().After(end) {
			cmd.Process.Kill()
			<-ended
			b.t.Fatalf("cohort %s is not up:\n%s", args[0], log.String())
		}
	}
	return func() {
		cmd.Process.Signal(os.Interrupt)
		if err := <-ended; err != nil {
			b.t.Errorf("cohort %s ended with %v:\n%s", args[0], err, log.String())
		}
	}
}

// fetch returns the content of a page, or "" on an error. It checks no certificate: the
// test only needs to know that the server is up.
func (b *binaries) fetch(page string) string {
	ctx, cancel := context.WithTimeout(b.t.Context(), time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "curl", "-ksSf", page).Output()
	if err != nil {
		return ""
	}
	return string(out)
}

// refused runs cohort on a machine where it must fail with a refusal, and returns its
// output.
func (b *binaries) refused(m *teeMachine, args ...string) string {
	b.t.Helper()
	cmd := m.command(b.cohort, args...)
	cmd.Dir = b.dir
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 1 {
		b.t.Errorf("cohort %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// judgeByTheBinary checks the output and exit code of `cohort evidence` for evidence of
// each platform, with the vendor's documents in one collection.
func judgeByTheBinary(t *testing.T, cohort string) {
	v := newVendors(t)
	e := &estate{Cluster: &Cluster{t: t, owner: testworld.NewKey()}, vendors: v, collateral: collateral.New(collateral.Config{
		Documents: allPlatforms.Supported().Documents, Clock: v.wall,
		Sources: map[string]string{"amd": v.service, "intel": v.service, "intel-root": v.service},
	})}
	file := filepath.Join(t.TempDir(), "policy.toml")
	text := filled(t, draftOf(t, e.policy(attesttest.MeasureSNP("authority"), hardware...)), attest.Digest{1})
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	now, data := v.wall().UTC(), attest.BindReportData(wire.LabelTrust, []byte("nonce"))
	use := hex.EncodeToString(data[:])
	for _, p := range hardware {
		good, bad := e.evidenceFile(t, p, "scoring 1", data), e.evidenceFile(t, p, "scoring 2", data)
		for _, row := range []struct {
			file string
			at   time.Time
			data string
			exit int
			says string
		}{
			{good, now, use, 0, "task scoring, release 1"},
			{good, now, strings.Repeat("01", 64), 1, "[nonce]"},
			{good, now.AddDate(1, 0, 0), use, 1, "[expired]"},
			{bad, now, use, 1, "[measurement]"},
		} {
			args := []string{row.file, "--policy", file, "--at", row.at.Format(time.RFC3339)}
			cmd := exec.CommandContext(t.Context(), cohort, append([]string{"evidence", "appraise", "--report-data", row.data}, args...)...)
			out, _ := cmd.CombinedOutput()
			if got := cmd.ProcessState.ExitCode(); got != row.exit || !strings.Contains(string(out), row.says) {
				t.Errorf("%s, want %s: exit %d\n%s", p, row.says, got, out)
			}
			inspect := exec.CommandContext(t.Context(), cohort, append([]string{"evidence", "inspect", "-o", "json"}, args...)...)
			out, err := inspect.Output()
			if row.at != now { // inspect shows only faults that the vendors' documents reveal
				if inspect.ProcessState.ExitCode() != 1 {
					t.Errorf("%s, want %s: inspect says %s", p, row.says, out)
				}
				continue
			}
			var view struct {
				Platform    attest.Platform
				Measurement map[string]string
				Checked     []attest.Fetched
				Verified    bool
			}
			if err == nil {
				err = json.Unmarshal(out, &view)
			}
			if err != nil || view.Platform != p || len(view.Measurement) != registers(p) || !view.Verified {
				t.Errorf("%s, want %s: inspect says %+v, %v", p, row.says, view, err)
			}
			if (len(view.Checked) == 0) != (p == attest.Nitro) {
				t.Errorf("%s: inspect says of the vendor's documents %v", p, view.Checked)
			}
		}
	}
}

// evidenceFile writes a program's evidence and the vendor's documents to a file.
func (e *estate) evidenceFile(t *testing.T, p attest.Platform, program string, data attest.ReportData) string {
	t.Helper()
	device, _ := e.vendors.device(p, program)
	evidence, err := device.Attest(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	endorsed, err := e.collateral.Endorse(t.Context(), evidence)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(evidence.WithEndorsements(endorsed))
	path := filepath.Join(t.TempDir(), "evidence.json")
	if err == nil {
		err = os.WriteFile(path, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// registers returns the number of a platform's registers.
func registers(name attest.Platform) int {
	p, _ := allPlatforms.Supported().Lookup(name)
	return len(p.Registers)
}
