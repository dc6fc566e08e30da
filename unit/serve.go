package unit

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/limit"
)

// Times of a server.
const (
	headerTime = 10 * time.Second       // handshake and request header
	idleTime   = 2 * time.Minute        // kept-alive connection without a request
	readTime   = time.Minute            // the next bytes of a request
	writeTime  = 30 * time.Second       // the client takes the next bytes of a response
	restTime   = time.Second            // what a handler leaves of a request
	drainTime  = 10 * time.Second       // requests in flight at shutdown
	lingerTime = 100 * time.Millisecond // between the last heartbeat and the end of the listener
)

// Bounds of a server.
const (
	maxConns    = 10_000 // open connections; beyond, the address with the most loses the one that waits longest
	maxRequests = 10_000 // requests in flight; one address has no more of them than are free
)

// quotaRequests names the latter in refusals and [Stats].
const quotaRequests = "unit: requests under way"

// clientPace is that of a server's clients.
func clientPace() limit.Pace { return limit.Pace{Read: readTime, Write: writeTime, Rest: restTime} }

// Serve serves HTTP/1.1 and HTTP/2 over TLS on a listener, which it closes,
// until ctx is done; it then lets requests in flight finish for at most 10
// seconds and returns nil.
//
// A connection never outlives the certificate of its handshake. Once the unit
// holds a newer one, responses on older connections ask the client to make
// another (Connection: close, GOAWAY), and at the certificate's end whatever is
// left is cut.
//
// A request whose body brings nothing for a minute is cut off, and a response of
// which the client takes nothing for 30 seconds. A handler that calls SetReadDeadline
// of [http.ResponseController] decides about the former itself. One address has at
// most half of 10,000 requests in flight, or what others leave of them: other requests
// get status 429, or 503 when there are no more.
//
// It also serves the trusted channel: requests of sessions reach the handler
// like any others, and [CallerOf] distinguishes them.
//
// Of a unit in a group the handler gets requests of units whose role may call
// this one, which [PeerOf] names, and of sessions. All others get status 403.
func (u *Unit) Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	served, err := u.withChannel(u.membersOnly(h))
	if err != nil {
		return errors.Join(err, l.Close())
	}
	leave := u.announceAddress(l.Addr())
	defer leave()
	server := &http.Server{
		Handler:           clientPace().Handler(u.withQuota(u.whileCertified(served))),
		HTTP2:             clientPace().HTTP2(),
		TLSConfig:         u.serverTLS(tls.RequestClientCert),
		ConnContext:       withConn,
		ConnState:         limit.NewConnections(maxConns).Track,
		ReadHeaderTimeout: headerTime,
		IdleTimeout:       idleTime,
		ErrorLog:          slog.NewLogLogger(u.config.Log.Handler(), slog.LevelDebug),
	}
	stopped := make(chan error, 1)
	cancel := context.AfterFunc(ctx, func() { leave(); u.linger(); stopped <- shutDown(server) })
	err = server.ServeTLS(listener{l, u}, "", "")
	if cancel() {
		return errors.Join(fmt.Errorf("serving: %w", err), server.Close())
	}
	return <-stopped
}

// linger serves until managers know that the unit leaves, and then once more as long for
// clients to know it: requests that are bound to a unit that has ended have an unknown
// outcome.
func (u *Unit) linger() {
	if u.cluster.relay.Connected() {
		time.Sleep(2 * reportInterval)
	}
}

// shutDown lets requests in flight finish, and cuts those that do not.
func shutDown(server *http.Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	if server.Shutdown(ctx) != nil {
		return server.Close()
	}
	return nil
}

// whileCertified serves a request only before the end of its connection's
// certificate, while the clock is right and, in a group, while the unit has a recent head of the
// authority, and asks the client to reconnect when there is a newer certificate.
func (u *Unit) whileCertified(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e := r.Context().Value(connKey{}).(*conn).enrolment()
		if now, err := u.clock.CheckedTime(); err != nil || !now.Before(e.notAfter) || u.checkSilence(e, now) != nil {
			panic(http.ErrAbortHandler)
		}
		if e != u.enrolled.Load() && r.Header.Get("Upgrade") == "" {
			w.Header().Set("Connection", "close")
		}
		h.ServeHTTP(w, r)
	})
}

// withQuota serves a request while there is room for it.
func (u *Unit) withQuota(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		release, err := u.Admit(r.RemoteAddr)
		if err != nil {
			api.ProblemOf(err).Write(w)
			return
		}
		defer release()
		h.ServeHTTP(w, r)
	})
}

// Admit takes a place among the 10,000 requests in flight for an address, host:port, as
// [Unit.Serve] does for each request; release returns it. It refuses when there is none.
func (u *Unit) Admit(address string) (release func(), err error) {
	from := limit.AddressOf(address)
	if err := u.requests.Acquire(from, 1); err != nil {
		u.counters.quotas.Count(err)
		return nil, err
	}
	return func() { u.requests.Release(from, 1) }, nil
}

// Listen is a listener whose connections end with the certificate of their handshake, and
// with what a policy cuts off. It is for servers with the configuration of [Unit.ServerTLS];
// [Unit.Serve] does it by itself.
func (u *Unit) Listen(l net.Listener) net.Listener { return listener{l, u} }

// errTruncated is the end of a connection that TLS did not announce.
var errTruncated = errors.New("connection ended without the closing alert of TLS")
