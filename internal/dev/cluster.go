package dev

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/cohort-tee/cohort/internal/manager/selfsigned"
)

const (
	Domain    = "dev.test"
	Units     = 3 // units of a task; a group has one unit for each role
	StartTime = 30 * time.Second
)

// Cluster is a development cluster: the soft daemon, an authority, a manager, and three units or
// a group's units, all children of this process.
type Cluster struct {
	App       *frame.App
	Dir       string // folder of dev.json
	State     string // folder of this build's state, in Dir
	Bin       Binaries
	bus       string // address where units connect to the manager
	reference localtee.Measurement
	TEE       *Daemon
	children  sync.WaitGroup
	Cancel    context.CancelFunc
	members   []*child // units of a group, by role
	checking  bool     // the last party of a group approves in the first check, not at the start

	mu  sync.Mutex // guards Doc
	Doc Description
}

// New makes a cluster that is not started. It chooses names, addresses and the folder of this
// build's state.
func New(a *frame.App, f Flags, dir string, b Binaries) (*Cluster, error) {
	key, err := b.stateName(f.Task, f.KeyMode)
	if err != nil {
		return nil, err
	}
	d := &Cluster{App: a, Dir: dir, State: filepath.Join(dir, "cluster-"+key), Bin: b, checking: f.Checking}
	if d.reference, err = localtee.Measure(b.Cohort, b.Program); err != nil {
		return nil, err
	}
	a.NoteUnmeasured(d.reference)
	if others, _ := filepath.Glob(filepath.Join(dir, "cluster-*")); len(others) > 0 && !slices.Contains(others, d.State) {
		a.Notef("%s holds the state of another build; starting a fresh cluster beside it", dir)
	}
	units := Units
	if b.Example.Grouped() {
		units = len(b.Example.Roles)
	}
	list, err := Addresses(f.BasePort, 5+2*units) // authority, gateway, units, health pages, page, bus, the manager's status
	if err != nil {
		return nil, err
	}
	d.bus = list[len(list)-2]
	d.Doc = Description{
		Schema: devSchema, Authority: "https://" + list[0], Gateway: "http://" + list[1], KeyMode: f.KeyMode, Agent: b.Cohort, Program: b.Program, Stream: b.Example.Stream,
		service: service{Task: f.Task, ServerName: f.Task + "." + Domain, Root: filepath.Join(dir, f.Task+"-root.pem")},
	}
	d.Doc.Manager.Status = "http://" + list[len(list)-1] + "/"
	if b.Page != "" {
		d.Doc.Page = "http://" + list[2+2*units] + "/"
	}
	if len(b.Members) > 0 {
		name := b.Example.Name
		d.Doc.Group = name
		d.Doc.ServerName, d.Doc.Root = name+"."+Domain, filepath.Join(dir, name+"-root.pem")
	}
	for i := range units {
		d.Doc.Units = append(d.Doc.Units, Unit{Address: list[2+i], Health: "http://" + list[2+units+i]})
	}
	return d, nil
}

// Describe returns the current content of dev.json.
func (d *Cluster) Describe() Description {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.Doc
	c.Units = slices.Clone(c.Units)
	c.Tasks = []service{c.service}
	if c.Group != "" {
		c.Tasks = d.roles(c)
	}
	return c
}

// Start starts all processes in the order of their dependencies, and writes dev.json.
func (d *Cluster) Start(ctx context.Context) error {
	ctx, d.Cancel = context.WithCancel(ctx)
	if err := errors.Join(d.removeDescription(), d.PrepareState()); err != nil {
		return err
	}
	steps := []struct {
		saying string
		do     func(context.Context) error
	}{
		{"starting the development TEE", d.startTEE},
		{"making the authority's root", d.InitAuthority},
		{"signing the genesis policy", d.SignGenesis},
		{"starting the authority", d.StartAuthority},
		{"starting the manager", d.startManager},
		{fmt.Sprintf("starting %d units of %s", len(d.Doc.Units), cmp.Or(d.Doc.Group, d.Doc.Task)), d.startUnits},
		{"starting the page", d.startPage},
	}
	if d.Doc.Page == "" {
		steps = steps[:len(steps)-1]
	}
	for _, s := range steps {
		d.App.Notef("%s", s.saying)
		if err := s.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.saying, err)
		}
	}
	return writeCluster(d.Dir, d.Describe())
}

// Files of a cluster's state.
func (d *Cluster) GenesisFile() string { return filepath.Join(d.State, "genesis.toml") }

func (d *Cluster) StoreFile() string { return filepath.Join(d.State, "authority.db") }

func (d *Cluster) authorityRoot() string { return filepath.Join(d.State, "authority-root.pem") }

// PrepareState keeps a state that has a genesis policy, and otherwise replaces it with an empty
// one.
func (d *Cluster) PrepareState() error {
	if _, err := os.Stat(d.GenesisFile()); err == nil {
		return nil
	}
	if err := os.RemoveAll(d.State); err != nil {
		return err
	}
	return os.MkdirAll(d.State, 0o700)
}

func (d *Cluster) startTEE(ctx context.Context) error {
	var err error
	d.TEE, err = StartDaemon(ctx, d.Bin.Cohort, d.State)
	if err == nil {
		d.Doc.TEE = d.TEE.Socket
	}
	return err
}

// StartAuthority starts the authority, and writes its root files once a client has verified it.
func (d *Cluster) StartAuthority(ctx context.Context) error {
	args := []string{"authority", "run", "--store", "sqlite:" + d.StoreFile(), "--listen", strings.TrimPrefix(d.Doc.Authority, "https://"), "--genesis-policy", d.GenesisFile(),
		"--polls-per-address", "256"} // all clients are on this machine
	sigs, err := filepath.Glob(d.GenesisFile() + ".*.sig")
	if err != nil {
		return err
	}
	for _, path := range sigs {
		args = append(args, "--signature", path)
	}
	c := d.NewChild("authority", d.Measured(localtee.Launch{Program: []string{d.Bin.Cohort}}, args))
	d.supervise(ctx, c)
	return c.Await(ctx, func(ctx context.Context) error {
		t, err := authorityclient.Trust(ctx, d.App, d.ClientPins())
		if err != nil {
			return err
		}
		return errors.Join(frame.ReplaceFile(d.Doc.Root, t.RootPEM()), frame.ReplaceFile(d.authorityRoot(), frame.CertificatePEM(t.AuthorityRoot())))
	})
}

// startManager starts the manager with its gateway. The manager is untrusted, so it runs outside
// the TEE.
func (d *Cluster) startManager(ctx context.Context) error {
	d.Doc.Manager.Data, d.Doc.Manager.Bus = filepath.Join(d.State, "manager"), d.bus
	c := d.NewChild("manager", d.plain(d.Bin.Cohort, "manager", "--listen", strings.TrimPrefix(d.Doc.Gateway, "http://"),
		"--bus", d.bus, "--authority", d.Doc.Authority, "--authority-root", d.authorityRoot(), "--data", d.Doc.Manager.Data,
		"--metrics", strings.Trim(strings.TrimPrefix(d.Doc.Manager.Status, "http:"), "/")))
	c.started = func(pid int) { d.UpdateDescription(func(c *Description) { c.Manager.PID = pid }) }
	d.supervise(ctx, c)
	return c.Await(ctx, func(ctx context.Context) error {
		_, err := authorityclient.Gateway{URL: d.Doc.Gateway}.Ready(ctx)
		return err
	})
}

// startPage starts the page of the example. It is as untrusted as any web server: its user trusts
// the script that it serves.
func (d *Cluster) startPage(ctx context.Context) error {
	address := strings.Trim(strings.TrimPrefix(d.Doc.Page, "http://"), "/")
	c := d.NewChild("page", d.plain(d.Bin.Page, "--listen", address, "--gateway", d.Doc.Gateway, "--genesis", d.Doc.Genesis, "--task", d.Doc.Task))
	d.supervise(ctx, c)
	return c.Await(ctx, func(ctx context.Context) error {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// ClientPins returns the pins of this cluster for a client.
func (d *Cluster) ClientPins() authorityclient.Pins {
	return authorityclient.Pins{Authorities: []string{d.Doc.Authority}, Genesis: d.Doc.Genesis, Task: d.Doc.Task, State: filepath.Join(d.State, "seen.json")}
}

// unitArgs returns the command line of a unit.
func (d *Cluster) unitArgs(u Unit, as ...string) []string {
	return append(append([]string{"unit"}, as...), "--authority", d.Doc.Authority, "--genesis", d.Doc.Genesis,
		"--manager", "tls://"+d.bus, "--manager-ca", selfsigned.CAFile(d.Doc.Manager.Data),
		"--listen", u.Address, "--health", strings.TrimPrefix(u.Health, "http://"))
}

func (d *Cluster) startUnits(ctx context.Context) error {
	if d.Doc.Group != "" {
		return d.startMembers(ctx)
	}
	units := make([]*child, Units)
	for i, u := range d.Doc.Units {
		c := d.NewChild(fmt.Sprintf("unit-%d", i+1), d.unitRunner(d.unitArgs(u, "--task", d.Doc.Task)))
		c.started = func(pid int) { d.UpdateDescription(func(c *Description) { c.Units[i].PID = pid }) }
		units[i] = c
		d.supervise(ctx, c)
	}
	for i, c := range units {
		now := d.Describe()
		err := c.Await(ctx, func(ctx context.Context) error {
			config, err := now.ClientTLS()
			if err == nil {
				_, err = Handshake(ctx, d.Doc.Units[i].Address, config)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// unitRunner returns a runner of the agent with the program of the current release.
func (d *Cluster) unitRunner(args []string) runner {
	return func(ctx context.Context, log *os.File, started func(int)) error {
		return d.Measured(localtee.Launch{Agent: d.Bin.Cohort, Program: d.Program()}, args)(ctx, log, started)
	}
}

// UpdateDescription changes the description, and dev.json if it exists.
func (d *Cluster) UpdateDescription(change func(*Description)) {
	d.mu.Lock()
	change(&d.Doc)
	d.mu.Unlock()
	if _, err := os.Stat(filepath.Join(d.Dir, File)); err != nil {
		return
	}
	if err := writeCluster(d.Dir, d.Describe()); err != nil {
		d.App.Log.Error("writing dev.json", "error", err)
	}
}

// Stop ends all processes and waits for their end. It removes dev.json, whose content is no
// longer valid.
func (d *Cluster) Stop() error {
	if d.Cancel != nil {
		d.Cancel()
	}
	d.children.Wait()
	err := d.removeDescription()
	if d.TEE != nil && d.TEE.cmd != nil {
		err = errors.Join(err, d.TEE.Stop())
	}
	return err
}

// removeDescription removes dev.json if it exists.
func (d *Cluster) removeDescription() error {
	if err := os.Remove(filepath.Join(d.Dir, File)); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// LogTail returns the last lines of a log file, for an error.
func LogTail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-6):], []byte("\n")))
}

// handshakeTime limits one TLS handshake.
const handshakeTime = 10 * time.Second

// Handshake makes a TLS connection, closes it and returns its state.
func Handshake(ctx context.Context, address string, config *tls.Config) (tls.ConnectionState, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", address)
	if err != nil {
		return tls.ConnectionState{}, fmt.Errorf("unit %s: %w", address, err)
	}
	return conn.(*tls.Conn).ConnectionState(), conn.Close()
}

// Program returns the program and arguments that units run from their next start on.
func (d *Cluster) Program() []string { return d.Describe().Program }
