package systest

import (
	"context"
	"crypto/ed25519"
	"encoding/pem"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/unit"
	"golang.org/x/crypto/ssh"
)

// TestCallsThroughAManInTheMiddle is case 25 for both SDKs. An attacker with a root of her
// own and the genuine policy history sits between client, authority and unit.
func TestCallsThroughAManInTheMiddle(t *testing.T) {
	c := New(t, scoring(time.Hour))
	r := c.Start("scoring", "scoring 1", hello("ok"))
	good := trust(t, c)
	m := newMallory(t, c)
	authority := newRelay(t, "127.0.0.1:0", m.authority(), c.addr)
	service := newRelay(t, "127.0.0.1:0", m.shared(t, "scoring", "scoring 1"), r.Address)
	// The genuine root is public. In place of her own root it proves the head of the
	// history that she forwards, but does not authenticate her.
	borrowed := m.authority()
	borrowed.Certificate[1] = good.AuthorityRoot().Raw
	borrower := newRelay(t, "127.0.0.1:0", borrowed, c.addr)

	fetch := func(pin func(*client.TrustConfig)) func(context.Context) error {
		return func(ctx context.Context) error {
			config := c.TrustConfig("scoring")
			config.Authorities = []string{authority.url()}
			pin(&config)
			_, err := client.FetchTrust(ctx, config)
			return err
		}
	}
	cl := testworld.Must(client.New(client.Config{Trust: good, Addresses: []string{service.address}}))
	defer cl.Close()
	send := func(method, mark string) func(context.Context) error {
		return func(ctx context.Context) error {
			request, err := http.NewRequestWithContext(ctx, method, "https://"+ServerName("scoring"), strings.NewReader("secret"))
			if err != nil {
				return err
			}
			if mark != "" {
				request.Header.Set("Idempotency-Key", mark)
			}
			_, err = cl.RoundTrip(request)
			return err
		}
	}
	calls := []struct {
		name string
		call func(context.Context) error
		want wire.Reason
	}{
		{"unit.Start", func(ctx context.Context) error {
			config := c.UnitConfig("scoring", "scoring 1")
			config.Authorities = []string{authority.url()}
			_, err := unit.Start(ctx, config)
			return err
		}, wire.WrongRoot},
		{"FetchTrust by task", fetch(func(*client.TrustConfig) {}), wire.WrongRoot},
		{"FetchTrust by identity", fetch(func(p *client.TrustConfig) { p.Task, p.ID = "", good.Identities()[0].ID }), wire.WrongRoot},
		{"FetchTrust by measurement", fetch(func(p *client.TrustConfig) {
			p.Task, p.Measurements = "", []attest.Measurement{attesttest.Measure("scoring 1")}
		}), wire.WrongRoot},
		{"FetchTrust with state", fetch(func(p *client.TrustConfig) { p.State = good.State() }), wire.WrongRoot},
		{"FetchTrust under the genuine root", fetch(func(p *client.TrustConfig) { p.Authorities = []string{borrower.url()} }), wire.BadChain},
		{"FetchTrust of her genesis", fetch(func(p *client.TrustConfig) { p.Genesis = m.approved.Genesis() }), wire.WrongGenesis},
		{"Verify", func(ctx context.Context) error {
			_, err := client.Verify(ctx, service.address, client.Config{Trust: good})
			return err
		}, wire.WrongGenesis},
		{"RoundTrip, safe", send(http.MethodGet, ""), wire.WrongGenesis},
		{"RoundTrip, marked", send(http.MethodPost, "1"), wire.WrongGenesis},
		{"RoundTrip, neither", send(http.MethodPost, ""), wire.WrongGenesis},
	}
	for _, call := range calls {
		t.Run(call.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			testworld.Refused(t, call.call(ctx), call.want)
		})
	}
	for _, relay := range []*relay{authority, borrower} {
		if saw := relay.saw("GET " + api.PathHistory); len(saw) > 0 {
			t.Errorf("before the authority she was sent %q, want nothing but questions for the history", saw)
		}
		if len(relay.saw()) == 0 {
			t.Error("nobody came to her, so nothing was tested")
		}
	}
	if saw := service.saw(); len(saw) > 0 {
		t.Errorf("before the unit she was sent %q, want nothing", saw)
	}
}

// TestCommandsThroughAManInTheMiddle is case 25 for the command line. The files and
// variables from which other programs take trusted roots name her root, which changes
// nothing.
func TestCommandsThroughAManInTheMiddle(t *testing.T) {
	c := New(t, scoring(time.Hour))
	r := c.Start("scoring", "scoring 1", hello("ok"))
	m := newMallory(t, c)
	authority := newRelay(t, "127.0.0.1:0", m.authority(), c.addr)
	service := newRelay(t, "127.0.0.1:0", m.shared(t, "scoring", "scoring 1"), r.Address)
	s := shell{bin: filepath.Join(Build(t, "./cmd/cohort"), "cohort"), dir: t.TempDir()}
	testworld.Must(0, os.WriteFile(filepath.Join(s.dir, "hers.pem"), m.pem(), 0o600))
	next := c.NextPolicy("lifetime = \"1h0m0s\"", "lifetime = \"59m0s\"")
	testworld.Must(0, os.WriteFile(filepath.Join(s.dir, "next.toml"), next.Policy, 0o600))
	testworld.Must(0, os.WriteFile(filepath.Join(s.dir, "next.sig"), []byte(next.Signatures[0]), 0o600))
	block := testworld.Must(ssh.MarshalPrivateKey(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), ""))
	testworld.Must(0, os.WriteFile(filepath.Join(s.dir, "key"), pem.EncodeToMemory(block), 0o600))

	pins := []string{"--genesis", c.Genesis.Hex()}
	digest, task := wire.Sum(next.Policy).Hex(), []string{"--task", "scoring"}
	url := "https://" + ServerName("scoring")
	for _, command := range []struct {
		line string
		more []string
		code string
	}{
		{"trust --out out.pem", task, "authority-root"},
		{"verify " + r.Address, task, "authority-root"},
		{"request -d secret " + url + " --address " + r.Address, task, "authority-root"},
		{"status", nil, "authority-root"},
		{"log", nil, "authority-root"},
		{"policy status", nil, "authority-root"},
		{"policy show", nil, "authority-root"},
		{"policy show " + digest, nil, "authority-root"},
		{"policy propose next.toml --signature next.sig", nil, "authority-root"},
		{"policy approve " + digest + " --signature next.sig", nil, "authority-root"},
		{"policy cancel " + digest + " --ssh-key key", nil, "authority-root"},
		{"doctor", nil, "check-failed"},
	} {
		t.Run(command.line, func(t *testing.T) {
			args := append(strings.Fields(command.line), append(pins, command.more...)...)
			exit, told := s.run(t, append(args, "--authority", authority.url())...)
			if exit != 1 || !strings.Contains(told, "["+command.code+"]") {
				t.Errorf("got exit %d and %s, want 1 and [%s]", exit, told, command.code)
			}
		})
	}
	for _, line := range []string{"verify " + service.address, "request -d secret " + url + " --address " + service.address} {
		args := append(strings.Fields(line), append(pins, task...)...)
		if exit, told := s.run(t, append(args, "--authority", c.URL())...); exit != 1 || !strings.Contains(told, "[genesis]") {
			t.Errorf("%s: got exit %d and %s, want 1 and [genesis]", line, exit, told)
		}
		if exit, told := s.run(t, append(strings.Fields(strings.ReplaceAll(line, service.address, r.Address)), append(append(pins, task...), "--authority", c.URL())...)...); exit != 0 {
			t.Errorf("%s, without her: got exit %d and %s", line, exit, told)
		}
	}
	if saw := authority.saw("GET " + api.PathHistory); len(saw) > 0 {
		t.Errorf("before the authority she was sent %q, want nothing but questions for the history", saw)
	}
	if saw := service.saw(); len(saw) > 0 {
		t.Errorf("before the unit she was sent %q, want nothing", saw)
	}
	if _, err := os.Stat(filepath.Join(s.dir, "out.pem")); err == nil {
		t.Error("roots were written that nobody proved")
	}
}

// shell runs the cohort binary in a folder, in an environment that would make other
// programs trust hers.pem.
type shell struct{ bin, dir string }

func (s shell) run(t *testing.T, args ...string) (exit int, told string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), s.bin, args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+filepath.Join(s.dir, "hers.pem"), "SSL_CERT_DIR="+s.dir,
		"COHORT_INSECURE=1", "COHORT_SKIP_VERIFY=1", "GODEBUG=x509sha1=1,tlsmaxrsasize=0", "XDG_STATE_HOME="+s.dir, "NO_PROXY=*")
	var talk strings.Builder
	cmd.Stderr = &talk
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatalf("running cohort: %v", err)
	}
	return cmd.ProcessState.ExitCode(), talk.String()
}
