// Package opsserver serves HTTP to the operator of a server: metrics, probes and pages, on a
// listener apart from that of the clients, so that no client reads how the server is used.
//
// It trusts every program that reaches the listener to read. It accepts no request that changes
// anything. On a loopback address it refuses requests for another host than this machine: a page
// of a browser on the machine could send such requests, once its own name resolves to loopback
// (DNS rebinding), and read the responses.
package opsserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Bounds of the listener.
const (
	maxConnections = 256
	maxHeader      = 16 << 10
	headerWait     = 5 * time.Second
	idleWait       = 90 * time.Second
	endWait        = time.Second // for requests in progress at the end
)

// operatorPace returns the time limits for the peers.
func operatorPace() limit.Pace {
	return limit.Pace{Read: 5 * time.Second, Write: 10 * time.Second, Rest: time.Second}
}

// NewMux returns a handler of the metrics and of the two probes, which the handler for clients has.
func NewMux(metrics, clients http.Handler) *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("GET "+api.PathMetrics, api.Buffered(metrics))
	mux.Handle("GET "+api.PathLive, clients)
	mux.Handle("GET "+api.PathReady, clients)
	return mux
}

// RunBeside runs serve and, until it returns, serves h on l, which it closes. If l cannot be
// served it cancels serve. Without a listener it only runs serve.
func RunBeside(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger, serve func(context.Context) error) error {
	if l == nil {
		return serve(ctx)
	}
	if !IsLocal(l.Addr()) {
		log.Warn("metrics are served on an address that is neither loopback nor private: anyone who reaches it reads them", "address", l.Addr())
	}
	connections := limit.NewConnections(maxConnections)
	server := &http.Server{
		Handler: operatorPace().Handler(restrict(h)), HTTP2: operatorPace().HTTP2(), ConnState: connections.Track,
		ReadHeaderTimeout: headerWait, IdleTimeout: idleWait, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var running sync.WaitGroup
	var failed error
	running.Go(func() {
		defer cancel()
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			failed = fmt.Errorf("serving metrics: %w", err)
		}
	})
	err := serve(ctx)
	ending, done := context.WithTimeout(context.Background(), endWait)
	defer done()
	if server.Shutdown(ending) != nil {
		_ = server.Close() // of connections that are in use
	}
	running.Wait()
	return errors.Join(err, failed)
}

// restrict refuses requests that change anything, and on loopback those for another host. Pages
// of other origins must neither embed nor read the responses.
func restrict(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cross-Origin-Resource-Policy", "same-origin")
		local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		switch {
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			api.GatewayProblem(wire.Refuse(wire.BadRequest, "request: method", r.Method, "GET or HEAD")).Write(w)
		case local != nil && isLoopback(local) && !isThisMachine(r.Host):
			api.GatewayProblem(wire.Refuse(wire.NotAllowed, "request: host", r.Host, "localhost or a loopback address, as this listener has")).Write(w)
		default:
			h.ServeHTTP(w, r)
		}
	})
}

// isThisMachine reports whether the host of a request is localhost or a loopback address.
func isThisMachine(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	ip, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && ip.Unmap().IsLoopback()
}

// IsLocal reports whether an address is loopback, private (RFC 1918, RFC 4193) or link-local: no
// host of the Internet reaches it. The unspecified address is not local.
func IsLocal(address net.Addr) bool {
	ip := addressOf(address)
	return ip.IsLoopback() || ip.IsPrivate() || ip.IsLinkLocalUnicast()
}

func isLoopback(address net.Addr) bool { return addressOf(address).IsLoopback() }

// addressOf returns the IP address of a TCP address, or the zero address.
func addressOf(address net.Addr) netip.Addr {
	tcp, ok := address.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr().Unmap()
}
