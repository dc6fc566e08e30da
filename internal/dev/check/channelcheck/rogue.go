package channelcheck

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hpke"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/dev/check"
	"github.com/cohort-tee/cohort/internal/retry"
	"github.com/cohort-tee/cohort/internal/wire"
)

// rogueTime is the duration of a rogue unit's attacks.
const rogueTime = 3 * time.Second

// rogue is a unit that misbehaves. It enrols for a task of its own, like any program that owners
// approve, and then claims the address, identity and sessions of the victim's task at the
// manager. It uses no code of an honest unit.
type rogue struct {
	app     *frame.App
	pins    authorityclient.Pins // pins of its own task
	manager string               // host:port
	ca      string
	victim  string // address of one of the victim's units
	claims  string // the victim's identity
	session string // one of the victim's sessions
}

// spoils counts a rogue unit's attacks and their results.
type spoils struct {
	Task        string `json:"task"`
	Heartbeats  int    `json:"heartbeats"`  // heartbeats that it sent
	Connections int    `json:"connections"` // connections that it made to the manager
	Sessions    int    `json:"sessions"`    // sealed sessions and tombstones that it received
	Copies      int    `json:"copies"`      // copies that it received of the victim's session
	Requests    int64  `json:"requests"`    // users' requests at its own address
}

// RogueCommand returns the command of the rogue unit. Only a check of a development cluster
// launches it.
func RogueCommand(a *frame.App) *cobra.Command {
	r := rogue{app: a}
	var authority string
	cmd := &cobra.Command{
		Use: "rogue-unit", Short: "Misbehave as a unit, for the checks of a development cluster", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r.pins.Authorities = []string{authority}
			return r.runRogue(cmd.Context())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&authority, "authority", "", "URL of the authority")
	flags.StringVar(&r.pins.Genesis, "genesis", "", "genesis digest")
	flags.StringVar(&r.pins.Task, "task", "", "its own task")
	flags.StringVar(&r.pins.State, "state", "", "file of what it has seen")
	flags.StringVar(&r.manager, "manager", "", "host:port of the bus")
	flags.StringVar(&r.ca, "manager-ca", "", "certificates of the manager")
	flags.StringVar(&r.victim, "victim", "", "address of a unit of the other task")
	flags.StringVar(&r.claims, "identity", "", "identity of the other task")
	flags.StringVar(&r.session, "session", "", "a session of the other task")
	return cmd
}

// runRogue enrols, attacks for rogueTime and prints the results.
func (r *rogue) runRogue(ctx context.Context) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	report, err := r.enrol(ctx, key)
	if err != nil {
		return fmt.Errorf("enrolling: %w", err)
	}
	roots, err := frame.ReadPool(r.ca)
	if err != nil {
		return err
	}
	config := &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: "127.0.0.1", NextProtos: []string{bus.Protocol},
		Certificates: []tls.Certificate{{Certificate: [][]byte{report.Unit, report.Cross}, PrivateKey: key}},
	}
	var requests atomic.Int64
	own, err := trapRequests(report, &requests)
	if err != nil {
		return err
	}
	defer own.Close()
	got := &spoils{Task: report.Task}
	for end := time.Now().Add(rogueTime); time.Now().Before(end) && ctx.Err() == nil; {
		if err := r.attack(ctx, config, own.Addr().String(), got, end); err != nil {
			return err
		}
		_ = retry.Sleep(ctx, 50*time.Millisecond)
	}
	got.Requests = requests.Load()
	return r.app.PrintResult("rogue", got, fmt.Sprintf("%+v\n", *got))
}

// trapRequests serves TLS with the unit's own leaf, which the gateway accepts for units of its
// task, and counts the requests that it receives.
func trapRequests(report api.Report, requests *atomic.Int64) (net.Listener, error) {
	key, err := x509.ParsePKCS8PrivateKey(report.LeafKey)
	if err != nil {
		return nil, fmt.Errorf("reading the key of the leaf: %w", err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{report.Leaf, report.Cross}, PrivateKey: key}},
	})
	if err != nil {
		return nil, err
	}
	server := &http.Server{ReadHeaderTimeout: check.StepTime, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		requests.Add(1)
		w.WriteHeader(http.StatusServiceUnavailable)
	})}
	go func() { _ = server.Serve(l) }() // ends with the listener
	return l, nil
}

// enrol obtains certificates in the fewest steps of an enrolment, without verification of the
// report.
func (r *rogue) enrol(ctx context.Context, key *ecdsa.PrivateKey) (report api.Report, err error) {
	authority, err := authorityclient.Dial(ctx, r.app, r.pins)
	if err != nil {
		return report, err
	}
	defer authority.Close()
	challenge, err := authority.Challenge(ctx)
	if err != nil {
		return report, err
	}
	sealing, err := hpke.MLKEM768X25519().GenerateKey()
	if err != nil {
		return report, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return report, err
	}
	request := api.CertificateRequest{
		Task: r.pins.Task, Nonce: challenge.Nonce, HPKEKey: sealing.PublicKey().Bytes(), SigningKey: spki,
		Root: authority.Approved.Document().Authority.Root, Head: authority.Approved.PolicyHead(),
	}
	evidence, err := r.app.TEE.Device.Attest(ctx, attest.BindReportData(wire.LabelIssue, request.Bound()...))
	if err != nil {
		return report, err
	}
	if request.Evidence, err = json.Marshal(evidence); err != nil {
		return report, err
	}
	sealed, err := authority.Certify(ctx, request)
	if err != nil {
		return report, err
	}
	recipient, err := hpke.NewRecipient(sealed.Encapsulated, sealing, hpke.HKDFSHA256(), hpke.AES256GCM(), api.SealInfo(request, sealed.GroupRoot))
	if err != nil {
		return report, err
	}
	text, err := recipient.Open(nil, sealed.Ciphertext)
	if err != nil {
		return report, err
	}
	var signed api.SignedReport
	return report, errors.Join(json.Unmarshal(text, &signed), json.Unmarshal(signed.Report, &report))
}

// attack sends false claims over one connection, and counts the frames that it receives in
// return, until the manager closes the connection or until the time end.
func (r *rogue) attack(ctx context.Context, config *tls.Config, own string, got *spoils, end time.Time) error {
	identity, err := wire.ParseDigest(r.claims)
	if err != nil {
		return err
	}
	session, err := wire.ParseSessionID(r.session)
	if err != nil {
		return err
	}
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", r.manager)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(end)
	got.Connections++
	reading := make(chan struct{})
	go func() { defer close(reading); got.countForeign(conn, session) }()
	forged := r.forged(identity, session)
	for n := 0; time.Now().Before(end); n++ {
		heartbeat := bus.Heartbeat{Address: []string{own, r.victim}[n/50%2], Inherits: identity, Ready: true, Relay: true}
		body, err := heartbeat.Append(nil)
		if err != nil {
			return err
		}
		if _, err := conn.Write(append(framed(1, body), forged...)); err != nil {
			break
		}
		got.Heartbeats++
		_ = retry.Sleep(ctx, time.Millisecond)
	}
	conn.Close()
	<-reading
	return nil
}

// forged returns frames about a session of the victim's task: a pull of its copy, and a false
// sealed session and tombstone with its session id.
func (r *rogue) forged(identity wire.Digest, session wire.SessionID) []byte {
	expiry := uint64(time.Now().Add(30 * time.Minute).Unix())
	out := framed(4, session[:])
	for kind, labels := range map[byte][2]wire.Label{3: {wire.LabelSealedSession, wire.LabelSealed}, 6: {wire.LabelTombstone, wire.LabelTombstoneBound}} {
		bound := wire.Frame(labels[1], []byte{1}, identity[:], make([]byte, 16), session[:], wire.Uint64(expiry), make([]byte, 16))
		sealed := wire.Frame(labels[0], bound, make([]byte, 12), make([]byte, 100))
		out = append(out, framed(kind, append(append(session[:], wire.Uint64(expiry)...), sealed...))...)
	}
	return out
}

// framed encodes a frame (docs/spec/bus.md) without package bus.
func framed(kind byte, body []byte) []byte {
	return append(append(binary.BigEndian.AppendUint16(nil, uint16(1+len(body))), kind), body...)
}

// countForeign counts the sealed sessions, tombstones and copies that the manager sends.
func (s *spoils) countForeign(conn net.Conn, session wire.SessionID) {
	head := make([]byte, 3)
	for {
		if _, err := io.ReadFull(conn, head); err != nil {
			return
		}
		body := make([]byte, max(1, binary.BigEndian.Uint16(head))-1)
		if _, err := io.ReadFull(conn, body); err != nil {
			return
		}
		switch {
		case head[2] == 3 || head[2] == 6:
			s.Sessions++
		case head[2] == 5 && len(body) > len(session):
			s.Copies++
		}
	}
}
