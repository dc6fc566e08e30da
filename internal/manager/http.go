package manager

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/manager/statuspage"
	"github.com/cohort-tee/cohort/internal/opsserver"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Handler returns the HTTP handler of the manager for its clients: the gateway and the probes. Its
// paths are served while [Manager.Serve] runs.
func (m *Manager) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc(wire.PathSession, api.ForPages(m.whileServing(m.gateway.serveSession)))
	mux.HandleFunc(wire.PathRequest, api.ForPages(m.whileServing(m.gateway.serveRequest)))
	mux.HandleFunc(wire.PathOneOff, api.ForPages(m.whileServing(m.gateway.serveOneOff)))
	mux.HandleFunc(wire.PathHistory, api.ForPages(m.whileServing(m.serveHistory)))
	mux.HandleFunc(wire.PathTrust, api.ForPages(m.whileServing(m.serveTrust)))
	mux.Handle("GET "+api.PathLive, m.limitPages(func(w http.ResponseWriter, _ *http.Request) { writeHealth(w, health{Status: "live"}) }))
	mux.Handle("GET "+api.PathReady, m.limitPages(m.whileServing(m.serveReady)))
	mux.Handle("/", m.limitPages(func(w http.ResponseWriter, r *http.Request) {
		api.GatewayProblem(wire.Refuse(wire.NotFound, "request: path", r.URL.Path, "a path of the gateway")).Write(w)
	}))
	return m.config.Proxies.Handler(clientPace().Handler(mux))
}

// OperatorHandler returns the HTTP handler for the operator: the metrics, the probes, and the page
// of the cluster's status. Clients must not reach it.
func (m *Manager) OperatorHandler() http.Handler {
	mux := opsserver.NewMux(m.metrics.handler(), m.Handler())
	mux.Handle("GET /", statuspage.Pages(m.status))
	return mux
}

// limitPages limits the number of concurrent requests that the manager serves itself.
func (m *Manager) limitPages(f http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		from := limit.AddressOf(r.RemoteAddr)
		if err := m.gateway.pages.Acquire(from, 1); err != nil {
			m.metrics.countQuota(err)
			api.GatewayProblem(err).Write(w)
			return
		}
		defer m.gateway.pages.Release(from, 1)
		f(w, r)
	}
}

func (m *Manager) whileServing(f http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		if !m.serving.Load() {
			api.GatewayProblem(wire.Refuse(wire.Unavailable, "manager", "not serving", "a running bus")).Write(w)
			return
		}
		f(w, r)
	}
}

// serveTrust passes a request for trust on to an authority.
func (m *Manager) serveTrust(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	err := m.trust.ServeTrust(w, r)
	if err != nil {
		m.config.Log.Debug("request for trust not served", "error", err)
		api.GatewayProblem(err).Write(w)
	}
	m.metrics.observeRequest(r.URL.Path, err, time.Since(start))
}

// health is the response of the probes.
type health struct {
	Status string `json:"status"`
	Units  int    `json:"units,omitempty"`
}

// serveReady reports that the manager is ready. A manager without units is ready too, since
// units connect only to a ready manager.
func (m *Manager) serveReady(w http.ResponseWriter, _ *http.Request) {
	_, units := m.registry.counts()
	writeHealth(w, health{Status: "ready", Units: units})
}

func writeHealth(w http.ResponseWriter, h health) {
	w.Header().Set("Content-Type", "application/json")
	// An error means that the client has disconnected.
	_ = json.NewEncoder(w).Encode(h)
}
