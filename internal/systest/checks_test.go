package systest

import (
	"context"
	"crypto/tls"
	"encoding/asn1"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/unit"
)

// full reports whether COHORT_FULL asks for the long form of the tests.
func full() bool { return os.Getenv("COHORT_FULL") != "" }

// waits runs a test that mostly waits in parallel with others. The long form measures, so
// it runs alone.
func waits(t *testing.T) {
	t.Helper()
	if !full() {
		t.Parallel()
	}
}

// hello responds to every request with its name, and with the time of the response in a
// header.
func hello(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(servedAtHeader, strconv.FormatInt(time.Now().UnixNano(), 10))
		io.WriteString(w, name)
	})
}

func scoring(life time.Duration) Task {
	return Task{Name: "scoring", KeyMode: policyfile.Shared, Life: life, Programs: []string{"scoring 1"}}
}

// get sends a GET request to one replica over a task's client TLS, and returns the
// response's content.
func get(t *testing.T, rt http.RoundTripper, url string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// TestShortLife: certificates that live some seconds, under load. No request fails, and no
// response comes under an expired certificate. A renewal may take a quarter of the
// lifetime, so the lifetime is longer where the machine is shared.
func TestShortLife(t *testing.T) {
	waits(t)
	life := 12 * time.Second
	if full() {
		life = 5 * time.Second
	}
	c := New(t, scoring(life))
	var addresses []string
	for range 3 {
		addresses = append(addresses, c.Start("scoring", "scoring 1", hello("ok")).Address)
	}
	load := Load{Client: c.Client("scoring", addresses...), URL: "https://" + ServerName("scoring"), Post: "/", Body: "{}", Rate: 100, For: 12 * time.Second}
	switch {
	case full():
		load.Rate, load.For = 500, time.Minute
	case testing.Short(): // under the race detector, where a handshake takes ten times as long
		load.Rate = 10
	}
	out := load.Run(t.Context())
	t.Log(out)
	if len(out.Failed) > 0 || out.Stale > 0 {
		t.Errorf("%d failed (first: %v), %d on an expired certificate, want none", len(out.Failed), first(out.Failed), out.Stale)
	}
	if out.Sent < load.Rate*int(load.For.Seconds())/2 {
		t.Errorf("only %d requests went out", out.Sent)
	}
}

func first(errs []error) error {
	if len(errs) == 0 {
		return nil
	}
	return errs[0]
}

// TestAuthorityDown: an outage of a quarter of a certificate's lifetime has no effect. A
// longer outage ends readiness with the reason certificate-expired, and readiness returns
// within 10 seconds after the authority does.
func TestAuthorityDown(t *testing.T) {
	t.Parallel()
	life := 12 * time.Second
	if full() {
		life = time.Minute
	}
	c := New(t, scoring(life))
	r := c.Start("scoring", "scoring 1", hello("ok"))
	cl := c.Client("scoring", r.Address)

	c.StopAuthority()
	// Certificates end at whole seconds, and stopping takes a part of the outage.
	load := Load{Client: cl, URL: "https://" + ServerName("scoring"), Post: "/", Body: "{}", Rate: 100, For: life/4 - 1500*time.Millisecond}
	out := load.Run(t.Context())
	t.Log(out)
	if len(out.Failed) > 0 {
		t.Errorf("outage of L/4: %d failed, the first: %v", len(out.Failed), first(out.Failed))
	}
	wantProbe(t, r, http.StatusOK, "")
	testworld.Within(t, life+2*time.Second, "the end of the certificate", func() bool { return r.Unit.Ready() != nil })
	wantProbe(t, r, http.StatusServiceUnavailable, wire.CertExpired)
	if _, err := get(t, cl, "https://"+ServerName("scoring")); err == nil {
		t.Error("a unit past its certificate's end answered")
	}
	c.StartAuthority()
	begin := time.Now()
	testworld.Within(t, 10*time.Second, "readiness after the authority's return", func() bool { return r.Unit.Ready() == nil })
	t.Logf("ready %v after the authority's return", time.Since(begin))
}

// wantProbe requires the given status and reason at a unit's /readyz.
func wantProbe(t *testing.T, r *Replica, status int, reason wire.Reason) {
	t.Helper()
	rec := httptest.NewRecorder()
	r.Unit.Health().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/readyz", nil))
	if rec.Code != status || !strings.Contains(rec.Body.String(), string(reason)) {
		t.Errorf("/readyz: got %d %s, want %d with %q", rec.Code, rec.Body, status, reason)
	}
}

// TestChangedProgram: a program that the policy does not name is refused, with the measured
// and the wanted value in the error. The other units continue.
func TestChangedProgram(t *testing.T) {
	c := New(t, scoring(time.Hour))
	r := c.Start("scoring", "scoring 1", hello("ok"))
	_, err := unit.Start(t.Context(), c.UnitConfig("scoring", "scoring 1 and one byte"))
	testworld.Refused(t, err, wire.NotMeasured)
	for _, digest := range []string{"scoring 1", "scoring 1 and one byte"} {
		if err == nil || !strings.Contains(err.Error(), wire.Sum([]byte(digest)).String()) {
			t.Errorf("got %v, want both digests named", err)
		}
	}
	if got, err := get(t, c.Client("scoring", r.Address), "https://"+ServerName("scoring")); got != "ok" {
		t.Errorf("the good unit: got %q, %v", got, err)
	}
}

// TestRebuiltAuthority: another build of the authority is refused until the policy names
// it; it then has the same root. The old build is refused once the policy no longer names
// it.
func TestRebuiltAuthority(t *testing.T) {
	const next = "authority build 2"
	c := New(t, scoring(time.Hour))
	root := trust(t, c).AuthorityRoot().Raw
	c.StopAuthority()
	c.Rebuild(next)
	testworld.Refused(t, c.TryAuthority(), wire.NotMeasured)

	c.Rebuild(FirstBuild)
	c.StartAuthority()
	push(t, c, c.NextPolicy("reference = [ "+Reference(FirstBuild)+" ]", "reference = [ "+Reference(FirstBuild)+", "+Reference(next)+" ]"))
	c.StopAuthority()
	c.Rebuild(next)
	c.StartAuthority()
	if got := trust(t, c).AuthorityRoot().Raw; string(got) != string(root) {
		t.Error("the rebuilt authority has another root certificate")
	}
	push(t, c, c.NextPolicy("reference = [ "+Reference(FirstBuild)+", "+Reference(next)+" ]", "reference = [ "+Reference(next)+" ]"))
	c.StopAuthority()
	c.Rebuild(FirstBuild)
	testworld.Refused(t, c.TryAuthority(), wire.NotMeasured)
}

func trust(t *testing.T, c *Cluster) *client.Trust {
	t.Helper()
	tr, err := client.FetchTrust(t.Context(), c.TrustConfig("scoring"))
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// push proposes a signed policy, and waits until it is in force.
func push(t *testing.T, c *Cluster, step policy.Step) {
	t.Helper()
	a := authorityOf(t, c)
	if _, err := a.Propose(t.Context(), api.ProposeRequest{Policy: step.Policy, Signatures: step.Signatures}); err != nil {
		t.Fatalf("proposing: %v", err)
	}
	testworld.Within(t, 5*time.Second, "the proposal to be adopted", func() bool {
		p, err := a.Policy(t.Context())
		return err == nil && p.Digest == wire.Sum(step.Policy)
	})
}

// TestOtherRoot: the same program, genesis and policy files under a different root secret.
// The authority refuses to start with it. An authority that serves under it is refused by
// units and clients of the original cluster.
func TestOtherRoot(t *testing.T) {
	vendor := attesttest.NewVendor()
	mine, theirs := NewOnVendor(t, vendor, scoring(time.Hour)), NewOnVendor(t, vendor, scoring(time.Hour))

	config := mine.UnitConfig("scoring", "scoring 1")
	config.Authorities = []string{theirs.URL()}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	_, err := unit.Start(ctx, config)
	testworld.Refused(t, err, wire.WrongGenesis)
	pins := mine.TrustConfig("scoring")
	pins.Authorities = config.Authorities
	_, err = client.FetchTrust(t.Context(), pins)
	testworld.Refused(t, err, wire.WrongGenesis)

	theirs.Reinitialise(theirs.Steps[0].Policy)
	theirs.Steps = mine.Steps
	testworld.Refused(t, theirs.TryAuthority(), wire.WrongDraft)
	theirs.Reinitialise(mine.Steps[0].Policy)
	testworld.Refused(t, theirs.TryAuthority(), wire.WrongRoot)
}

// TestCalls: a unit calls a task that the policy allows, and gets a response. It refuses a
// server of another task, a server of the right code under another authority, and a task
// that the policy does not allow it to call.
func TestCalls(t *testing.T) {
	tasks := []Task{
		{Name: "a", KeyMode: policyfile.PerUnit, Life: time.Hour, Calls: []string{"b"}, Programs: []string{"program a"}},
		{Name: "b", KeyMode: policyfile.Shared, Life: time.Hour, Programs: []string{"program b"}},
		{Name: "c", KeyMode: policyfile.Shared, Life: time.Hour, Programs: []string{"program c"}},
	}
	vendor := attesttest.NewVendor()
	mine, theirs := NewOnVendor(t, vendor, tasks...), NewOnVendor(t, vendor, tasks...)
	a := mine.Start("a", "program a", hello("a"))
	tests := []struct {
		name, address string
		refused       wire.Reason
	}{
		{"task b", mine.Start("b", "program b", hello("b")).Address, ""},
		{"task c", mine.Start("c", "program c", hello("c")).Address, wire.WrongIdentity},
		{"b's code under another authority", theirs.Start("b", "program b", hello("b")).Address, wire.WrongGenesis},
	}
	config, err := a.Unit.ClientTLS("b")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rt := &http.Transport{TLSClientConfig: config}
			defer rt.CloseIdleConnections()
			got, err := get(t, rt, "https://"+tt.address)
			if tt.refused == "" {
				if got != "b" {
					t.Errorf("got %q, %v", got, err)
				}
				return
			}
			testworld.Refused(t, err, tt.refused)
		})
	}
	_, err = a.Unit.ClientTLS("c")
	testworld.Refused(t, err, wire.NotAllowed)
}

// TestHistoryCut: an authority whose database was restored to an older policy gets the
// newer history from a client that knows it. The authority adopts that history, and the
// client then trusts it.
func TestHistoryCut(t *testing.T) {
	c := New(t, scoring(time.Hour))
	old := c.copyStore()
	push(t, c, c.NextPolicy("lifetime = \"1h0m0s\"", "lifetime = \"59m0s\""))
	seen := trust(t, c).State()

	c.StopAuthority()
	c.restoreStore(old)
	c.StartAuthority()
	a := authorityOf(t, c)
	p, err := a.Policy(t.Context())
	if err != nil || p.Sequence != 1 {
		t.Fatalf("the restored authority: sequence %d, %v, want 1", p.Sequence, err)
	}
	pins := c.TrustConfig("scoring")
	pins.State = seen
	tr, err := client.FetchTrust(t.Context(), pins)
	if err != nil {
		t.Fatalf("trust after showing the newer history: %v", err)
	}
	if got := tr.Policy().Document().Sequence; got != 2 {
		t.Errorf("sequence after healing: got %d, want 2", got)
	}
}

// TestKeyModes: units of a task in key mode shared serve the same leaf; units of a task in
// key mode unit serve one leaf each, under one root.
func TestKeyModes(t *testing.T) {
	for _, mode := range []policyfile.KeyMode{policyfile.Shared, policyfile.PerUnit} {
		t.Run(string(mode), func(t *testing.T) {
			c := New(t, Task{Name: "scoring", KeyMode: mode, Life: time.Hour, Programs: []string{"scoring 1"}})
			leaves := map[string]bool{}
			for range 3 {
				r := c.Start("scoring", "scoring 1", hello("ok"))
				cl := c.Client("scoring", r.Address)
				req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+ServerName("scoring"), nil)
				resp, err := cl.RoundTrip(req)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				leaves[string(resp.TLS.PeerCertificates[0].Raw)] = true
			}
			want := map[policyfile.KeyMode]int{policyfile.Shared: 1, policyfile.PerUnit: 3}[mode]
			if len(leaves) != want {
				t.Errorf("got %d different leaves on three units, want %d", len(leaves), want)
			}
		})
	}
}

// TestDebugRefused: evidence of a TEE that its host can read is refused. Where the policy
// allows it by an explicit flag, every certificate carries a mark that says so.
func TestDebugRefused(t *testing.T) {
	c := New(t, scoring(time.Hour))
	config := c.UnitConfig("scoring", "scoring 1")
	config.Attester.(*attesttest.Device).Faults.Debug = true
	_, err := unit.Start(t.Context(), config)
	testworld.Refused(t, err, attest.Reason(wire.Debug))

	push(t, c, c.NextPolicy("[platform.soft]\n", "[platform.soft]\ndebug = true\n"))
	allowed, err := unit.Start(t.Context(), config)
	if err != nil {
		t.Fatalf("debug that policy allows: %v", err)
	}
	allowed.Close()
	r := c.Start("scoring", "scoring 1", hello("ok"))
	for name, address := range map[string]string{"unit": r.Address, "authority": c.addr} {
		if mark := markOf(t, address); mark != "development debug" {
			t.Errorf("%s: got mark %q in its certificate, want development debug", name, mark)
		}
	}
}

// markOf reads the marks of the unit at an address, from the certificate extension that
// docs/spec/identity.md defines.
func markOf(t *testing.T, address string) string {
	t.Helper()
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, x := range conn.ConnectionState().PeerCertificates[0].Extensions {
		if x.Id.String() == "1.2.840.113556.1.8000.2554.51898.5250.7156.19007.48674.10918900.16058849" {
			var framed []byte
			if _, err := asn1.Unmarshal(x.Value, &framed); err != nil {
				t.Fatal(err)
			}
			return string(testworld.Must(wire.Unframe(wire.LabelExtension, framed, -1))[5])
		}
	}
	t.Fatal("no extension of ours")
	return ""
}
