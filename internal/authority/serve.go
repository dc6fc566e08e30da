package authority

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/limit"
)

// Time limits of one connection and of the shutdown.
const (
	headerWait   = 5 * time.Second  // the TLS handshake and a request's header arrive within this
	bodyWait     = 20 * time.Second // a whole request arrives within this
	responseWait = 60 * time.Second // a response is read within this
	restWait     = time.Second      // the rest of a refused request arrives within this
	idleWait     = 90 * time.Second // a kept-alive connection waits this long for its next request
	endWait      = 10 * time.Second // requests under way may finish within this at shutdown
)

// clientPace returns the pace that clients must keep, within the limits on a whole request.
func clientPace() limit.Pace { return limit.Pace{Read: bodyWait, Write: responseWait, Rest: restWait} }

// Serve serves the API on a listener until ctx ends, over TLS 1.3 with the authority's own
// certificate. It then waits at most 10 seconds for requests being served to end, and returns
// when all its goroutines have ended. It closes the listener.
func (a *Authority) Serve(ctx context.Context, listener net.Listener) error {
	config := identity.ServerTLS(a.certificate)
	config.NextProtos = []string{"http/1.1"}
	config.ClientAuth = tls.RequestClientCert // units present their certificates for a place among the polls of units, and for nothing else
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	server := &http.Server{
		Handler: a.Handler(), TLSConfig: config, Protocols: &protocols,
		ReadHeaderTimeout: headerWait, ReadTimeout: bodyWait, WriteTimeout: responseWait, IdleTimeout: idleWait,
		MaxHeaderBytes: 16 << 10,
		ConnState:      a.clients.Track,
		ErrorLog:       slog.NewLogLogger(a.log.Handler(), slog.LevelDebug), // any client can break a handshake
	}
	work, stop := context.WithCancel(ctx)
	server.ConnContext = func(ctx context.Context, _ net.Conn) context.Context {
		return context.WithValue(ctx, endKey{}, work.Done())
	}
	var running sync.WaitGroup
	running.Go(func() { a.runPeriodically(work) })
	running.Go(func() {
		<-work.Done()
		a.shutDown(server)
	})
	err := server.ServeTLS(listener, "", "")
	stop()
	running.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serving the authority: %w", err)
}

// shutDown waits for requests being served, and closes the connections of those that do not end.
func (a *Authority) shutDown(server *http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), endWait)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		a.log.Warn("requests cut off at shutdown", "error", errors.Join(err, server.Close()))
	}
	if err := a.rings.ReleaseLease(ctx); err != nil {
		a.log.Warn("releasing the ring lease", "error", err)
	}
}
