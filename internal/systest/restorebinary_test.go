package systest

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/soft"
	"github.com/cohort-tee/cohort/attest/tpm"
	"github.com/cohort-tee/cohort/internal/loopback"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"golang.org/x/crypto/ssh"
)

// said runs a command in the estate's directory and gives what it printed.
func (b *binaries) said(cmd *exec.Cmd) []byte {
	b.t.Helper()
	var log bytes.Buffer
	cmd.Dir, cmd.Stderr = b.dir, &log
	out, err := cmd.Output()
	if err != nil {
		b.t.Fatalf("cohort %v: %v\n%s", cmd.Args[1:], err, &log)
	}
	return out
}

func (b *binaries) write(name string, content []byte) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, name), content, 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// backUp is the owner's `authority backup`, of an authority that runs.
func (b *binaries) backUp() {
	b.t.Helper()
	block, err := ssh.MarshalPrivateKey(b.owner.(ownKey).key, "")
	if err != nil {
		b.t.Fatal(err)
	}
	b.write("owner.key", pem.EncodeToMemory(block))
	b.said(exec.CommandContext(b.t.Context(), b.cohort, "authority", "backup", "--authority", b.URL(), "--genesis", b.Genesis.Hex(),
		"--ssh-key", "owner.key", "--out", "shares", "--state", "state.json"))
}

// bringBack restores the root on a machine from the owner's share, in two starts
// of the authority's program.
func (b *binaries) bringBack(m commander) {
	b.t.Helper()
	vendors := []string{"--collateral-amd", b.service, "--collateral-intel", b.service, "--collateral-intel-root", b.service}
	about := append([]string{"--request", "request.json", "--history", "shares/history.json", "--genesis", b.Genesis.Hex()}, vendors...)
	tee := []string{"--platform", string(b.platform)}
	b.write("request.json", b.said(m.command(b.cohort, append([]string{"authority", "restore"}, tee...)...)))
	b.said(exec.CommandContext(b.t.Context(), b.cohort, append([]string{"authority", "unlock", "shares/ana.share", "--ssh-key", "owner.key"}, about...)...))
	out := b.said(m.command(b.cohort, append(append([]string{"authority", "restore", "shares/ana.share.unlocked", "--store", "sqlite:restored.db", "-o", "json"}, tee...), about...)...))
	var got struct{ Root wire.Digest }
	if err := json.Unmarshal(out, &got); err != nil || got.Root != b.Root {
		b.t.Errorf("restored on %s: got %s, %v, want root %v", b.platform, out, err, b.Root)
	}
}

// commander is a machine that runs cohort.
type commander interface {
	command(program string, args ...string) *exec.Cmd
}

// tpmHost is a machine with a software TPM.
type tpmHost struct {
	t     *testing.T
	flags []string
}

func (h tpmHost) command(program string, args ...string) *exec.Cmd {
	return exec.CommandContext(h.t.Context(), program, append(args, h.flags...)...)
}

// TestTPMByTheBinary: cohort as it is shipped, beside a TPM. Its root is made there,
// serves, is backed up, and is brought back.
func TestTPMByTheBinary(t *testing.T) {
	v := newMachine(t)
	v.pass(-time.Minute) // cohort reads the clock of this machine
	c := &Cluster{t: t, owner: newOwner(t), Log: slog.New(slog.DiscardHandler), addr: loopback.FreeAddress(t)}
	b := &binaries{&estate{Cluster: c, vendors: v}, filepath.Join(Build(t, "./cmd/cohort"), "cohort"), t.TempDir(), attest.TPM, nil}
	b.write("ca.pem", v.maker.CA(t))
	host := tpmHost{t, []string{"--tpm", v.tpm.Path, "--tpm-log", v.tpm.Log, "--tpm-ca", filepath.Join(b.dir, "ca.pem"), "--tpm-event-log", "none"}}
	var made struct{ Root wire.Digest }
	if err := json.Unmarshal(b.said(host.command(b.cohort, "authority", "init", "--platform", "tpm", "-o", "json")), &made); err != nil {
		t.Fatal(err)
	}
	step := c.Sign(b.policy(made.Root, asMeasured(t, v, b.cohort), attest.TPM))
	c.Root, c.Steps, c.Genesis = made.Root, []policy.Step{step}, wire.Sum(step.Policy)
	b.write("genesis.toml", step.Policy)
	b.write("genesis.sig", []byte(step.Signatures[0]))
	stop := b.run(host, b.authorityArgs("--genesis-policy", "genesis.toml", "--signature", "genesis.sig"), b.URL()+"/readyz")
	b.backUp()
	stop()
	b.bringBack(host)
	b.run(host, b.authorityArgs("--store", "sqlite:restored.db"), b.URL()+"/readyz")()
}

// asMeasured is a program on the machine as it runs.
func asMeasured(t *testing.T, v *vendors, path string) attest.Measurement {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	own, _, err := soft.Measure(file, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	m, err := v.machine().Boot(tpm.Launch{Program: attest.Digest(own.Registers[1].Value), Arguments: tpm.Arguments(nil)})
	if err != nil {
		t.Fatal(err)
	}
	return m
}
