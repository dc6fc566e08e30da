// Package systest runs whole clusters for tests: owners with SSH keys, a TEE vendor that
// [attesttest] plays, a real authority on a real store behind real TLS on loopback, units
// and clients, all in one process. It never replaces the verifier: the real one appraises
// all evidence.
//
// It is for tests only: no package of the product imports it.
package systest

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/authority"
	"github.com/cohort-tee/cohort/internal/authority/admission"
	"github.com/cohort-tee/cohort/internal/authority/sealed"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/authority/trustedclock"
	"github.com/cohort-tee/cohort/internal/loopback"
	"github.com/cohort-tee/cohort/internal/opsserver"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policydraft"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/policy/sshsig"
	"github.com/cohort-tee/cohort/unit"
)

// Domain is the trust domain of every cluster.
const Domain = "test.example"

// Task is a task of a cluster's genesis policy. It has one release for each
// program, named "1", "2" and so on.
type Task struct {
	Name     string
	KeyMode  policyfile.KeyMode
	Life     time.Duration
	Calls    []string
	Programs []string
}

// Cluster is one authority with its owners. [New] sets its fields.
type Cluster struct {
	Chip    *attesttest.Chip
	Genesis attest.Digest
	Root    attest.Digest // public key digest of the authority's root
	Steps   []policy.Step // history as signed by the owners
	Log     *slog.Logger
	Host    string // address that units listen on: 127.0.0.1

	t     testing.TB
	owner testworld.Key
	dsn   string
	addr  string // host:port of the authority, the same after a restart
	// metrics is the host:port of the authority's metrics; empty: they are not served
	metrics string
	build   string // program of the authority
	tee     tee    // of the authority; nil means the chip's

	stop    func()   // stops the running authority; nil when it is down
	reset   func()   // resets its connections, as the death of a process does
	manager *gateway // nil without a manager
}

// FirstBuild is the program of every cluster's first authority.
const FirstBuild = "authority build 1"

// New starts a cluster with the given tasks, which ends with the test.
func New(t testing.TB, tasks ...Task) *Cluster {
	t.Helper()
	return NewOnVendor(t, attesttest.NewVendor(), tasks...)
}

// NewOnVendor is New with TEEs of the given vendor.
func NewOnVendor(t testing.TB, vendor *attesttest.Vendor, tasks ...Task) *Cluster {
	t.Helper()
	c := &Cluster{t: t, Chip: vendor.Chip(), owner: testworld.NewKey(), build: FirstBuild, Log: slog.New(slog.DiscardHandler), Host: "127.0.0.1"}
	c.dsn = newDSN(t)
	draft := c.draft(vendor, tasks)
	c.Root = c.initialise(draft)
	text := filled(t, draft, c.Root)
	c.Steps = []policy.Step{c.SignPolicy(text)}
	c.Genesis = wire.Sum([]byte(text))
	c.addr = loopback.FreeAddress(t)
	c.StartAuthority()
	t.Cleanup(c.StopAuthority)
	return c
}

type tee interface {
	attest.Attester
	attest.Sealer
}

// device returns the TEE that the authority's program uses.
func (c *Cluster) device() tee {
	if c.tee != nil {
		return c.tee
	}
	return c.Chip.Attester(attesttest.Measure(c.build))
}

// initialise creates an authority root for a draft.
func (c *Cluster) initialise(draft policydraft.Draft) attest.Digest {
	c.t.Helper()
	s, err := store.Create(c.t.Context(), c.dsn)
	if err != nil {
		c.t.Fatal(err)
	}
	defer s.Close()
	result, err := sealed.CreateRoot(c.t.Context(), sealed.InitConfig{Store: s, Attester: c.device(), Sealer: c.device(), Draft: draft})
	if err != nil {
		c.t.Fatal(err)
	}
	return result.Root
}

// draftOf parses a first policy that has no root yet.
func draftOf(t testing.TB, text string) policydraft.Draft {
	t.Helper()
	d, err := policydraft.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// filled returns the draft as a genesis policy with the given root.
func filled(t testing.TB, draft policydraft.Draft, root attest.Digest) string {
	t.Helper()
	text, err := draft.WithRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// draft returns the first policy without a root.
func (c *Cluster) draft(vendor *attesttest.Vendor, tasks []Task) policydraft.Draft {
	var b strings.Builder
	fmt.Fprintf(&b, "schema = %q\ntrust_domain = %q\nsequence = 1\nprevious = \"\"\n", policyfile.Schema, Domain)
	fmt.Fprintf(&b, "created = %s\ndevelopment = true\n", time.Now().Add(-time.Minute).UTC().Format(time.RFC3339))
	fmt.Fprintf(&b, "[owners]\nquorum = 1\napprove_within = \"1h\"\ndelay = \"0s\"\nkeys = [ { name = \"ana\", ssh = %q } ]\n",
		c.owner.AuthorizedKey())
	fmt.Fprintf(&b, "[platform.soft]\nroots = [%q]\n", vendor.Root())
	fmt.Fprintf(&b, "[authority]\nroot = \"\"\nmachines = \"any\"\nreference = [ %s ]\n", Reference(c.build))
	for _, task := range tasks {
		fmt.Fprintf(&b, "[task.%s]\nkey_mode = %q\nlifetime = %q\nnames = [%q]\ncalls = [%s]\n",
			task.Name, task.KeyMode, task.Life, ServerName(task.Name), quoted(task.Calls))
		for i, program := range task.Programs {
			fmt.Fprintf(&b, "[task.%s.release.\"%d\"]\nreference = [ %s ]\n", task.Name, i+1, Reference(program))
		}
	}
	return draftOf(c.t, b.String())
}

// Reference returns the reference value, in policy syntax, of a program that exists only as
// a name.
func Reference(program string) string {
	return fmt.Sprintf("{ platform = \"soft\", program = %q }", wire.Sum([]byte(program)))
}

// ServerName returns the DNS name of a task.
func ServerName(task string) string { return task + "." + Domain }

func quoted(names []string) string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = fmt.Sprintf("%q", n)
	}
	return strings.Join(out, ", ")
}

// SignPolicy returns a policy text with the owner's signature.
func (c *Cluster) SignPolicy(text string) policy.Step {
	c.t.Helper()
	sig, err := sshsig.Sign(c.owner, sshsig.ForPolicy, []byte(text))
	if err != nil {
		c.t.Fatal(err)
	}
	return policy.Step{Policy: []byte(text), Signatures: []string{sig}}
}

// NextPolicy edits the newest policy into its successor and signs it; edits are pairs of
// old and new text. The result is appended to Steps, but not sent to the authority.
func (c *Cluster) NextPolicy(edits ...string) policy.Step {
	c.t.Helper()
	approved, err := policy.Replay(c.Genesis, c.Steps)
	if err != nil {
		c.t.Fatal(err)
	}
	doc := approved.Document()
	previous := ""
	if !doc.Previous.IsZero() {
		previous = doc.Previous.String()
	}
	edits = append(edits,
		fmt.Sprintf("sequence = %d\n", doc.Sequence), fmt.Sprintf("sequence = %d\n", doc.Sequence+1),
		fmt.Sprintf("previous = %q\n", previous), fmt.Sprintf("previous = %q\n", doc.Digest()))
	text := string(doc.Source())
	for i := 0; i < len(edits); i += 2 {
		if !strings.Contains(text, edits[i]) {
			c.t.Fatalf("the policy has no %q", edits[i])
		}
		text = strings.Replace(text, edits[i], edits[i+1], 1)
	}
	copied, err := policyfile.CopyAuthority([]byte(text))
	if err != nil {
		c.t.Fatal(err)
	}
	step := c.SignPolicy(string(copied))
	c.Steps = append(c.Steps, step)
	return step
}

// URL returns the authority's base URL.
func (c *Cluster) URL() string { return "https://" + c.addr }

// StartAuthority starts the authority on its store and address, and fails the test when the
// authority refuses to start.
func (c *Cluster) StartAuthority() {
	c.t.Helper()
	if err := c.TryAuthority(); err != nil {
		c.t.Fatalf("starting the authority: %v", err)
	}
}

// TryAuthority starts the authority, and returns the error when it refuses to start.
func (c *Cluster) TryAuthority() (err error) {
	c.stop, c.reset, err = c.serve(c.addr)
	return err
}

// StartReplica starts a second authority on the same store, until stop is called or the
// test ends.
func (c *Cluster) StartReplica() (url string, stop func()) {
	c.t.Helper()
	addr := loopback.FreeAddress(c.t)
	stop, _, err := c.serve(addr)
	if err != nil {
		c.t.Fatalf("starting another authority: %v", err)
	}
	c.t.Cleanup(stop)
	return "https://" + addr, stop
}

func (c *Cluster) serve(addr string) (stop, reset func(), err error) {
	s, err := store.Open(c.t.Context(), c.dsn)
	if err != nil {
		return nil, nil, err
	}
	a, err := authority.Open(c.t.Context(), authority.Config{
		Store: s, Attester: c.device(), Sealer: c.device(), Verifier: attesttest.Verifier(),
		Clock: trustedclock.System(), Log: c.Log, Genesis: &c.Steps[0],
		Limits: admission.Limits{PerAddress: 10_000, Total: 10_000, PollsPerAddress: 1_000},
	})
	if err != nil {
		s.Close()
		return nil, nil, err
	}
	inner, err := net.Listen("tcp", addr)
	if err != nil {
		s.Close()
		return nil, nil, err
	}
	l := &cutter{Listener: inner}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	var operator net.Listener
	if c.metrics != "" {
		operator = testworld.Must(net.Listen("tcp", c.metrics))
	}
	go func() {
		done <- opsserver.RunBeside(ctx, operator, a.OperatorHandler(), c.Log, func(ctx context.Context) error { return a.Serve(ctx, l) })
	}()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil && !l.isCut() {
			c.t.Errorf("authority ended: %v", err)
		}
		s.Close()
	}), l.cutAll, nil
}

// StopAuthority stops the authority if it is running.
func (c *Cluster) StopAuthority() {
	if c.stop != nil {
		c.stop()
		c.stop = nil
	}
}

// KillAuthority ends the authority without a shutdown, as nearly as one process can imitate
// a kill.
func (c *Cluster) KillAuthority() {
	c.reset()
	c.StopAuthority()
}

// Rebuild changes the authority's program, from its next start on.
func (c *Cluster) Rebuild(program string) { c.build = program }

// UnitConfig returns the configuration of a unit that runs a program.
func (c *Cluster) UnitConfig(task, program string) unit.Config {
	return unit.Config{
		Authorities: []string{c.URL()}, Genesis: c.Genesis, Task: task, Log: c.Log, Manager: c.managerConfig(),
		Attester: c.Chip.Attester(attesttest.Measure(program)),
	}
}

// Replica is a unit that serves.
type Replica struct {
	Unit    *unit.Unit
	Address string
	Stop    func() // stops it; the test's end does so too
	Kill    func() // ends it without a shutdown, as nearly as one process can imitate a kill
}

// Start starts a unit that runs a program and serves the handler.
func (c *Cluster) Start(task, program string, h http.Handler) *Replica {
	c.t.Helper()
	return c.StartWith(c.UnitConfig(task, program), h)
}

// StartWith is Start with a given configuration.
func (c *Cluster) StartWith(config unit.Config, h http.Handler) *Replica {
	c.t.Helper()
	return c.replica(config, c.listen(), h)
}

// replica is StartWith with a given listener.
func (c *Cluster) replica(config unit.Config, inner net.Listener, h http.Handler) *Replica {
	c.t.Helper()
	u, err := unit.Start(c.t.Context(), config)
	if err != nil {
		c.t.Fatalf("starting a unit of %s: %v", config.Task, err)
	}
	return c.serveUnit(u, inner, h)
}

// listen returns a listener for a unit.
func (c *Cluster) listen() net.Listener {
	c.t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(c.Host, "0"))
	if err != nil {
		c.t.Fatal(err)
	}
	return l
}

// serveUnit serves a unit until the test ends.
func (c *Cluster) serveUnit(u *unit.Unit, inner net.Listener, h http.Handler) *Replica {
	c.t.Helper()
	l := &cutter{Listener: inner}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- u.Serve(ctx, l, h) }()
	r := &Replica{Unit: u, Address: l.Addr().String()}
	r.Stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil && !l.isCut() {
			c.t.Errorf("unit ended: %v", err)
		}
		u.Close()
	})
	r.Kill = func() { l.cutAll(); r.Stop() }
	c.t.Cleanup(r.Stop)
	return r
}

// TrustConfig returns the pins of a client of a task.
func (c *Cluster) TrustConfig(task string) client.TrustConfig {
	return client.TrustConfig{
		Authorities: []string{c.URL()}, Genesis: c.Genesis, Task: task, Verifier: attesttest.Verifier(),
	}
}

// Client returns a client of a task's replicas, closed with the test.
func (c *Cluster) Client(task string, addresses ...string) *client.Client {
	c.t.Helper()
	trust, err := client.FetchTrust(c.t.Context(), c.TrustConfig(task))
	if err != nil {
		c.t.Fatalf("trusting %s: %v", task, err)
	}
	cl, err := client.New(client.Config{Trust: trust, Addresses: addresses})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(cl.Close)
	return cl
}
