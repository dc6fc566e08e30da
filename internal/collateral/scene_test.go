package collateral

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/platforms"
	"github.com/cohort-tee/cohort/attest/snp"
	"github.com/cohort-tee/cohort/internal/wire"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// service is a vendor on the local network: what he knows, what he answers
// instead, and what he was asked.
type service struct {
	URL    string
	client *http.Client

	mu      sync.Mutex
	knows   http.Handler
	instead func(w http.ResponseWriter) // nil while he answers
	asked   []string
}

func serve(t testing.TB) *service {
	t.Helper()
	s := new(service)
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	// Connections do not outlive their request, so that in a bubble of virtual
	// time nothing waits for the network.
	s.URL, s.client = server.URL, &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	return s
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, r.URL.RequestURI())
	if s.instead != nil {
		s.instead(w)
		return
	}
	s.knows.ServeHTTP(w, r)
}

func (s *service) answer(instead func(w http.ResponseWriter)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.instead = instead
}

// listed sets the end of a vendor's list.
func (s *service) listed(v *attesttest.SNPVendor, until time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v.ListUntil = until
}

// count is how often he was asked since the last count.
func (s *service) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.asked)
	s.asked = nil
	return n
}

func status(code int, header ...string) func(w http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		if len(header) > 0 {
			w.Header().Set(header[0], header[1])
		}
		w.WriteHeader(code)
	}
}

// config asks the service for everything, at a time that at holds.
func (s *service) config(at *time.Time) Config {
	return Config{Documents: platforms.Supported().Documents, Sources: map[string]string{"amd": s.URL, "intel": s.URL + "/", "intel-root": s.URL}, Client: s.client, Clock: func() time.Time { return *at }}
}

type attester interface {
	Attest(context.Context, attest.ReportData) (attest.Evidence, error)
}

func evidence(t testing.TB, device attester) attest.Evidence {
	t.Helper()
	e, err := device.Attest(t.Context(), attest.ReportData{1})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

var firmware = attest.SNPTCB{FMC: 5, Bootloader: 4, TEE: 3, SNP: 22, Microcode: 115}

// scene is a chip of AMD's, its vendor's service, and a Collateral.
type scene struct {
	*service
	vendor *attesttest.SNPVendor
	chip   *attesttest.SNPChip
	at     time.Time
	c      *Collateral
	e      attest.Evidence
}

func milan(t testing.TB) *scene {
	t.Helper()
	s := &scene{service: serve(t), vendor: attesttest.NewSNPVendor("Milan", noon), at: noon}
	s.chip = s.vendor.Chip(firmware)
	s.knows = s.chip.Service()
	s.c = New(s.config(&s.at))
	s.e = evidence(t, s.chip.Attester(attesttest.MeasureSNP("guest")))
	return s
}

// appraise endorses and appraises at the scene's time.
func (s *scene) appraise(t testing.TB) error {
	t.Helper()
	endorsed, err := s.c.Endorse(t.Context(), s.e)
	if err != nil {
		return err
	}
	rules := s.vendor.Rules()
	rules.SNP.HiddenChips = true // as a provider's key has it
	_, err = snp.Platform().Appraiser().Appraise(s.e.Raw, s.e.WithEndorsements(endorsed).Endorsed, rules, s.at)
	return err
}

func (s *scene) fault(t testing.TB, role string) error {
	t.Helper()
	for _, status := range s.c.Stats() {
		if strings.Contains(status.Name, role) {
			return status.Fault
		}
	}
	t.Fatalf("nothing known of %s", role)
	return nil
}

func want(t testing.TB, got error, reason wire.Reason) {
	t.Helper()
	if reason == "" && got != nil || reason != "" && !errors.Is(got, reason) {
		t.Errorf("got %v, want reason %q", got, reason)
	}
}
