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

// Times of one connection, and of the end.
const (
	headerWait   = 5 * time.Second  // the TLS handshake and a request's header arrive within this
	bodyWait     = 20 * time.Second // a whole request arrives within this
	responseWait = 60 * time.Second // a response is read within this
	restWait     = time.Second      // what is left of a request that was refused arrives within this
	idleWait     = 90 * time.Second // a kept-alive connection waits this long for its next request
	endWait      = 10 * time.Second // requests under way may finish within this at shutdown
)

// clientPace is that of clients, within the limits on a whole request.
func clientPace() limit.Pace { return limit.Pace{Read: bodyWait, Write: responseWait, Rest: restWait} }

// Serve serves the API on a listener until ctx ends, speaking TLS 1.3 with the
// authority's own certificate. It then lets requests under way finish, for at
// most 10 seconds, and returns when nothing of it runs any more. It closes the
// listener.
func (a *Authority) Serve(ctx context.Context, listener net.Listener) error {
	config := identity.ServerTLS(a.certificate)
	config.NextProtos = []string{"http/1.1"}
	config.ClientAuth = tls.RequestClientCert // units present theirs for a place among the polls of units, and for nothing else
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	server := &http.Server{
		Handler: a.Handler(), TLSConfig: config, Protocols: &protocols,
		ReadHeaderTimeout: headerWait, ReadTimeout: bodyWait, WriteTimeout: responseWait, IdleTimeout: idleWait,
		MaxHeaderBytes: 16 << 10,
		ConnState:      a.clients.Track,
		ErrorLog:       slog.NewLogLogger(a.log.Handler(), slog.LevelDebug), // broken handshakes of any client
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

// shutDown lets requests under way finish, and cuts off those that do not.
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
