package channelhttp

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// watch collects the pairs of all traffic through the gateway.
func (p *pairs) watch(c *cluster) {
	c.tampers = func(r *http.Request) (*http.Response, error) {
		if r.URL.Path != wire.PathRequest {
			return nil, nil
		}
		raw := testworld.Must(io.ReadAll(r.Body))
		header := raw[:wire.HeaderSize]
		p.message(fmt.Sprintf("request %x", header), raw[wire.HeaderSize:])
		r.Body = io.NopCloser(bytes.NewReader(raw))
		response, err := c.route(r)
		b, _ := io.ReadAll(response.Body)
		if response.StatusCode == http.StatusOK {
			p.message(fmt.Sprintf("answer %x %x", header, b[:answerPrefix]), b[answerPrefix:])
		}
		response.Body = io.NopCloser(bytes.NewReader(b))
		return response, err
	}
}

// TestPairsAreDistinct: under parallel load, two units with one ring never use a pair
// twice.
func TestPairsAreDistinct(t *testing.T) {
	c := newCluster(t, 2, echo)
	var p pairs
	p.watch(c)
	var all sync.WaitGroup
	for range 2 {
		rt := c.client(c.byTask(), 0)
		for range 4 {
			all.Go(func() {
				for range 100 {
					_, _ = say(t, rt, "GET", "/", "x")
					_, _ = say(t, rt, "POST", "/", "x")
				}
			})
		}
	}
	all.Wait()
	if p.twice > 0 || p.count < 3200 {
		t.Errorf("got %d pairs twice of %d", p.twice, p.count)
	}
}
