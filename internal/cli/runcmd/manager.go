package runcmd

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"

	"github.com/cohort-tee/cohort/internal/bus/natsd"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/forwarded"
	"github.com/cohort-tee/cohort/internal/manager"
	"github.com/cohort-tee/cohort/internal/manager/selfsigned"
	"github.com/cohort-tee/cohort/internal/opsserver"
	"github.com/spf13/cobra"
)

// managerFlags are the flags of `cohort manager`.
type managerFlags struct {
	listen  string
	plain   bool
	proxies []string
	field   string
	metrics string
	bus     string
	cert    string
	key     string
	roots   string

	authorities []string
	data        string
	nats        []string
	natsCA      string
	jetstream   string
	limits      manager.Limits
	copies      int // MiB
}

// ManagerCommand is `cohort manager`.
func ManagerCommand(a *frame.App) *cobra.Command {
	var f managerFlags
	cmd := &cobra.Command{
		Use:   "manager --authority-root F",
		Short: "Run the cluster manager and its gateway, which are untrusted",
		Long: "Relay sealed sessions between units and bring the requests of users to them. A\n" +
			"manager holds no key: it can delay people and no more. Without a certificate its\n" +
			"gateway serves plain HTTP on loopback, and units are given DATA/manager.pem.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runManager(cmd.Context(), a, f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.listen, "listen", "127.0.0.1:7441", "address of the gateway")
	flags.BoolVar(&f.plain, "plain", false, "serve plain HTTP (HTTP/1.1 and HTTP/2) on any address, behind an ingress that ends TLS; not with --tls-cert")
	flags.StringSliceVar(&f.proxies, "trusted-proxies", nil, "addresses or networks (CIDR) of proxies that name the addresses of clients, which then have shares of their own; repeat or separate by commas")
	flags.StringVar(&f.field, "forwarded-field", forwarded.FieldX, "the field in which those proxies do: "+forwarded.FieldX+" or "+forwarded.FieldStandard+" (RFC 7239); the other one is not read")
	flags.StringVar(&f.metrics, "metrics", "", "address of plain HTTP /metrics, /livez and /readyz for the operator, and of the page of the cluster's status (default off); users must not reach it")
	flags.StringVar(&f.bus, "bus", "127.0.0.1:7448", "address where units connect")
	flags.StringVar(&f.cert, "tls-cert", "", "the operator's certificate chain (PEM); it may be replaced")
	flags.StringVar(&f.key, "tls-key", "", "its private key (PEM)")
	flags.StringSliceVar(&f.authorities, "authority", nil, "URL of an authority whose policy history the gateway serves to its clients, and to which it passes their requests for trust; they verify both; repeat or separate by commas for its replicas")
	flags.StringVar(&f.roots, "authority-root", "", "authority root that units stand under (cohort trust --authority-out)")
	flags.StringVar(&f.data, "data", "", "where copies of sealed sessions are kept (default in the state directory)")
	flags.StringSliceVar(&f.nats, "nats", nil, "leaf node URLs of a NATS cluster over which managers reach one another (tls://[USER:PASSWORD@]HOST:PORT)")
	flags.StringVar(&f.natsCA, "nats-ca", "", "certificates that the NATS cluster's chain to (PEM; default the system's)")
	flags.StringVar(&f.jetstream, "nats-jetstream", "", "JetStream domain of the NATS cluster, where a stream keeps sealed sessions for managers that were not there")
	flags.IntVar(&f.limits.PerAddress, "per-address", 1_000, "open and one-off requests a second from one address, and a tenth of that in sessions the manager does not know; raise it behind a proxy or for a relay")
	flags.IntVar(&f.limits.InFlight, "in-flight", 10_000, "requests at once, a fifth of them to one unit; one address has at most half, so raise it behind a proxy")
	flags.IntVar(&f.copies, "copies", 256, "MiB of sealed sessions kept for one cluster, about 2,000 sessions each; what expires first makes room")
	_ = cmd.MarkFlagRequired("authority-root")
	return cmd
}

// runManager runs a manager until it ends. It prints its addresses once units can connect.
func runManager(ctx context.Context, a *frame.App, f managerFlags) (err error) {
	if f.data == "" {
		if f.data, err = a.StateDir("manager"); err != nil {
			return err
		}
	}
	if f.copies < 1 {
		return frame.Usage("--copies: got %d, want at least 1", f.copies)
	}
	if f.limits.InFlight < 10 {
		return frame.Usage("--in-flight: got %d, want at least 10", f.limits.InFlight)
	}
	f.limits.Copies, f.limits.PerUnit = f.copies<<20, f.limits.InFlight/5
	config := manager.Config{DataDir: f.data, BusAddress: f.bus, Log: a.Log, Clock: a.Now, Authorities: f.authorities, NATS: natsd.Join{URLs: f.nats, JetStream: f.jetstream}, Limits: f.limits}
	if f.natsCA != "" {
		if config.NATS.CA, err = frame.ReadPool(f.natsCA); err != nil {
			return err
		}
	}
	if config.Roots, err = frame.ReadCertificates(f.roots); err != nil {
		return err
	}
	config.Plain = f.plain
	if config.Proxies, err = forwarded.ParseProxies(f.proxies, f.field); err != nil {
		return frame.Usage("--trusted-proxies, --forwarded-field: %w", err)
	}
	ca, scheme := selfsigned.CAFile(f.data), "http"
	switch {
	case (f.cert == "") != (f.key == ""):
		return frame.Usage("give both --tls-cert and --tls-key, or neither")
	case f.cert != "" && f.plain:
		return frame.Usage("--plain serves without TLS: give it, or --tls-cert and --tls-key")
	case f.cert != "":
		if _, err := f.certificate(); err != nil { // report it now, not at the first handshake
			return err
		}
		config.Certificate, ca, scheme = f.certificate, f.cert, "https"
	}
	listener, err := net.Listen("tcp", f.listen)
	if err != nil {
		return err
	}
	defer listener.Close()
	var operator net.Listener
	if f.metrics != "" {
		if operator, err = net.Listen("tcp", f.metrics); err != nil {
			return err
		}
		defer operator.Close()
	}
	m, err := manager.New(config)
	if err != nil {
		return err
	}
	at := map[string]string{"gateway": scheme + "://" + listener.Addr().String(), "bus": "tls://" + f.bus, "ca": ca}
	text := fmt.Sprintf("gateway %s\nbus     %s\nca      %s\n", at["gateway"], at["bus"], ca)
	if operator != nil {
		at["metrics"] = "http://" + operator.Addr().String()
		text += fmt.Sprintf("metrics %s\n", at["metrics"])
	}
	if err := a.PrintResult("manager", at, text); err != nil {
		return err
	}
	return opsserver.RunBeside(ctx, operator, m.OperatorHandler(), a.Log, func(ctx context.Context) error { return m.Serve(ctx, listener) })
}

// certificate reads the operator's files at each handshake, so that they may be
// replaced.
func (f managerFlags) certificate() (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return nil, &frame.Fault{Code: frame.CodeFile, Cause: fmt.Errorf("reading --tls-cert and --tls-key: %w", err), Hint: ""}
	}
	return &pair, nil
}
