// Package runcmd runs one part of a cluster: `cohort unit`, `cohort manager` and `cohort soft`.
//
// Files, each using those before it: manager.go, soft.go, unit.go.
package runcmd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/nvidia"
	"github.com/cohort-tee/cohort/internal/agent"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/sshkey"
	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/unit"
	"github.com/spf13/cobra"
)

// unitFlags are the flags of `cohort unit`.
type unitFlags struct {
	tee         frame.TEEFlags
	task        string
	group       string
	role        string
	partyKeys   []string
	roster      string
	peerParties []string
	peers       []string
	authorities []string
	genesis     string
	listen      string
	health      string
	manager     string
	managerCA   string
	advertise   string
	sessions    int
	gpus        string
	forward     string
	certDir     string
	disk        bool
	reload      string
}

// UnitCommand is `cohort unit`.
func UnitCommand(a *frame.App) *cobra.Command {
	var f unitFlags
	cmd := &cobra.Command{
		Use:   "unit (--task T | --group G --role R --party-key K) --authority URL --genesis H --listen A -- PROGRAM ARGS",
		Short: "Run a program as a unit: behind its task's attested certificate",
		Long: "Run PROGRAM, which knows nothing of Cohort, behind its task's certificate. The\n" +
			"agent gives it a loopback port as PORT and in place of {port} in ARGS. With\n" +
			"--platform soft it launches itself in the development TEE, as PROGRAM's agent; with\n" +
			"another platform this machine or enclave is the TEE, and PROGRAM a file of its image.",
		RunE: func(cmd *cobra.Command, args []string) error {
			run := func(ctx context.Context) error { return runUnit(ctx, a, f) }
			if a.TEE.Inside() {
				return a.Within(cmd.Context(), f.tee, run)
			}
			if len(args) == 0 {
				return frame.Usage("unit: no program after --")
			}
			if _, err := f.parties(); err != nil { // before a TEE is asked
				return err
			}
			path, err := frame.ProgramPath(args[0])
			if err != nil {
				return err
			}
			return a.Within(cmd.Context(), f.tee, run, append([]string{path}, args[1:]...)...)
		},
	}
	flags := cmd.Flags()
	f.tee.Register(cmd)
	flags.StringVar(&f.task, "task", "", "task whose unit the program is")
	flags.StringVar(&f.group, "group", "", "group that the program works in; it waits until the parties approve")
	flags.StringVar(&f.role, "role", "", "role of the program in the group")
	flags.StringArrayVar(&f.partyKeys, "party-key", nil, "with --group: "+sshkey.PartyKeyHelp+" of the party that brings this program; repeat for its new key")
	flags.StringVar(&f.roster, "roster", "", "with --group: digest of the one roster to work under (default any that the party approves)")
	flags.StringArrayVar(&f.peerParties, "peer-party", nil, "ROLE=KEY, with KEY as in --party-key: accept in that role programs of this party only; repeat")
	flags.StringArrayVar(&f.peers, "peer", nil, "ROLE=HOST:PORT of a unit that the program calls, at the URL in PEER_ROLE; repeat")
	flags.StringArrayVar(&f.authorities, "authority", nil, "https URL of the authority; repeat for its replicas")
	flags.StringVar(&f.genesis, "genesis", "", "digest of the first policy, 64 hexadecimal digits")
	flags.StringVar(&f.listen, "listen", "", "address to serve TLS on; may be left out with --cert-dir")
	flags.StringVar(&f.health, "health", "", "address of plain HTTP /livez, /readyz and /stats (default off)")
	flags.StringVar(&f.manager, "manager", "", "tls://HOST:PORT of the cluster manager, or of several with commas between, each of which the unit connects to; sessions then move between units")
	flags.StringVar(&f.managerCA, "manager-ca", "", "certificates that the manager's chains to (PEM; default the system's)")
	flags.StringVar(&f.advertise, "advertise", "", "HOST:PORT at which the gateway reaches this unit (default --listen)")
	flags.IntVar(&f.sessions, "sessions", 1<<17, "open sessions that are kept, of all units of the task; up to 640 bytes each")
	flags.StringVar(&f.gpus, "nvidia-gpus", "", "command that prints the evidence of this machine's GPUs, as \"nvattest collect-evidence --format json\" does; --nonce is added")
	flags.StringVar(&f.forward, "forward", "http", "http, or tcp for other protocols")
	flags.StringVar(&f.certDir, "cert-dir", "", "directory on a tmpfs to keep tls.crt, tls.key and ca.crt in")
	flags.BoolVar(&f.disk, "cert-dir-on-disk", false, "accept a --cert-dir that is not on a tmpfs")
	flags.StringVar(&f.reload, "reload", "", "signal for the program after each renewal, such as HUP")
	for _, name := range []string{"authority", "genesis"} {
		_ = cmd.MarkFlagRequired(name)
	}
	return cmd
}

// reloadSignals are the signals that programs reload their certificates on.
var reloadSignals = map[string]syscall.Signal{
	"": 0, "HUP": syscall.SIGHUP, "USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2, "WINCH": syscall.SIGWINCH,
}

// runUnit runs an agent inside a TEE until it ends. It takes its addresses first, so
// that a taken port is reported before anything else happens.
func runUnit(ctx context.Context, a *frame.App, f unitFlags) error {
	genesis, err := wire.ParseDigest(f.genesis)
	if err != nil {
		return frame.Usage("--genesis: %w", err)
	}
	reload, ok := reloadSignals[f.reload]
	if !ok {
		return frame.Usage("--reload: got %q, want HUP, USR1, USR2 or WINCH", f.reload)
	}
	if (f.task == "") == (f.group == "") || (f.group == "") != (f.role == "") {
		return frame.Usage("give --task, or --group and --role")
	}
	config, err := f.parties()
	if err != nil {
		return err
	}
	peers, err := f.called()
	if err != nil {
		return err
	}
	unitManager, err := f.managerConfig()
	if err != nil {
		return err
	}
	program, err := a.TEE.Program()
	if err != nil {
		return err
	}
	attester, err := f.attester(a.TEE.Device)
	if err != nil {
		return err
	}
	var listener net.Listener
	if f.listen != "" {
		if listener, err = net.Listen("tcp", f.listen); err != nil {
			return err
		}
		defer listener.Close()
	}
	health, err := serveHealth(f.health)
	if err != nil {
		return err
	}
	defer health.close()
	config.Authorities, config.Genesis, config.Task, config.Group, config.Role = f.authorities, genesis, f.task, f.group, f.role
	config.Attester, config.Log, config.Manager, config.Address, config.Sessions = attester, a.Log, unitManager, f.advertise, f.sessions
	config.Fatal = func(err error) { os.Exit(a.ReportError("cohort unit", err)) } // its program ends with the agent
	u, err := unit.Start(ctx, config)
	if err != nil {
		return err
	}
	defer u.Close()
	health.setHandler(named(u.ID(), notStarted(u.Health())))
	a.Log.Info("enrolled", "unit", u.ID(), "task", f.task, "group", f.group, "role", f.role, "identity", u.Identity().ID, "listen", f.listen)
	return agentEnd(agent.Run(ctx, agent.Config{
		Unit: u, Program: program, Args: a.TEE.Arguments(), Listen: listener, Forward: agent.Forward(f.forward), Peers: peers,
		Stdout: a.Stdout, Stderr: a.Stderr, Log: a.Log, CertDir: f.certDir, Disk: f.disk, Reload: reload,
		Started: func() { health.setHandler(named(u.ID(), u.Health())) },
	}))
}

// attester is the TEE, with the GPUs beside it where there is a command that asks
// them.
func (f unitFlags) attester(tee attest.Attester) (attest.Attester, error) {
	if f.gpus == "" {
		return tee, nil
	}
	gpus, err := nvidia.NewCollector(strings.Fields(f.gpus)...)
	if err != nil {
		return nil, err
	}
	return attest.WithDevices(tee, gpus), nil
}

// parties is a configuration with the parties of the flags.
func (f unitFlags) parties() (c unit.Config, err error) {
	if f.group != "" && len(f.partyKeys) == 0 {
		return c, frame.Usage("--group needs --party-key: the key of the party that brings this program")
	}
	if f.group == "" && len(f.partyKeys)+len(f.peerParties)+len(f.roster) > 0 {
		return c, frame.Usage("--party-key, --roster and --peer-party need --group")
	}
	if c.PartyKeys, err = sshkey.ParsePartyKeys(f.partyKeys); err != nil {
		return c, err
	}
	if c.PeerParties, err = sshkey.ParsePeerParties(f.peerParties); err != nil || f.roster == "" {
		return c, err
	}
	if c.Roster, err = wire.ParseDigest(f.roster); err != nil {
		return c, frame.Usage("--roster: %w", err)
	}
	return c, nil
}

// called are the peers that the flags name, each role once.
func (f unitFlags) called() (peers []agent.Peer, err error) {
	for _, pair := range f.peers {
		role, address, ok := strings.Cut(pair, "=")
		if _, _, err := net.SplitHostPort(address); !ok || err != nil {
			return nil, frame.Usage("--peer: got %q, want ROLE=HOST:PORT", pair)
		}
		i := slices.IndexFunc(peers, func(p agent.Peer) bool { return p.Role == role })
		if i < 0 {
			i, peers = len(peers), append(peers, agent.Peer{Role: role})
		}
		peers[i].Addresses = append(peers[i].Addresses, address)
	}
	return peers, nil
}

// managerConfig is the manager that the flags name.
func (f unitFlags) managerConfig() (unit.Manager, error) {
	m := unit.Manager{URL: f.manager}
	switch {
	case f.managerCA == "":
		return m, nil
	case f.manager == "":
		return m, frame.Usage("--manager-ca needs --manager")
	}
	var err error
	m.CA, err = frame.ReadPool(f.managerCA)
	return m, err
}

// agentEnd passes a program's own exit on: it is no fault of the agent.
func agentEnd(err error) error {
	if ended := (*agent.Exit)(nil); errors.As(err, &ended) {
		return &frame.Fault{Code: frame.CodeProgram, Cause: fmt.Errorf("running the program: %w", err), Hint: ""}
	}
	return err
}

// health serves a unit's health pages, which begin before it is enrolled.
type health struct {
	handler atomic.Pointer[http.Handler]
	server  *http.Server
	done    chan struct{}
}

// maxHealthConns bounds connections to the health pages; for one more, one that waits
// is closed.
const maxHealthConns = 64

// serveHealth listens on an address, or nowhere when it is empty.
func serveHealth(address string) (*health, error) {
	h := &health{done: make(chan struct{})}
	h.setHandler(http.HandlerFunc(notEnrolled))
	if address == "" {
		close(h.done)
		return h, nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("health pages: %w", err)
	}
	h.server = &http.Server{
		Handler:        http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*h.handler.Load()).ServeHTTP(w, r) }),
		ReadTimeout:    5 * time.Second, // of a whole request
		WriteTimeout:   5 * time.Second,
		IdleTimeout:    30 * time.Second,
		MaxHeaderBytes: 16 << 10,
		ConnState:      limit.NewConnections(maxHealthConns).Track,
	}
	go func() {
		defer close(h.done)
		_ = h.server.Serve(l) // ends by close
	}()
	return h, nil
}

// named adds the unit's id to its health pages.
func named(id wire.UnitID, pages http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(frame.UnitField, id.String())
		pages.ServeHTTP(w, r)
	})
}

func (h *health) setHandler(handler http.Handler) { h.handler.Store(&handler) }

func (h *health) close() {
	if h.server != nil {
		_ = h.server.Close()
	}
	<-h.done
}

// notEnrolled serves requests while a unit has no certificate.
func notEnrolled(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if r.URL.Path == "/livez" {
		fmt.Fprintln(w, `{"live":true}`)
		return
	}
	notReady(w, wire.NotEnrolled)
}

// notStarted are the health pages of a unit whose program does not yet accept
// connections.
func notStarted(pages http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/readyz" {
			w.Header().Set("Content-Type", "application/json")
			notReady(w, wire.Unavailable)
			return
		}
		pages.ServeHTTP(w, r)
	})
}

func notReady(w http.ResponseWriter, reason wire.Reason) {
	w.WriteHeader(http.StatusServiceUnavailable)
	fmt.Fprintf(w, "{\"ready\":false,\"reason\":%q}\n", reason)
}
