package systest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/client"
)

// Load is an open-loop load on one client: requests leave at a fixed rate, whether or not
// responses arrive. They alternate between GET and POST with an Idempotency-Key, with a
// separate rate of POST requests without a key.
type Load struct {
	Client *client.Client
	URL    string // of the handler under load
	Body   string // of POST requests
	Post   string // path of POST requests
	Rate   int    // GET and POST requests with a key per second, together
	Bare   int    // POST requests without a key per second, counted separately
	For    time.Duration
}

// Outcome is the result of a load.
type Outcome struct {
	Sent      int
	Failed    []error // requests that may be retried
	Bare      int
	Maybe     int             // POST requests without a key that ended in ErrMaybeExecuted
	BareOther []error         // POST requests without a key that ended in any other error
	Stale     int             // responses under an expired certificate
	Latency   []time.Duration // sorted, of responses to requests that may be retried
}

// Quantile returns the latency that a share q of the requests did not exceed.
func (o *Outcome) Quantile(q float64) time.Duration {
	if len(o.Latency) == 0 {
		return 0
	}
	return o.Latency[min(int(q*float64(len(o.Latency))), len(o.Latency)-1)]
}

// String returns the figures in one line.
func (o *Outcome) String() string {
	return fmt.Sprintf("sent %d, failed %d, p50 %v, p99 %v, p99.9 %v, max %v; without a key %d, cut off %d, other errors %d; on an expired certificate %d",
		o.Sent, len(o.Failed), o.Quantile(.5), o.Quantile(.99), o.Quantile(.999), o.Quantile(1), o.Bare, o.Maybe, len(o.BareOther), o.Stale)
}

// requestTimeout bounds one request; a longer request counts as failed.
const requestTimeout = 10 * time.Second

// Run sends the load and waits for every response.
func (l Load) Run(ctx context.Context) *Outcome {
	var (
		out Outcome
		mu  sync.Mutex // guards out
		wg  sync.WaitGroup
	)
	interval := time.Second / time.Duration(l.Rate+l.Bare)
	begin := time.Now()
	for n := range int(l.For / interval) {
		due := begin.Add(time.Duration(n) * interval)
		time.Sleep(time.Until(due))
		bare := l.Bare > 0 && n%((l.Rate+l.Bare)/l.Bare) == 0
		wg.Go(func() {
			stale, err := l.doRequest(ctx, n, bare)
			took := time.Since(due)
			mu.Lock()
			defer mu.Unlock()
			out.count(bare, took, stale, err)
		})
	}
	wg.Wait()
	slices.Sort(out.Latency)
	return &out
}

func (o *Outcome) count(bare bool, took time.Duration, stale bool, err error) {
	if stale {
		o.Stale++
	}
	switch {
	case bare:
		o.Bare++
		if errors.Is(err, client.ErrMaybeExecuted) {
			o.Maybe++
		} else if err != nil {
			o.BareOther = append(o.BareOther, err)
		}
	case err != nil:
		o.Sent++
		o.Failed = append(o.Failed, err)
	default:
		o.Sent++
		o.Latency = append(o.Latency, took)
	}
}

// doRequest sends the n-th request and reads its response.
func (l Load) doRequest(ctx context.Context, n int, bare bool) (stale bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	req, err := l.request(ctx, n, bare)
	if err != nil {
		return false, err
	}
	resp, err := l.Client.RoundTrip(req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	stale = servedAt(resp).After(resp.TLS.PeerCertificates[0].NotAfter)
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return stale, fmt.Errorf("reading the response: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return stale, fmt.Errorf("status %d", resp.StatusCode)
	}
	return stale, nil
}

// servedAtHeader names the field with the time at which the handler was called, in
// nanoseconds since 1970. The client's own time does not show staleness: a response sent in
// time may reach a slowly scheduled client after the certificate's end.
const servedAtHeader = "X-Served-At"

func servedAt(resp *http.Response) time.Time {
	nanos, err := strconv.ParseInt(resp.Header.Get(servedAtHeader), 10, 64)
	if err != nil {
		return time.Now()
	}
	return time.Unix(0, nanos)
}

func (l Load) request(ctx context.Context, n int, bare bool) (*http.Request, error) {
	if !bare && n%2 == 0 {
		return http.NewRequestWithContext(ctx, http.MethodGet, l.URL, nil)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.URL+l.Post, strings.NewReader(l.Body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	if !bare {
		req.Header.Set("Idempotency-Key", fmt.Sprintf("load-%d", n))
	}
	return req, nil
}
