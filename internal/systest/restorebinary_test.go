package systest

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/soft"
	"github.com/cohort-tee/cohort/attest/tpm"
	"github.com/cohort-tee/cohort/internal/loopback"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"golang.org/x/crypto/ssh"
)

// said runs a command in the estate's directory and returns its standard output.
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

// writeKey writes an SSH key.
func (b *binaries) writeKey(name string, key ed25519.PrivateKey) {
	b.t.Helper()
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		b.t.Fatal(err)
	}
	b.write(name, pem.EncodeToMemory(block))
}

// backUp runs the owner's `authority backup` with a running authority.
func (b *binaries) backUp() {
	b.t.Helper()
	b.said(exec.CommandContext(b.t.Context(), b.cohort, "authority", "backup", "--authority", b.URL(), "--genesis", b.Genesis.Hex(),
		"--ssh-key", "owner.key", "--out", "shares", "--state", "state.json"))
}

// bringBack restores the root on a machine from the owner's share, in two starts of the
// authority's program.
func (b *binaries) bringBack(m commander) {
	b.t.Helper()
	vendors := b.fromVendors()
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

// TestTPMByTheBinary: the released cohort beside a TPM creates a root, serves, backs the
// root up and restores it.
func TestTPMByTheBinary(t *testing.T) {
	v := newMachine(t)
	v.pass(-time.Minute) // cohort uses the system clock
	c := &Cluster{t: t, owner: testworld.NewKey(), Log: slog.New(slog.DiscardHandler), addr: loopback.FreeAddress(t)}
	b := &binaries{&estate{Cluster: c, vendors: v}, filepath.Join(Build(t, "./cmd/cohort"), "cohort"), t.TempDir(), loopback.FreeAddress(t), attest.TPM, nil}
	b.write("ca.pem", v.maker.CA(t))
	host := tpmHost{t, []string{"--tpm", v.tpm.Path, "--tpm-log", v.tpm.Log, "--tpm-ca", filepath.Join(b.dir, "ca.pem"), "--tpm-event-log", "none"}}
	b.write("genesis.toml", []byte(b.policy(asMeasured(t, v, b.cohort), attest.TPM)))
	b.foundChallenged(host)
	stop := b.run(host, b.authorityArgs("--genesis-policy", "genesis.toml", "--signature", "genesis.sig"), b.URL()+"/readyz")
	b.backUp()
	stop()
	b.stealRoot(host)
	b.bringBack(host)
	b.run(host, b.authorityArgs("--store", "sqlite:restored.db"), b.URL()+"/readyz")()
}

// foundChallenged is found for a TPM: the founder's first attempt writes a challenge, and
// only the response of that machine permits the signature.
func (b *binaries) foundChallenged(m commander) {
	b.t.Helper()
	b.writeKey("owner.key", b.owner.Private)
	draft := b.read("genesis.toml")
	b.write("init.json", b.said(m.command(b.cohort, b.initArgs("--draft", "genesis.toml")...)))
	b.mustRefuse(b.signing(), wire.EvidenceMissing)
	if !bytes.Equal(b.read("genesis.toml"), draft) {
		b.t.Error("the draft was filled in before the machine answered")
	}
	b.write("proof.json", b.said(m.command(b.cohort, "authority", "init", "--platform", string(b.platform), "--open", "genesis.toml.owner.key.challenge")))
	b.said(b.signing("--proof", "proof.json"))
	b.founded()
	another := b.signing("--proof", "proof.json")
	another.Env = append(os.Environ(), "XDG_STATE_HOME="+filepath.Join(b.dir, "another founder"))
	b.mustRefuse(another, wire.WrongChip)
}

// mustRefuse runs a command that must be refused with the given reason.
func (b *binaries) mustRefuse(cmd *exec.Cmd, want wire.Reason) string {
	b.t.Helper()
	cmd.Dir = b.dir
	out, _ := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), "["+string(want)+"]") {
		b.t.Errorf("cohort %v: exit %d, want 1 and [%s]:\n%s", cmd.Args[1:], cmd.ProcessState.ExitCode(), want, out)
	}
	return string(out)
}

// asMeasured returns the measurement of a program as the machine launches it.
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
	m, err := v.machine().BootMeasurement(tpm.Launch{Program: attest.Digest(own.Registers[1].Value), Arguments: tpm.Arguments(nil)})
	if err != nil {
		t.Fatal(err)
	}
	return m
}
