package manager

import (
	"net/http"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/manager/trustrelay"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics are the manager's Prometheus metrics. Label values come from closed lists; none
// identifies a unit, a session or a user.
type metrics struct {
	registry     *prometheus.Registry
	requests     *prometheus.HistogramVec // seconds, by path and reason
	retries      prometheus.Counter
	failures     prometheus.Counter
	pulls        *prometheus.CounterVec // by outcome
	quotas       *prometheus.CounterVec // refusals, by quota
	busEnded     *prometheus.CounterVec // by reason
	itemsRefused prometheus.Counter
}

// quotas are the quotas of the gateway. Each is the rule of a refusal and the value of a label.
var quotas = append([]string{quotaReading, quotaInFlight, quotaPerUnit, quotaConnect, quotaPages, quotaPolls, quotaExpensive, quotaUnknown}, trustrelay.Quotas...)

// foundLabel is the label of a request for a copy, by whether it was found.
var foundLabel = map[bool]string{true: "copy", false: "nothing"}

// boolGauge is the value of a gauge that shows a boolean.
var boolGauge = map[bool]float64{true: 1}

func newMetrics(m *Manager) *metrics {
	s := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "cohort_gateway_request_seconds", Help: "Time from a request's header to the end of its response.",
			Buckets: prometheus.ExponentialBuckets(0.001, 3, 10),
		}, []string{"path", "reason"}),
		retries:  counter("cohort_gateway_retries_total", "Requests that went to another unit."),
		failures: counter("cohort_gateway_unit_failures_total", "Attempts to which a unit did not respond."),
		pulls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cohort_manager_pulls_total", Help: "Requests for stored copies.",
		}, []string{"found"}),
		quotas: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cohort_gateway_refused_total", Help: "Requests refused by a quota, by its name in the refusal.",
		}, []string{"quota"}),
	}
	for _, q := range quotas {
		s.quotas.WithLabelValues(q)
	}
	s.busEnded = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "cohort_manager_bus_ended_total", Help: "Connections to the bus that ended or were refused.",
	}, []string{"reason"})
	s.itemsRefused = counter("cohort_manager_items_refused_total", "Sealed sessions of units that were not relayed.")
	s.registry.MustRegister(s.requests, s.retries, s.failures, s.pulls, s.quotas, s.busEnded, s.itemsRefused,
		gauge("cohort_manager_bus_connections", "Units that are connected to the bus.", func() float64 { return float64(m.connectedUnits()) }),
		gauge("cohort_manager_units", "Units with a recent heartbeat.", func() float64 { n, _ := m.registry.counts(); return float64(n) }),
		gauge("cohort_manager_units_ready", "Units that report to be ready.", func() float64 { _, n := m.registry.counts(); return float64(n) }),
		gauge("cohort_manager_joined", "1 while the link to the external NATS cluster is up.", func() float64 { return boolGauge[m.isJoined()] }),
		gauge("cohort_manager_recalled", "1 when the stored copies were read from NATS since that link came up.", func() float64 { return boolGauge[m.recalled.Load()] }),
		gauge("cohort_manager_copies", "Sealed sessions stored.", func() float64 { n, _ := m.copies.Totals(); return float64(n) }),
		gauge("cohort_manager_copies_bytes", "Bytes of stored sealed sessions.", func() float64 { _, n := m.copies.Totals(); return float64(n) }),
		gauge("cohort_gateway_in_flight", "Requests in progress.", func() float64 { return float64(m.gateway.slots.InUse()) }),
		gauge("cohort_gateway_reading_bytes", "Bytes charged for requests that are being read.", func() float64 { return float64(m.gateway.reading.InUse()) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "cohort_gateway_crowded_total", Help: "Connections of clients closed because there were too many."}, func() float64 { return float64(m.clients.Crowded()) }),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return s
}

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}

func gauge(name, help string, f func() float64) prometheus.GaugeFunc {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
}

// observeRequest records a request; err is nil if the request was served.
func (s *metrics) observeRequest(path string, err error, took time.Duration) {
	reason := wire.Reason("")
	if err != nil {
		reason = api.GatewayProblem(err).Reason
		s.countQuota(err)
	}
	s.requests.WithLabelValues(path, string(reason)).Observe(took.Seconds())
}

// countQuota counts err if it is a refusal by a quota.
func (s *metrics) countQuota(err error) {
	if quota, ok := limit.QuotaOf(err); ok && slices.Contains(quotas, quota) {
		s.quotas.WithLabelValues(quota).Inc()
	}
}

func (s *metrics) handler() http.Handler {
	return promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 2})
}
