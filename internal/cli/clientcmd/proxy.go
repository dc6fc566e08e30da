package clientcmd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/localproxy"
	"github.com/cohort-tee/cohort/internal/opsserver"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/spf13/cobra"
)

// proxyFlags are the flags of `cohort proxy`.
type proxyFlags struct {
	pins      authorityclient.Pins
	session   sessionFlags
	oneOff    bool
	direct    bool
	addresses []string
	name      string

	listen    string
	tokenFile string
	origins   []string
	requests  int
	receipts  string
	metrics   string
	drain     time.Duration
}

// Times of a proxy.
const (
	startTime = time.Minute      // for trust and the first session
	closeTime = 5 * time.Second  // for closing the session at its units
	keepTime  = 10 * time.Second // between two looks at trust and session
)

// maxToken bounds the file of a token, in bytes.
const maxToken = 4 << 10

// Proxy is `cohort proxy`.
func Proxy(a *frame.App) *cobra.Command {
	var f proxyFlags
	cmd := &cobra.Command{
		Use:   "proxy --gateway URL --genesis H (--task T | --id I | --group G --role R)",
		Short: "Run a local HTTP proxy to a checked cluster, for programs in any language",
		Long: "Check a cluster, open a session with it, then listen for plain HTTP requests of\n" +
			"this machine's programs and send them in the session. The base URL of a program is\n" +
			"then http://ADDRESS of --listen. With --oneoff each request is one-off, without a\n" +
			"session; with --direct it goes over TLS to one of the --address.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runProxy(cmd.Context(), a, f) },
	}
	f.pins.Register(cmd)
	f.pins.RegisterGroup(cmd, "with --role: group to follow through the rosters its parties approve")
	f.pins.RegisterFresh(cmd)
	f.session.gateway.Register(cmd, "URL of the gateway, or of several with commas between: the session's, and without --authority the way to trust")
	flags := cmd.Flags()
	flags.StringVar(&f.session.role, "role", "", "role of the group that the session is with; * is the whole group")
	flags.BoolVar(&f.session.evidence, "fresh-evidence", false, "the unit that opens a session proves itself by evidence of this moment")
	flags.BoolVar(&f.oneOff, "oneoff", false, "one-off requests in place of a session: safe methods, or with an Idempotency-Key")
	flags.BoolVar(&f.direct, "direct", false, "TLS to the units in place of a session")
	flags.StringArrayVar(&f.addresses, "address", nil, "with --direct: HOST:PORT of a replica; repeat")
	flags.StringVar(&f.name, "name", "", "host of requests in the cluster (default the first DNS name of the task or group)")
	flags.StringVar(&f.listen, "listen", "127.0.0.1:8080", "address for programs: HOST:PORT, or unix:PATH; off loopback it needs --token-file")
	flags.StringVar(&f.tokenFile, "token-file", "", "file of a token that each request carries, in "+localproxy.FieldToken+" or as API key")
	flags.StringArrayVar(&f.origins, "allow-origin", nil, "origin of pages that may use the proxy, SCHEME://HOST:PORT; repeat (default none)")
	flags.IntVar(&f.requests, "max-requests", localproxy.DefaultRequests, "requests at once; a further one gets status 503")
	flags.StringVar(&f.receipts, "receipts", "", "directory for a receipt of each response (see cohort verify --receipt)")
	flags.StringVar(&f.metrics, "metrics", "", "HOST:PORT for /metrics, /livez and /readyz (default none)")
	flags.DurationVar(&f.drain, "drain", 30*time.Second, "how long requests may still take when the proxy is told to end")
	return cmd
}

// validate returns the first fault of the flags.
func (f *proxyFlags) validate() error {
	switch {
	case f.direct && f.oneOff:
		return frame.Usage("give --direct or --oneoff, not both")
	case f.direct && f.session.needed(f.pins):
		return frame.Usage("--role and --fresh-evidence do not go with --direct, and neither do --gateway and --manager-ca beside --authority: give --address")
	case !f.direct && len(f.addresses) > 0:
		return frame.Usage("--address needs --direct")
	case !f.direct && f.session.gateway.URL == "":
		return frame.Usage("give --gateway, or --direct with --address")
	case f.oneOff && (f.session.evidence || f.session.role != "" || f.receipts != ""):
		return frame.Usage("--fresh-evidence, --role and --receipts do not go with --oneoff, which has no session")
	case f.direct && f.receipts != "":
		return frame.Usage("--receipts does not go with --direct: units sign receipts in sessions only")
	case (f.pins.Group == "") != (f.session.role == ""):
		return frame.Usage("--group and --role go together")
	case f.drain < 0:
		return frame.Usage("--drain: got %v, want at least 0s", f.drain)
	case f.requests < 1:
		return frame.Usage("--max-requests: got %d, want at least 1", f.requests)
	}
	return nil
}

// runProxy checks the cluster, and serves until ctx is done.
func runProxy(ctx context.Context, a *frame.App, f proxyFlags) error {
	if err := f.validate(); err != nil {
		return err
	}
	address, token, err := f.entrance(ctx, a)
	if err != nil {
		return err
	}
	if err := prepareReceipts(f.receipts); err != nil {
		return err
	}
	u, err := f.openUpstream(ctx, a)
	if err != nil {
		return err
	}
	defer u.close(context.WithoutCancel(ctx))
	host, err := u.hostOf(f.name)
	if err != nil {
		return err
	}
	config := localproxy.Config{Through: u.through, Host: host, Name: address.HostName(), Origins: f.origins, Token: token, Requests: f.requests, Log: a.Log}
	if f.receipts != "" {
		config.Keep = func(r client.Record) error { return keepReceipt(f.receipts, r, u.trust(), a.Now()) }
	}
	p, err := localproxy.NewProxy(config)
	if err != nil {
		return frame.Usage("%w", err)
	}
	var metrics net.Listener
	if f.metrics != "" {
		if metrics, err = net.Listen("tcp", f.metrics); err != nil {
			return fmt.Errorf("listening for --metrics: %w", err)
		}
		defer metrics.Close()
	}
	listener, err := address.Listen(ctx)
	if err != nil {
		return err
	}
	v := u.startView(address.BaseURL(listener), host())
	if err := a.PrintResult("proxy", v, v.String()); err != nil {
		return errors.Join(err, listener.Close())
	}
	kept := make(chan struct{})
	background, stop := context.WithCancel(ctx)
	go func() { defer close(kept); u.maintain(background, a, f.pins) }()
	defer func() { stop(); <-kept }()
	return opsserver.RunBeside(ctx, metrics, p.Pages(u.ready), a.Log, func(ctx context.Context) error {
		// Before the proxy begins to end, a second signal is set to end the process at once.
		serving, end := context.WithCancel(context.WithoutCancel(ctx))
		defer end()
		defer context.AfterFunc(ctx, func() { signal.Reset(os.Interrupt, syscall.SIGTERM); end() })()
		return p.ServePrograms(serving, listener, f.drain)
	})
}

// entrance returns the address for programs, and the token that they must have. It refuses an
// address that other machines reach without a token.
func (f *proxyFlags) entrance(ctx context.Context, a *frame.App) (address localproxy.Address, token string, err error) {
	if address, err = localproxy.ParseAddress(f.listen); err != nil {
		return address, "", frame.Usage("--listen: %w", err)
	}
	if f.tokenFile != "" {
		b, err := frame.ReadFile(f.tokenFile, maxToken)
		if err != nil {
			return address, "", err
		}
		if info, err := os.Stat(f.tokenFile); err == nil && isOpenToOthers(info) {
			a.Notef("warning: --token-file: other users of this machine can read %s: chmod 600", f.tokenFile)
		}
		if token = strings.TrimSpace(string(b)); token == "" {
			return address, "", frame.Usage("--token-file: got an empty file, want a token, for example of `openssl rand -hex 32`")
		}
	}
	isLocal, err := address.IsLocal(ctx)
	if err != nil {
		return address, "", fmt.Errorf("looking up --listen: %w", err)
	}
	if !isLocal && token == "" {
		return address, "", frame.Usage("--listen: got %q, which other machines reach, want --token-file with it, or an address of this machine alone", f.listen)
	}
	return address, token, nil
}

// isOpenToOthers reports whether other users of the machine can use a file.
func isOpenToOthers(info fs.FileInfo) bool {
	return runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0
}

// prepareReceipts makes the directory for receipts, which contain requests and responses. It
// refuses one that other users can read.
func prepareReceipts(dir string) error {
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err == nil && isOpenToOthers(info) {
		err = frame.Usage("--receipts: got a directory of mode %04o, want 0700: receipts contain requests and responses", info.Mode().Perm())
	}
	return err
}

// keepReceipt writes the receipt of a response under a name of its time and digest.
func keepReceipt(dir string, r client.Record, t *client.Trust, at time.Time) error {
	sum := sha256.Sum256(r.Receipt)
	name := at.UTC().Format("20060102T150405.000000000Z") + "-" + hex.EncodeToString(sum[:8]) + ".json"
	if err := writeReceipt(filepath.Join(dir, name), r, t, at); err != nil {
		return wire.Refuse(wire.StoreFailed, "proxy: receipt", err, "a file in --receipts")
	}
	return nil
}
