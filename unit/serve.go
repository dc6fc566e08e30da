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
	headerTime = 10 * time.Second // for the handshake and the request header
	idleTime   = 2 * time.Minute  // for a connection without a request
	readTime   = time.Minute      // for the next bytes of a request
	writeTime  = 30 * time.Second // for the client to accept the next bytes of a response
	restTime   = time.Second      // for the rest of a request that the handler did not read
	drainTime  = 10 * time.Second // for requests in flight at shutdown
)

// Limits of a server.
const (
	maxConns    = 10_000 // open connections; above this, the longest-waiting one of the address with the most is closed
	maxRequests = 10_000 // requests in flight; one address can have no more than the number that stays free
)

// quotaRequests is the name of the quota of maxRequests in refusals and [Stats].
const quotaRequests = "unit: requests under way"

// clientPace returns the time limits for a server's clients.
func clientPace() limit.Pace { return limit.Pace{Read: readTime, Write: writeTime, Rest: restTime} }

// Serve serves HTTP/1.1 and HTTP/2 over TLS on a listener until ctx is done. It then closes the
// listener, lets requests in flight finish for at most 10 seconds, and returns nil.
//
// A connection never outlives the certificate of its handshake. Once the unit has a newer
// certificate, responses on older connections ask the client to reconnect (Connection: close,
// GOAWAY). When the certificate expires, its remaining connections are closed.
//
// Serve aborts a request if no bytes of its body arrive for a minute, or if the client accepts
// no bytes of the response for 30 seconds. A handler can replace the former limit with
// SetReadDeadline of [http.ResponseController]. Of the 10,000 requests in flight, one address
// can have at most half, and no more than the number that stays free. Further requests receive
// status 429, or 503 if no place is free.
//
// Serve also serves the trusted channel: the handler receives requests of sessions like all
// others, and [CallerOf] distinguishes them.
//
// In a group, the handler receives only requests of units whose role may call this unit's role
// ([PeerOf] returns the unit), and requests of sessions. All other requests receive status 403.
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

// linger keeps the unit serving until managers know that the unit stops, and then as long again
// until clients know it: if a unit has stopped, the outcome of requests that are bound to it is
// unknown.
func (u *Unit) linger() {
	if u.cluster.relay.Connected() {
		time.Sleep(2 * reportInterval)
	}
}

// shutDown lets requests in flight finish, and aborts them after drainTime.
func shutDown(server *http.Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	if server.Shutdown(ctx) != nil {
		return server.Close()
	}
	return nil
}

// whileCertified aborts a request if the certificate of its connection has expired, if the wall
// clock is wrong or, in a group, if the unit has no recent head of the authority. If there is a
// newer certificate, it asks the client to reconnect.
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

// withQuota refuses requests above the quota of requests in flight.
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

// Admit counts a request of an address, host:port, among the 10,000 requests in flight until
// release is called, as [Unit.Serve] does for each request. It refuses a request above the
// quota.
func (u *Unit) Admit(address string) (release func(), err error) {
	from := limit.AddressOf(address)
	if err := u.requests.Acquire(from, 1); err != nil {
		u.counters.quotas.Count(err)
		return nil, err
	}
	return func() { u.requests.Release(from, 1) }, nil
}

// Listen returns a listener for servers with the configuration of [Unit.ServerTLS]. Its
// connections are closed when the certificate of their handshake expires, and when a policy cuts
// off the peer or the unit. [Unit.Serve] does this itself.
func (u *Unit) Listen(l net.Listener) net.Listener { return listener{l, u} }

// errTruncated means that a connection ended without the closing alert of TLS.
var errTruncated = errors.New("connection ended without the closing alert of TLS")
