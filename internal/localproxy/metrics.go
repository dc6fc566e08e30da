package localproxy

import (
	"encoding/json"
	"net/http"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// outcome is how a request ended, a label of the metrics: the reason of a problem, or one of these.
type outcome string

// The outcomes besides reasons.
const (
	outcomeDone      outcome = "done"
	outcomeCanceled  outcome = "canceled" // the program ended the request
	outcomeAborted   outcome = "aborted"  // the response ended early, or has no receipt
	outcomePreflight outcome = "preflight"
)

// metrics are the proxy's Prometheus metrics. Label values come from closed lists; none contains a
// path, a field or content.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec // by outcome
}

func newMetrics(inFlight func() int) *metrics {
	m := &metrics{registry: prometheus.NewRegistry(), requests: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "cohort_proxy_requests_total", Help: "Requests of programs that have ended, by outcome.",
	}, []string{"outcome"})}
	progress := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "cohort_proxy_in_flight", Help: "Requests in progress."},
		func() float64 { return float64(inFlight()) })
	m.registry.MustRegister(m.requests, progress, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// pages returns the handler of [Proxy.Pages].
func (m *metrics) pages(ready func() error) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET "+api.PathMetrics, api.Buffered(promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})))
	mux.HandleFunc("GET "+api.PathLive, func(w http.ResponseWriter, _ *http.Request) { writeStatus(w, "live") })
	mux.HandleFunc("GET "+api.PathReady, func(w http.ResponseWriter, _ *http.Request) {
		if err := ready(); err != nil {
			refused := problemOf(err)
			refused.Status = http.StatusServiceUnavailable
			refused.writeTo(w)
			return
		}
		writeStatus(w, "ready")
	})
	return mux
}

func writeStatus(w http.ResponseWriter, status string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(map[string]string{"status": status}) // the prober may be gone
}
