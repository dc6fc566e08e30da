package collateral

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/platforms"
	"github.com/cohort-tee/cohort/internal/wire"
)

// limited is a vendor's service that answers 20 requests at once and one more each 10
// seconds, and 429 beyond; at tells its time.
func (s *scene) limited() (answered, refused *int) {
	answered, refused = new(int), new(int)
	known, tokens, last := s.knows, 20.0, s.at
	s.knows = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tokens, last = min(20, tokens+s.at.Sub(last).Seconds()/10), s.at
		if tokens < 1 {
			*refused++
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		tokens--
		*answered++
		known.ServeHTTP(w, r)
	})
	return answered, refused
}

// invented is a report that no chip made, with a chip id of its own, which passes
// whatever is not signed.
func invented() attest.Evidence {
	report := make([]byte, 1184)
	binary.LittleEndian.PutUint32(report, 3)
	report[0x0a], report[0x34], report[0x188], report[0x189] = 0x02, 1, 0x19, 0x01 // policy, algorithm, Milan
	rand.Read(report[0x1a0:0x1e0])
	return attest.Evidence{Platform: attest.SNP, Raw: report}
}

func passes() error { return nil }

// TestStrangersSpendNothingOfOthers: reports that are made up, as many as strangers
// like and from as many addresses as they have, never bring the vendor to limit the
// rate; the list is renewed all the while; and a chip that nobody has seen is served,
// at once where they have one address, and else when their shares are spent.
func TestStrangersSpendNothingOfOthers(t *testing.T) {
	for _, row := range []struct {
		addresses int
		within    time.Duration
	}{{1, time.Minute}, {50, 90 * time.Minute}} {
		t.Run(fmt.Sprint(row.addresses, " addresses"), func(t *testing.T) {
			s := milan(t)
			answered, refused := s.limited()
			flood := func(n int) {
				for i := range n {
					address := fmt.Sprintf("192.0.2.%d:%d", i%row.addresses, 1024+i)
					if _, err := s.c.EndorseFor(t.Context(), invented(), Stranger{address, passes}); err == nil {
						t.Fatal("a chip that was made up has a certificate")
					}
				}
			}
			s.c.RecordAccepted("203.0.113.1:1") // a cluster that was there before
			flood(200)
			grown := s.vendor.Chip(firmware)
			known := s.knows
			s.knows = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.URL.Path, fmt.Sprintf("%x", grown.ID())) {
					grown.Service().ServeHTTP(w, r)
					return
				}
				known.ServeHTTP(w, r)
			})
			if _, err := s.c.EndorseFor(t.Context(), evidence(t, grown.Attester(attesttest.MeasureSNP("guest"))), Stranger{"203.0.113.1:2", passes}); err != nil {
				t.Errorf("a new machine of a cluster that is known: %v", err)
			}
			served := time.Duration(-1)
			for passed := time.Duration(0); passed < 26*time.Hour; passed += time.Minute {
				s.at = s.at.Add(time.Minute)
				if served < 0 || passed%(10*time.Minute) == 0 {
					flood(2 * row.addresses)
				}
				for _, it := range s.c.dueItems() {
					_, _ = s.c.renew(t.Context(), it, nil)
				}
				if served < 0 {
					_, err := s.c.EndorseFor(t.Context(), s.e, Stranger{"198.51.100.7:1", passes})
					if err == nil {
						served = passed
					} else if !errors.Is(err, wire.TooMany) {
						t.Fatalf("a genuine chip: %v", err)
					}
				}
			}
			if served < 0 || served > row.within {
				t.Errorf("a genuine chip was served after %v, want within %v", served, row.within)
			}
			t.Logf("a genuine chip was served after %v; the vendor answered %d", served, *answered)
			if *refused > 0 {
				t.Errorf("the vendor limited the rate %d times, and answered %d", *refused, *answered)
			}
			for _, status := range s.c.Stats() {
				if status.Role == "crl" && (status.Fault != nil || s.at.Sub(status.Fetched) > 25*time.Hour) {
					t.Errorf("the list is of %v, %v ago: %v", status.Fetched, s.at.Sub(status.Fetched), status.Fault)
				}
			}
			if entries := len(s.c.entries); entries > maxChips+maxShared || len(s.c.budget.inVain) > 200 {
				t.Errorf("got %d entries, %d shares", entries, len(s.c.budget.inVain))
			}
		})
	}
}

// TestScreened: nothing is asked for a stranger whose evidence is refused without a
// document, for lists and statements as for chips, and the refusal is given as it
// is. Where all is at hand he is not screened.
func TestScreened(t *testing.T) {
	refusal := wire.Refuse(wire.NotMeasured, "measurement", "another", "a release's")
	intel, gpus := attesttest.NewDCAPVendor(noon), attesttest.NewNVIDIAVendor(noon)
	amd := attesttest.NewSNPVendor("Milan", noon)
	chip, gpu := amd.Chip(firmware), gpus.GPU("GH100")
	for name, row := range map[string]struct {
		knows http.Handler
		e     attest.Evidence
	}{
		"snp":    {chip.Service(), evidence(t, chip.Attester(attesttest.MeasureSNP("guest")))},
		"tdx":    {intel.Service(), evidence(t, intel.Chip(intel.TCB).Attester(attesttest.MeasureTDX("td")))},
		"nvidia": {gpu.Service(), evidence(t, gpu)},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t)
			s.knows = row.knows
			at, screened := noon, 0
			config := s.config(&at)
			config.Sources["nvidia"] = s.URL
			c := New(config)
			s.count()
			refuses := Stranger{"192.0.2.1:1", func() error { screened++; return refusal }}
			for range 50 {
				_, err := c.EndorseFor(t.Context(), row.e, refuses)
				want(t, err, wire.NotMeasured)
			}
			if got := s.count(); got != 0 || screened != 50 {
				t.Errorf("asked %d times, screened %d times, want 0 and 50", got, screened)
			}
			if _, err := c.EndorseFor(t.Context(), row.e, Stranger{"192.0.2.1:1", passes}); err != nil || s.count() == 0 {
				t.Fatalf("good evidence: %v", err)
			}
			if _, err := c.EndorseFor(t.Context(), row.e, refuses); err != nil || screened != 50 {
				t.Errorf("with all at hand: %v, screened %d times", err, screened)
			}
		})
	}
}

// TestShares: an address has few tries in vain, of IPv6 its whole network, until its
// evidence holds; what the vendor does not answer is no try; and what an authority
// wants on its own account, or has, counts nowhere.
func TestShares(t *testing.T) {
	s := milan(t)
	const mine = "[2001:db8::1]:1"
	try := func(e attest.Evidence, address string) error {
		_, err := s.c.EndorseFor(t.Context(), e, Stranger{address, passes})
		return err
	}
	for range maxInVain {
		want(t, try(invented(), mine), wire.Unavailable)
	}
	err := try(s.e, "[2001:db8::ffff:2]:9")
	want(t, err, wire.TooMany)
	if !strings.Contains(fmt.Sprint(err), "2001:db8::/64") {
		t.Errorf("got %v, want the quota and whose it is", err)
	}
	s.c.RecordAccepted(mine)
	want(t, try(s.e, mine), "")
	for range 100 { // all is at hand
		want(t, try(s.e, mine), "")
	}
	s.answer(status(http.StatusServiceUnavailable))
	for range 10 {
		s.at = s.at.Add(vendorBackoff.Max)
		want(t, try(invented(), "192.0.2.2:1"), wire.Unavailable)
	}
	s.answer(nil)
	s.at = s.at.Add(vendorBackoff.Max)
	for range maxInVain {
		want(t, try(invented(), "192.0.2.2:1"), wire.Unavailable)
	}
	want(t, try(invented(), "192.0.2.2:1"), wire.TooMany)
	s.at = s.at.Add(everyInVain)
	want(t, try(invented(), "192.0.2.2:1"), wire.Unavailable)
	want(t, try(invented(), "192.0.2.2:1"), wire.TooMany)
	_, err = s.c.EndorseFor(t.Context(), s.e, Stranger{})
	want(t, err, wire.BadRequest)
	var left budget
	want(t, left.charge("192.0.2.3", s.at), wire.TooMany)
	if _, err := s.c.Endorse(t.Context(), evidence(t, s.chip.Attester(attesttest.MeasureSNP("another")))); err != nil {
		t.Errorf("on our own account: %v", err)
	}
}

// TestTimesOfTheBudget: a clock that goes back or far ahead gives nobody more than
// the most, and takes nothing that was left.
func TestTimesOfTheBudget(t *testing.T) {
	accepted := newBudget()
	for i := range maxAccepted + 2 {
		accepted.recordAccepted(fmt.Sprintf("10.0.%d.%d", i>>8, i&255), noon.Add(time.Duration(i)))
	}
	if _, first := accepted.accepted["10.0.0.1"]; first || len(accepted.accepted) != maxAccepted {
		t.Errorf("got %d networks remembered, the first among them %v", len(accepted.accepted), first)
	}
	for _, jump := range []time.Duration{0, -time.Hour, -1 << 62, 1 << 62, 1<<63 - 1} {
		b := newBudget()
		taken := 0
		for i := range 3 * maxUnknown {
			if b.charge(fmt.Sprint("192.0.2.", i), noon) == nil {
				taken++
			}
		}
		after := 0
		for i := range 3 * maxUnknown {
			if b.charge(fmt.Sprint("198.51.100.", i), noon.Add(jump)) == nil {
				after++
			}
		}
		if taken != maxUnknown || after > maxUnknown || jump <= 0 && after > 0 {
			t.Errorf("jump of %v: got %d and then %d, want %d and at most as many", jump, taken, after, maxUnknown)
		}
	}
}

func TestNetworks(t *testing.T) {
	for address, want := range map[string]string{
		"192.0.2.1:80": "192.0.2.1", "192.0.2.1": "192.0.2.1", "[::ffff:192.0.2.1]:1": "192.0.2.1",
		"[2001:db8:0:1:2::3]:1": "2001:db8:0:1::/64", "[fe80::1%eth0]:1": "fe80::/64", "": "unknown addresses", "host:1": "unknown addresses",
	} {
		if got := network(address); got != want {
			t.Errorf("%q: got %q, want %q", address, got, want)
		}
	}
}

// TestListsAskedApart: a vendor who limits requests for chips is asked for lists all
// the same, and the other way round.
func TestListsAskedApart(t *testing.T) {
	s := milan(t)
	known := s.knows
	limits := "/vcek/v1/Milan/" + fmt.Sprintf("%x", s.e.Raw[0x1a0:0x1e0])
	s.knows = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, limits) {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		known.ServeHTTP(w, r)
	})
	want(t, s.appraise(t), wire.Unavailable)
	s.at = s.at.Add(time.Minute)
	for _, it := range s.c.items(s.e)[:2] {
		if _, err := s.c.renew(t.Context(), it, nil); err != nil {
			t.Errorf("%s: %v", it.Name, err)
		}
	}
	_, err := s.c.renew(t.Context(), s.c.items(s.e)[2], nil)
	want(t, err, wire.TooMany)
	s.at = noon.Add(time.Hour)
	limits = "/nothing"
	want(t, s.appraise(t), "")
}

// TestEndedAtItsSource: a list that has ended where it comes from is asked for once
// in a while, and not with each request.
func TestEndedAtItsSource(t *testing.T) {
	s := milan(t)
	s.listed(s.vendor, noon.Add(-time.Hour))
	for range 20 {
		want(t, s.appraise(t), wire.Expired)
	}
	if got := s.count(); got != 3 {
		t.Errorf("asked %d times, want once for each of 3 documents", got)
	}
	s.listed(s.vendor, noon.Add(24*time.Hour))
	s.at = noon.Add(absence)
	want(t, s.appraise(t), "")
}

// TestBounded: made-up chips fill no memory, and evict no list. The chip that was used
// least lately makes room.
func TestBounded(t *testing.T) {
	c := New(Config{Documents: platforms.Supported().Documents, Clock: func() time.Time { return noon }})
	c.remember(&entry{item: item{Document: attest.Document{Name: "list", Kind: attest.RevocationListDocument}}})
	for i := range maxChips + 10 {
		c.remember(&entry{item: item{Document: attest.Document{Name: fmt.Sprint(i), OfChip: true}}, used: noon.Add(time.Duration(i))})
	}
	if got := len(c.entries); got != maxChips+1 {
		t.Errorf("got %d entries, want %d", got, maxChips+1)
	}
	for name, want := range map[string]bool{"list": true, "9": false, "10": true, fmt.Sprint(maxChips + 9): true} {
		if got := c.entries[name] != nil; got != want {
			t.Errorf("%s: got there %v, want %v", name, got, want)
		}
	}
	for i := range maxShared + 10 {
		c.remember(&entry{item: item{Document: attest.Document{Name: fmt.Sprint("more ", i)}}, used: noon})
	}
	if got := len(c.entries); got != maxChips+maxShared || c.entries["list"] == nil || c.entries["10"] == nil {
		t.Errorf("got %d entries, want %d, the list and the chips among them", got, maxChips+maxShared)
	}
}

// TestFlightsOfStrangers: many units of one new machine cost its address one try, and
// a network whose share is spent spoils no other's request for the same chip.
func TestFlightsOfStrangers(t *testing.T) {
	s := milan(t)
	for range maxInVain {
		want(t, func() error {
			_, err := s.c.EndorseFor(t.Context(), invented(), Stranger{"192.0.2.66:1", passes})
			return err
		}(), wire.Unavailable)
	}
	s.count()
	var wait sync.WaitGroup
	for i := range 20 {
		wait.Go(func() {
			_, err := s.c.EndorseFor(t.Context(), s.e, Stranger{fmt.Sprint("192.0.2.1:", 1024+i), passes})
			want(t, err, "")
		})
		wait.Go(func() {
			_, err := s.c.EndorseFor(t.Context(), s.e, Stranger{fmt.Sprint("192.0.2.66:", 1024+i), passes})
			if err != nil && !errors.Is(err, wire.TooMany) {
				t.Errorf("the spent share: %v", err)
			}
		})
	}
	wait.Wait()
	if got := s.count(); got > 3 { // the list is at hand since the invented chips
		t.Errorf("asked %d times, want once for each document", got)
	}
	if mine := s.c.budget.inVain["192.0.2.1"].asked; mine > 1 {
		t.Errorf("got %v tries counted, want 1", mine)
	}
}

// TestKnownModel: a statement on a model that is known is renewed for any stranger
// once it has ended, though the budget of unknown ones is spent.
func TestKnownModel(t *testing.T) {
	intel, s := attesttest.NewDCAPVendor(noon), serve(t)
	s.knows = intel.Service()
	at := noon
	c := New(s.config(&at))
	e := evidence(t, intel.Chip(intel.TCB).Attester(attesttest.MeasureTDX("td")))
	if _, err := c.EndorseFor(t.Context(), e, Stranger{"192.0.2.1:1", passes}); err != nil {
		t.Fatal(err)
	}
	c.budget = budget{}
	at = at.AddDate(1, 0, 0)
	s.count()
	if _, err := c.EndorseFor(t.Context(), e, Stranger{"192.0.2.1:1", passes}); err != nil {
		t.Error(err)
	}
	if !slices.ContainsFunc(s.asked, func(path string) bool { return strings.Contains(path, "/tcb?fmspc=") }) {
		t.Errorf("asked for %q, want the statement on the model too", s.asked)
	}
}
