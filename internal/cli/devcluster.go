package cli

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/manager"
)

const (
	devDomain = "dev.test"
	devUnits  = 3
	devPorts  = 3 + 2*devUnits // authority, gateway, units, health pages, bus
	startTime = 30 * time.Second
)

// dev is a development cluster: the soft daemon, an authority, a manager and
// three units, all children of this process.
type dev struct {
	app       *app
	dir       string // of dev.json
	state     string // of this build, below dir
	bin       binaries
	bus       string // address where units connect to the manager
	reference measurement
	tee       *daemon
	children  sync.WaitGroup
	cancel    context.CancelFunc
	members   []*child // units of a group, by role
	checking  bool     // the first story has the last party of a group approve

	mu      sync.Mutex // guards cluster
	cluster cluster
}

// newDev chooses names, addresses and the state of this build.
func (a *app) newDev(f devFlags, dir string, b binaries) (*dev, error) {
	key, err := b.key(f.task, f.keyMode)
	if err != nil {
		return nil, err
	}
	d := &dev{app: a, dir: dir, state: filepath.Join(dir, "cluster-"+key), bin: b, checking: f.checking}
	if d.reference, err = measure(b.cohort, b.program); err != nil {
		return nil, err
	}
	a.sayUnmeasured(d.reference)
	if others, _ := filepath.Glob(filepath.Join(dir, "cluster-*")); len(others) > 0 && !slices.Contains(others, d.state) {
		a.say("%s holds the state of another build; starting a fresh cluster beside it", dir)
	}
	list, err := addresses(f.basePort, devPorts)
	if err != nil {
		return nil, err
	}
	d.bus = list[devPorts-1]
	d.cluster = cluster{
		Schema: devSchema, Authority: "https://" + list[0], Gateway: "http://" + list[1], KeyMode: f.keyMode, Agent: b.cohort, Program: b.program,
		service: service{Task: f.task, ServerName: f.task + "." + devDomain, Root: filepath.Join(dir, f.task+"-root.pem")},
	}
	if len(b.members) > 0 {
		d.cluster.Group = devJoint
		d.cluster.ServerName, d.cluster.Root = devJoint+"."+devDomain, filepath.Join(dir, devJoint+"-root.pem")
	}
	for i := range devUnits {
		d.cluster.Units = append(d.cluster.Units, clusterUnit{Address: list[2+i], Health: "http://" + list[2+devUnits+i]})
	}
	return d, nil
}

// described is what dev.json says now.
func (d *dev) described() cluster {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.cluster
	c.Units = slices.Clone(c.Units)
	c.Tasks = []service{c.service}
	if c.Group != "" {
		c.Tasks = c.roles()
	}
	return c
}

// start brings everything up, in the order in which one needs the other.
func (d *dev) start(ctx context.Context) error {
	ctx, d.cancel = context.WithCancel(ctx)
	if err := errors.Join(d.removeDescription(), d.prepareState()); err != nil {
		return err
	}
	steps := []struct {
		saying string
		do     func(context.Context) error
	}{
		{"starting the development TEE", d.startTEE},
		{"making the authority's root", d.initAuthority},
		{"signing the genesis policy", d.signGenesis},
		{"starting the authority", d.startAuthority},
		{"starting the manager", d.startManager},
		{fmt.Sprintf("starting %d units of %s", devUnits, cmp.Or(d.cluster.Group, d.cluster.Task)), d.startUnits},
	}
	for _, s := range steps {
		d.app.say("%s", s.saying)
		if err := s.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.saying, err)
		}
	}
	return writeCluster(d.dir, d.described())
}

// Files of a cluster's state.
func (d *dev) genesisFile() string   { return filepath.Join(d.state, "genesis.toml") }
func (d *dev) storeFile() string     { return filepath.Join(d.state, "authority.db") }
func (d *dev) authorityRoot() string { return filepath.Join(d.state, "authority-root.pem") }

// prepareState keeps a state that was finished once, and begins anew otherwise.
func (d *dev) prepareState() error {
	if _, err := os.Stat(d.genesisFile()); err == nil {
		return nil
	}
	if err := os.RemoveAll(d.state); err != nil {
		return err
	}
	return os.MkdirAll(d.state, 0o700)
}

func (d *dev) startTEE(ctx context.Context) error {
	var err error
	d.tee, err = startDaemon(ctx, d.bin.cohort, d.state)
	if err == nil {
		d.cluster.TEE = d.tee.socket
	}
	return err
}

func (d *dev) startAuthority(ctx context.Context) error {
	args := []string{"authority", "run", "--store", "sqlite:" + d.storeFile(), "--listen", strings.TrimPrefix(d.cluster.Authority, "https://"), "--genesis-policy", d.genesisFile(),
		"--polls-per-address", "256"} // everyone is on this machine
	sigs, err := filepath.Glob(d.genesisFile() + ".*.sig")
	if err != nil {
		return err
	}
	for _, path := range sigs {
		args = append(args, "--signature", path)
	}
	c := d.newChild("authority", d.measured(launch{program: []string{d.bin.cohort}}, args))
	d.supervise(ctx, c)
	return c.await(ctx, func(ctx context.Context) error {
		t, err := d.app.trust(ctx, d.pins())
		if err != nil {
			return err
		}
		return errors.Join(replaceFile(d.cluster.Root, t.PEM()), replaceFile(d.authorityRoot(), certificatePEM(t.AuthorityRoot())))
	})
}

// startManager starts the manager with its gateway. It is trusted with nothing,
// and so runs outside the TEE.
func (d *dev) startManager(ctx context.Context) error {
	d.cluster.Manager.Data, d.cluster.Manager.Bus = filepath.Join(d.state, "manager"), d.bus
	c := d.newChild("manager", d.plain("manager", "--listen", strings.TrimPrefix(d.cluster.Gateway, "http://"),
		"--bus", d.bus, "--authority", d.cluster.Authority, "--authority-root", d.authorityRoot(), "--data", d.cluster.Manager.Data))
	c.started = func(pid int) { d.note(func(c *cluster) { c.Manager.PID = pid }) }
	d.supervise(ctx, c)
	return c.await(ctx, func(ctx context.Context) error {
		_, err := gatewayFlags{url: d.cluster.Gateway}.ready(ctx)
		return err
	})
}

// pins are what a client of this cluster is given.
func (d *dev) pins() pinFlags {
	return pinFlags{authorities: []string{d.cluster.Authority}, genesis: d.cluster.Genesis, task: d.cluster.Task, state: filepath.Join(d.state, "seen.json")}
}

// unitArgs is the command line of a unit.
func (d *dev) unitArgs(u clusterUnit, as ...string) []string {
	return append(append([]string{"unit"}, as...), "--authority", d.cluster.Authority, "--genesis", d.cluster.Genesis,
		"--manager", "tls://"+d.bus, "--manager-ca", manager.SelfSignedCA(d.cluster.Manager.Data),
		"--listen", u.Address, "--health", strings.TrimPrefix(u.Health, "http://"))
}

func (d *dev) startUnits(ctx context.Context) error {
	if d.cluster.Group != "" {
		return d.startMembers(ctx)
	}
	units := make([]*child, devUnits)
	for i, u := range d.cluster.Units {
		c := d.newChild(fmt.Sprintf("unit-%d", i+1), d.unit(d.unitArgs(u, "--task", d.cluster.Task)))
		c.started = func(pid int) { d.note(func(c *cluster) { c.Units[i].PID = pid }) }
		units[i] = c
		d.supervise(ctx, c)
	}
	for i, c := range units {
		now := d.described()
		err := c.await(ctx, func(ctx context.Context) error {
			config, err := now.clientTLS()
			if err == nil {
				_, err = handshake(ctx, d.cluster.Units[i].Address, config)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// unit runs the agent with the program of the release in use.
func (d *dev) unit(args []string) runner {
	return func(ctx context.Context, log *os.File, started func(int)) error {
		return d.measured(launch{agent: d.bin.cohort, program: d.program()}, args)(ctx, log, started)
	}
}

// note changes the description, in dev.json too once there is one.
func (d *dev) note(change func(*cluster)) {
	d.mu.Lock()
	change(&d.cluster)
	d.mu.Unlock()
	if _, err := os.Stat(filepath.Join(d.dir, devFile)); err != nil {
		return
	}
	if err := writeCluster(d.dir, d.described()); err != nil {
		d.app.log.Error("writing dev.json", "error", err)
	}
}

// stop ends everything and waits for it. dev.json goes, since what it says is
// no longer true.
func (d *dev) stop() error {
	if d.cancel != nil {
		d.cancel()
	}
	d.children.Wait()
	err := d.removeDescription()
	if d.tee != nil && d.tee.cmd != nil {
		err = errors.Join(err, d.tee.stop())
	}
	return err
}

// removeDescription removes dev.json, if it is there.
func (d *dev) removeDescription() error {
	if err := os.Remove(filepath.Join(d.dir, devFile)); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// tail is the end of a log file, for an error.
func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-6):], []byte("\n")))
}

// handshakeTime bounds one TLS handshake.
const handshakeTime = 10 * time.Second

// handshake does one TLS handshake and returns the connection's state.
func handshake(ctx context.Context, address string, config *tls.Config) (tls.ConnectionState, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", address)
	if err != nil {
		return tls.ConnectionState{}, fmt.Errorf("unit %s: %w", address, err)
	}
	return conn.(*tls.Conn).ConnectionState(), conn.Close()
}
