package systest

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// cutWay is one way in which a client or a peer uses a unit.
type cutWay struct {
	name string
	ask  func(context.Context) (unit string, err error) // name of the unit whose response was accepted
	head func() wire.Digest                             // newest policy head that the caller knows
	end  func()
}

// observed counts the responses of the cut unit that a way accepted.
type observed struct {
	cutWay

	mu     sync.Mutex // guards all below
	count  int        // responses of the cut unit
	last   time.Time  // time of the newest accepted response
	broken int        // accepted although the caller knew the cut when the request began
}

// watch sends requests until ctx is done.
func (o *observed) watch(ctx context.Context, cut func(wire.Digest) bool) {
	for ctx.Err() == nil {
		knew := cut(o.head())
		asking, cancel := context.WithTimeout(ctx, 2*time.Second)
		unit, err := o.ask(asking)
		cancel()
		if err == nil && unit == twinName {
			o.mu.Lock()
			o.count, o.last = o.count+1, time.Now()
			if knew {
				o.broken++
			}
			o.mu.Unlock()
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (o *observed) accepted() (count, broken int, last time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.count, o.broken, o.last
}

// ways returns every way in which clients and peers use the twins.
func (s *cutScene) ways(t twins) []*observed {
	s.t.Helper()
	scoring := t.scoring
	trusted := trust(s.t, s.Cluster)
	config := client.OpenConfig{Trust: trusted, Gateway: astray(s.t, scoring, scoring)} // sends everything to the twin
	if s.managed {
		config = s.OpenConfig("scoring")
		config.Trust = trusted
	}
	receipts := config
	receipts.Receipts = true
	session, signed := s.OpenChannel(config), s.OpenChannel(receipts)
	oneOff := testworld.Must(client.NewOneOff(s.t.Context(), client.OneOffConfig{Trust: trusted, Gateway: config.Gateway, CA: config.CA}))
	direct := testworld.Must(client.New(client.Config{Trust: trusted, Addresses: []string{scoring.Address}}))
	kept, anew, calling := calls(s.t, s.adder), calls(s.t, s.adder), calls(s.t, t.adder)
	anew.DisableKeepAlives = true
	member := func(transport *http.Transport, to *Replica) func(context.Context) (string, error) {
		return func(ctx context.Context) (string, error) {
			if _, err := fetched(ctx, transport, "https://"+to.Address); err != nil {
				return "", err
			}
			return twinName, nil // either of the twins
		}
	}
	var all []*observed
	for _, w := range []cutWay{
		{"session", func(ctx context.Context) (string, error) { return fetched(ctx, session, scoringURL) },
			func() wire.Digest { return session.Trust().Policy().PolicyHead() }, func() { session.Close(context.Background()) }},
		{"receipt", func(ctx context.Context) (string, error) { return certified(ctx, signed, scoring) },
			func() wire.Digest { return signed.Trust().Policy().PolicyHead() }, func() { signed.Close(context.Background()) }},
		{"one-off", func(ctx context.Context) (string, error) { return fetched(ctx, oneOff, scoringURL) },
			func() wire.Digest { return oneOff.Trust().Policy().PolicyHead() }, oneOff.Close},
		{"TLS", func(ctx context.Context) (string, error) {
			return fetched(ctx, direct, "https://"+ServerName("scoring"))
		},
			func() wire.Digest { return direct.Trust().Policy().PolicyHead() }, direct.Close},
		{"peer, kept connection", member(kept, t.holder), s.adder.Unit.PolicyHead, kept.CloseIdleConnections},
		{"peer, new connections", member(anew, t.holder), s.adder.Unit.PolicyHead, anew.CloseIdleConnections},
		{"peer that calls", member(calling, s.holder), s.holder.Unit.PolicyHead, calling.CloseIdleConnections},
	} {
		all = append(all, &observed{cutWay: w})
	}
	return all
}

// fetched sends a request and returns the content of the response.
func fetched(ctx context.Context, rt http.RoundTripper, url string) (string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := rt.RoundTrip(r)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("got status %d: %s", response.StatusCode, body)
	}
	return string(body), err
}

// certified is fetched with a receipt: a response counts if the newest trust accepts its
// receipt.
func certified(ctx context.Context, ch *client.Channel, twin *Replica) (string, error) {
	var record client.Record
	if _, err := fetched(client.WithRecord(ctx, &record), ch, scoringURL); err != nil {
		return "", err
	}
	receipt, err := client.VerifyReceipt(record, ch.Trust(), time.Now())
	if err == nil && receipt.Unit.UnitID() == twin.Unit.ID() {
		return twinName, nil
	}
	return "", err
}

// cutRound is the result of one cut for each way: how long after the adoption the last
// response of the cut unit was accepted, and whether the caller knew the cut at the end.
type cutRound map[string]cutFigure

type cutFigure struct {
	last time.Duration
	knew bool
}

// round cuts twins off and watches every way. With kill it kills the authority once the cut
// is adopted, and restarts it at the end.
func (s *cutScene) round(kill bool) cutRound {
	s.t.Helper()
	t := s.twins()
	defer t.kill()
	all := s.ways(t)
	var adopted wire.Digest
	var mu sync.Mutex // guards adopted
	knows := func(head wire.Digest) bool {
		mu.Lock()
		defer mu.Unlock()
		return !adopted.IsZero() && head == adopted
	}
	ctx, stop := context.WithCancel(s.t.Context())
	var watching sync.WaitGroup
	defer func() {
		stop()
		watching.Wait()
		for _, o := range all {
			o.end()
		}
	}()
	for _, o := range all {
		watching.Go(func() { o.watch(ctx, knows) })
	}
	for _, o := range all {
		testworld.Within(s.t, 20*time.Second, "a response of the twin by "+o.name, func() bool { count, _, _ := o.accepted(); return count > 0 })
	}
	before := s.Approved()
	t.link.parted.Lock()
	defer t.link.parted.Unlock()
	at := time.Now()
	s.adoptCut(t)
	if kill {
		s.KillAuthority()
		defer s.StartAuthority()
	}
	mu.Lock()
	adopted = testworld.Must(before.Next(s.Steps[len(s.Steps)-1])).PolicyHead()
	mu.Unlock()
	return settled(s.t, all, at, knows)
}

// quietTime is how long a way must accept nothing from a twin before it counts as ended.
const quietTime = 1500 * time.Millisecond

// settled waits until every way that knows the cut accepts nothing more.
func settled(t *testing.T, all []*observed, at time.Time, knows func(wire.Digest) bool) cutRound {
	t.Helper()
	limit := at.Add(30 * time.Second)
	for {
		out, over, ignorant := cutRound{}, true, 0
		for _, o := range all {
			_, broken, last := o.accepted()
			if broken > 0 {
				t.Errorf("%s: accepted %d responses of the cut unit although the cut was known", o.name, broken)
				return out
			}
			knew := knows(o.head())
			out[o.name] = cutFigure{max(0, last.Sub(at)), knew}
			if knew {
				over = over && time.Since(last) > quietTime
			} else {
				ignorant++
			}
		}
		settling := 2 * quietTime // for news that travels from one unit to another
		if over && time.Since(at) > quietTime && (ignorant == 0 || time.Since(at) > settling) || time.Now().After(limit) {
			return out
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// TestTimeToCut: units that are cut off continue to serve as before. For each way of using
// them, the test prints how long after the adoption their last response was accepted. No
// caller that knows the cut accepts a response. The long form makes 200 cuts of each kind,
// and requires a 99th percentile of at most 5 s.
func TestTimeToCut(t *testing.T) {
	if testing.Short() {
		t.Skip("cuts units off for half a minute")
	}
	rounds := 2
	if full() {
		rounds = 200
	}
	for _, scene := range []struct {
		name          string
		managed, kill bool
	}{{"with a manager", true, false}, {"without a manager", false, false}, {"the authority killed", true, true}} {
		for _, mode := range []policyfile.KeyMode{policyfile.Shared, policyfile.PerUnit} {
			t.Run(scene.name+"/"+string(mode), func(t *testing.T) {
				waits(t)
				s := newCutScene(t, mode, scene.managed)
				figures, ignorant := map[string][]time.Duration{}, map[string]int{}
				for range rounds {
					for way, f := range s.round(scene.kill) {
						if f.knew {
							figures[way] = append(figures[way], f.last)
						} else {
							ignorant[way]++
						}
					}
					if t.Failed() {
						return
					}
				}
				report(t, figures, ignorant, rounds, scene.kill)
			})
		}
	}
}

// report prints the figures of each way. While the authority serves, every way must have
// learned of every cut.
func report(t *testing.T, figures map[string][]time.Duration, ignorant map[string]int, rounds int, killed bool) {
	t.Helper()
	var lines []string
	for way, all := range figures {
		slices.Sort(all)
		p := func(share int) time.Duration { return all[min(len(all)-1, len(all)*share/100)].Round(time.Millisecond) }
		lines = append(lines, fmt.Sprintf("%-22s %d cuts known: p50 %v, p99 %v, longest %v; %d not known", way, len(all), p(50), p(99), p(100), ignorant[way]))
		if full() && p(99) > 5*time.Second {
			t.Errorf("%s: the 99th percentile is %v, want at most 5s", way, p(99))
		}
	}
	for way, n := range ignorant {
		if !killed {
			t.Errorf("%s: %d of %d cuts were not known after %v", way, n, rounds, 2*quietTime)
		}
	}
	slices.Sort(lines)
	t.Logf("from the adoption to the last response of the cut unit that was accepted:\n%s", strings.Join(lines, "\n"))
}
