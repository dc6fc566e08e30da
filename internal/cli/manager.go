package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"

	"github.com/cohort-tee/cohort/internal/bus/natsd"
	"github.com/cohort-tee/cohort/internal/manager"
	"github.com/spf13/cobra"
)

// maxPEM bounds a file of certificates, in bytes.
const maxPEM = 1 << 20

// managerFlags are the flags of `cohort manager`.
type managerFlags struct {
	listen string
	bus    string
	cert   string
	key    string
	roots  string

	authorities []string
	data        string
	nats        []string
	natsCA      string
	jetstream   string
	limits      manager.Limits
	copies      int // MiB
}

func (a *app) managerCommand() *cobra.Command {
	var f managerFlags
	cmd := &cobra.Command{
		Use:   "manager --authority-root F",
		Short: "Run the cluster manager and its gateway, which are untrusted",
		Long: "Relay sealed sessions between units and bring the requests of users to them. A\n" +
			"manager holds no key: it can delay people and no more. Without a certificate its\n" +
			"gateway serves plain HTTP on loopback, and units are given DATA/manager.pem.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runManager(cmd.Context(), f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.listen, "listen", "127.0.0.1:7441", "address of the gateway")
	flags.StringVar(&f.bus, "bus", "127.0.0.1:7448", "address where units connect")
	flags.StringVar(&f.cert, "tls-cert", "", "the operator's certificate chain (PEM); it may be replaced")
	flags.StringVar(&f.key, "tls-key", "", "its private key (PEM)")
	flags.StringSliceVar(&f.authorities, "authority", nil, "URL of an authority whose policy history the gateway serves to its clients, who verify it; repeat or separate by commas for its replicas")
	flags.StringVar(&f.roots, "authority-root", "", "authority root that units stand under (cohort trust --authority-out)")
	flags.StringVar(&f.data, "data", "", "where copies of sealed sessions are kept (default in the state directory)")
	flags.StringSliceVar(&f.nats, "nats", nil, "leaf node URLs of a NATS cluster over which managers reach one another (tls://[USER:PASSWORD@]HOST:PORT)")
	flags.StringVar(&f.natsCA, "nats-ca", "", "certificates that the NATS cluster's stand under (PEM; default the system's)")
	flags.StringVar(&f.jetstream, "nats-jetstream", "", "JetStream domain of the NATS cluster, where a stream keeps sealed sessions for managers that were not there")
	flags.IntVar(&f.limits.PerAddress, "per-address", 1_000, "open and one-off requests a second from one address, and a tenth of that in sessions the manager does not know; raise it behind a proxy or for a relay")
	flags.IntVar(&f.limits.InFlight, "in-flight", 10_000, "requests at once, a fifth of them to one unit; one address has at most half, so raise it behind a proxy")
	flags.IntVar(&f.copies, "copies", 256, "MiB of sealed sessions kept for one cluster, about 2,000 sessions each; what expires first makes room")
	_ = cmd.MarkFlagRequired("authority-root")
	return cmd
}

// runManager is a manager's life. It says where it is once it can be met.
func (a *app) runManager(ctx context.Context, f managerFlags) (err error) {
	if f.data == "" {
		if f.data, err = a.stateDir("manager"); err != nil {
			return err
		}
	}
	if f.copies < 1 {
		return usage("--copies: got %d, want at least 1", f.copies)
	}
	if f.limits.InFlight < 10 {
		return usage("--in-flight: got %d, want at least 10", f.limits.InFlight)
	}
	f.limits.Copies, f.limits.PerUnit = f.copies<<20, f.limits.InFlight/5
	config := manager.Config{DataDir: f.data, BusAddress: f.bus, Log: a.log, Clock: a.now, Authorities: f.authorities, NATS: natsd.Join{URLs: f.nats, JetStream: f.jetstream}, Limits: f.limits}
	if f.natsCA != "" {
		if config.NATS.CA, err = readPool(f.natsCA); err != nil {
			return err
		}
	}
	if config.Roots, err = readCertificates(f.roots); err != nil {
		return err
	}
	ca, scheme := manager.SelfSignedCA(f.data), "http"
	switch {
	case (f.cert == "") != (f.key == ""):
		return usage("give both --tls-cert and --tls-key, or neither")
	case f.cert != "":
		if _, err := f.certificate(); err != nil { // told now, not at the first handshake
			return err
		}
		config.Certificate, ca, scheme = f.certificate, f.cert, "https"
	}
	listener, err := net.Listen("tcp", f.listen)
	if err != nil {
		return err
	}
	m, err := manager.New(config)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	at := map[string]string{"gateway": scheme + "://" + listener.Addr().String(), "bus": "tls://" + f.bus, "ca": ca}
	if err := a.emit("manager", at, fmt.Sprintf("gateway %s\nbus     %s\nca      %s\n", at["gateway"], at["bus"], ca)); err != nil {
		return errors.Join(err, listener.Close())
	}
	return m.Serve(ctx, listener)
}

// certificate reads the operator's files at each handshake, so that they may be
// replaced.
func (f managerFlags) certificate() (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return nil, &fault{codeFile, fmt.Errorf("reading --tls-cert and --tls-key: %w", err), ""}
	}
	return &pair, nil
}

// readCertificates reads a PEM file that holds nothing but certificates.
func readCertificates(path string) ([]*x509.Certificate, error) {
	rest, err := readFile(path, maxPEM)
	if err != nil {
		return nil, err
	}
	var list []*x509.Certificate
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if block.Type != "CERTIFICATE" || err != nil {
			return nil, usage("%s: got a block of %s, want certificates", path, block.Type)
		}
		list = append(list, c)
	}
	if len(list) == 0 {
		return nil, usage("%s: no certificate", path)
	}
	return list, nil
}

// readPool is a file of certificates as roots.
func readPool(path string) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	list, err := readCertificates(path)
	for _, c := range list {
		pool.AddCert(c)
	}
	return pool, err
}
