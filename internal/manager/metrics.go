package manager

import (
	"net/http"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics are the manager's own numbers. Labels are closed lists; none of them
// names a unit, a session or a user.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.HistogramVec // seconds, by path and reason
	retries  prometheus.Counter
	failures prometheus.Counter
	pulls    *prometheus.CounterVec // by what was found
}

// foundLabel says whether a pulled session was there.
var foundLabel = map[bool]string{true: "copy", false: "nothing"}

// yes is a state as a number.
var yes = map[bool]float64{true: 1}

func newMetrics(m *Manager) *metrics {
	s := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "cohort_gateway_request_seconds", Help: "Time from a request's header to the end of its answer.",
			Buckets: prometheus.ExponentialBuckets(0.001, 3, 10),
		}, []string{"path", "reason"}),
		retries:  counter("cohort_gateway_retries_total", "Requests that went to another unit."),
		failures: counter("cohort_gateway_unit_failures_total", "Attempts that a unit did not answer."),
		pulls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cohort_manager_pulls_total", Help: "Stored copies asked for.",
		}, []string{"found"}),
	}
	s.registry.MustRegister(s.requests, s.retries, s.failures, s.pulls,
		gauge("cohort_manager_units", "Units that beat.", func() float64 { n, _ := m.registry.size(); return float64(n) }),
		gauge("cohort_manager_units_ready", "Units that say they are ready.", func() float64 { _, n := m.registry.size(); return float64(n) }),
		gauge("cohort_manager_joined", "1 while the link to the external NATS cluster is there.", func() float64 { return yes[m.joined()] }),
		gauge("cohort_manager_recalled", "1 when the copies that NATS keeps were read since that link came up.", func() float64 { return yes[m.recalled.Load()] }),
		gauge("cohort_manager_copies", "Sealed sessions kept.", func() float64 { n, _ := m.copies.size(); return float64(n) }),
		gauge("cohort_manager_copies_bytes", "Bytes of them.", func() float64 { _, n := m.copies.size(); return float64(n) }),
		gauge("cohort_gateway_in_flight", "Requests under way.", func() float64 { return float64(len(m.gateway.slots)) }),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return s
}

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}

func gauge(name, help string, f func() float64) prometheus.GaugeFunc {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
}

// forwarded counts a request; err is nil when a unit answered.
func (s *metrics) forwarded(path string, err error, took time.Duration) {
	reason := wire.Reason("")
	if err != nil {
		reason = problem(err).Reason
	}
	s.requests.WithLabelValues(path, string(reason)).Observe(took.Seconds())
}

func (s *metrics) handler() http.Handler {
	return promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 2})
}
