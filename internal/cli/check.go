package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/internal/manager"
	"github.com/cohort-tee/cohort/policy"
)

// stepTime bounds one step of a story.
const stepTime = 10 * time.Second

// checker judges a cluster from outside, as any client sees it. All it knows is
// the cluster's description.
type checker struct {
	app     *app
	cluster cluster
	// live is the description now: processes change when they start again.
	live func() cluster
}

// checkerOf checks a cluster that this process runs.
func checkerOf(d *dev) checker { return checker{d.app, d.described(), d.described} }

// pid is the process of a unit now.
func (c checker) pid(u clusterUnit) int {
	for _, now := range c.live().Units {
		if now.Health == u.Health {
			return now.PID
		}
	}
	return u.PID
}

// story is one thing that must hold. Its detail is what was observed.
type story struct {
	name string
	run  func(checker, context.Context) (detail string, err error)
}

// stories are told in this order: the ones that disturb the cluster come last.
var stories = []story{
	{"identity/one-certificate", checker.oneCertificate},
	{"identity/tls13-only", checker.tls13Only},
	{"identity/no-tickets", checker.noTickets},
	{"identity/any-replica-with-one-root", checker.anyReplica},
	{"identity/wrong-root-refused", checker.wrongRootRefused},
	{"identity/verify", checker.verify},
	{"identity/changed-program-refused", checker.changedProgramRefused},
	{"identity/other-authority-refused", checker.otherAuthorityRefused},
	{"identity/rolled-back-store", checker.rolledBackStore},
	{"identity/root-steal", checker.rootSteal},
	{"identity/cut-unit", checker.cutUnit},
	{"identity/cut-chip", checker.cutChip},
	{"identity/cut-release", checker.cutRelease},
	{"identity/cut-platform", checker.cutPlatform},
	{"channel/receipt", checker.receipt},
	{"channel/altered-bytes-refused", checker.alteredBytes},
	{"channel/stream-cut-is-an-error", checker.streamCut},
	{"channel/one-off", checker.oneOff},
	{"channel/once-and-in-time", checker.onceInTime},
	{"channel/every-number", checker.everyNumber},
	{"channel/hostile-manager", checker.hostileManager},
	{"channel/one-session-any-unit", checker.oneSessionAnyUnit},
	{"channel/rogue-tenant", checker.rogueTenant},
	{"channel/manager-restart", checker.managerRestart},
	{"channel/manager-wiped", checker.managerWiped},
	{"identity/kill-and-restart", checker.killAndRestart},
}

// checkCluster judges a running cluster.
func (a *app) checkCluster(ctx context.Context, path string) error {
	c, err := readCluster(path)
	if err != nil {
		return err
	}
	if c.Group != "" {
		return usage("--cluster: the stories of a group need a fresh cluster: cohort dev --example %s --check", devJoint)
	}
	live := func() cluster {
		if now, err := readCluster(path); err == nil {
			return now
		}
		return c
	}
	return checker{a, c, live}.check(ctx)
}

// checkNew judges a cluster that was just started, and then replaces its program by so
// many releases.
func checkNew(ctx context.Context, d *dev, upgrades int) error {
	if d.cluster.Group != "" {
		return d.checkGroup(ctx)
	}
	return errors.Join(checkerOf(d).check(ctx), d.drill(ctx, upgrades))
}

// outcome is how one story went.
type outcome struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

// check tells every story of a task.
func (c checker) check(ctx context.Context) error { return c.tell(ctx, stories) }

// tell tells stories, one line each, and refuses unless all hold.
func (c checker) tell(ctx context.Context, stories []story) error {
	var all struct {
		Stories []outcome `json:"stories"`
	}
	failed := 0
	for _, s := range stories {
		o := outcome{Name: s.name, OK: true}
		var err error
		if o.Detail, err = s.run(c, ctx); err != nil {
			o.OK, o.Detail = false, oneLine(err.Error())
			failed++
		}
		all.Stories = append(all.Stories, o)
		if c.app.output == "text" {
			if err := c.app.emit("check", o, o.line()); err != nil {
				return err
			}
		}
	}
	if c.app.output == "json" {
		if err := c.app.emit("check", all, ""); err != nil {
			return err
		}
	}
	if failed > 0 {
		return &fault{code: codeCheckFailed, cause: fmt.Errorf("checking the cluster: %d of %d stories do not hold", failed, len(stories))}
	}
	return nil
}

func (o outcome) line() string {
	word := "ok"
	if !o.OK {
		word = "FAIL"
	}
	return fmt.Sprintf("%s %s %s\n", word, o.Name, o.Detail)
}

// plain is what a Go program knows that was given one root file and one name.
func (c checker) plain() (*tls.Config, error) { return c.cluster.clientTLS() }

// oneCertificate: in key mode shared all units serve the same leaf; in key mode
// unit each its own, under one root.
func (c checker) oneCertificate(ctx context.Context) (string, error) {
	config, err := c.plain()
	if err != nil {
		return "", err
	}
	leaves, roots := map[string]bool{}, map[string]bool{}
	for _, u := range c.cluster.Units {
		state, err := handshake(ctx, u.Address, config)
		if err != nil {
			return "", err
		}
		chain := state.VerifiedChains[0]
		leaves[string(chain[0].Raw)] = true
		roots[string(chain[len(chain)-1].Raw)] = true
	}
	units, want := len(c.cluster.Units), 1
	if c.cluster.KeyMode == string(policy.PerUnit) {
		want = units
	}
	if len(leaves) != want || len(roots) != 1 {
		return "", fmt.Errorf("got %d leaves and %d roots on %d units, want %d leaves and 1 root", len(leaves), len(roots), units, want)
	}
	return fmt.Sprintf("%d units, %d leaf certificate(s), 1 root, key mode %s", units, len(leaves), c.cluster.KeyMode), nil
}

// tls13Only: a client that speaks TLS 1.2 at most is turned away by an alert,
// whatever it would trust.
func (c checker) tls13Only(ctx context.Context) (string, error) {
	old := &tls.Config{InsecureSkipVerify: true, ServerName: c.cluster.ServerName, MaxVersion: tls.VersionTLS12}
	for _, u := range c.cluster.Units {
		state, err := handshake(ctx, u.Address, old)
		if err == nil {
			return "", fmt.Errorf("unit %s: got %s, want TLS 1.3 only", u.Address, tls.VersionName(state.Version))
		}
		if !isAlert(err) {
			return "", fmt.Errorf("trying TLS 1.2: %w, want a TLS alert", err)
		}
	}
	return "TLS 1.2 refused by an alert on each unit", nil
}

// ticketCount counts the session tickets a server gives.
type ticketCount struct{ given int }

func (t *ticketCount) Get(string) (*tls.ClientSessionState, bool) { return nil, false }
func (t *ticketCount) Put(_ string, s *tls.ClientSessionState) {
	if s != nil {
		t.given++
	}
}

// noTickets: a client that would keep session tickets is given none.
func (c checker) noTickets(ctx context.Context) (string, error) {
	for _, u := range c.cluster.Units {
		config, err := c.plain()
		if err != nil {
			return "", err
		}
		tickets := &ticketCount{}
		config.ClientSessionCache = tickets
		if _, err := get(ctx, u.Address, config); err != nil {
			return "", err
		}
		if tickets.given > 0 {
			return "", fmt.Errorf("unit %s: got %d session tickets, want none", u.Address, tickets.given)
		}
	}
	return "no session ticket from any unit", nil
}

// anyReplica: the root file and the name suffice to be answered by each unit.
func (c checker) anyReplica(ctx context.Context) (string, error) {
	config, err := c.plain()
	if err != nil {
		return "", err
	}
	statuses := make([]string, len(c.cluster.Units))
	for i, u := range c.cluster.Units {
		status, err := get(ctx, u.Address, config)
		if err != nil {
			return "", err
		}
		if status >= http.StatusInternalServerError {
			return "", fmt.Errorf("unit %s: got status %d, want an answer of the program", u.Address, status)
		}
		statuses[i] = fmt.Sprint(status)
	}
	return "GET / answered by each unit: " + strings.Join(statuses, " "), nil
}

// get asks one unit for "/" over a connection of its own and gives the status.
func get(ctx context.Context, address string, config *tls.Config) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	transport := &http.Transport{
		TLSClientConfig:   config,
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, address)
		},
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+config.ServerName+"/", nil)
	if err != nil {
		return 0, err
	}
	resp, err := (&http.Client{Transport: transport}).Do(r)
	if err != nil {
		return 0, fmt.Errorf("unit %s: %w", address, err)
	}
	return resp.StatusCode, resp.Body.Close()
}

// wrongRootRefused: a client that trusts another root, the manager's own,
// completes no handshake.
func (c checker) wrongRootRefused(ctx context.Context) (string, error) {
	other, err := readPool(manager.SelfSignedCA(c.cluster.Manager.Data))
	if err != nil {
		return "", err
	}
	config := &tls.Config{RootCAs: other, ServerName: c.cluster.ServerName, MinVersion: tls.VersionTLS13}
	for _, u := range c.cluster.Units {
		_, err := handshake(ctx, u.Address, config)
		var unknown x509.UnknownAuthorityError
		if err == nil || !errors.As(err, &unknown) {
			return "", fmt.Errorf("unit %s: got %v, want an unknown authority", u.Address, err)
		}
	}
	return "each unit refused under another root", nil
}
