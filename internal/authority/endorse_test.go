package authority

import (
	"bytes"
	"context"
	"encoding/json"
	"math"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/metrics"
	"github.com/cohort-tee/cohort/internal/authority/trustedclock"
	"github.com/cohort-tee/cohort/internal/collateral"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/prometheus/client_golang/prometheus"
)

// vendorDesk is an endorser that records the evidence it is called with.
type vendorDesk struct {
	mu     sync.Mutex
	asked  []attest.Platform
	from   []string // addresses of senders of evidence
	proved []string
	absent bool   // no documents are cached, so evidence is screened
	said   []byte // the value of role checked
	err    error
}

func (d *vendorDesk) open(collateral.Cache) Endorser { return d }

func (d *vendorDesk) EndorseFor(ctx context.Context, e attest.Evidence, s collateral.Stranger) (attest.Endorsements, error) {
	if d.absent {
		if err := s.Screen(); err != nil {
			return nil, err
		}
	}
	d.mu.Lock()
	d.from = append(d.from, s.Address)
	d.mu.Unlock()
	return d.Endorse(ctx, e)
}

func (d *vendorDesk) RecordAccepted(address string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.proved = append(d.proved, address)
}

func (d *vendorDesk) Endorse(_ context.Context, e attest.Evidence) (attest.Endorsements, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked = append(d.asked, e.Platform)
	endorsed := attest.Endorsements{"note": []byte("of the vendor")}
	if d.said != nil {
		endorsed[attest.RoleChecked] = d.said
	}
	return endorsed, d.err
}

func (d *vendorDesk) Stats() []collateral.Status {
	now := time.Now()
	return []collateral.Status{
		{Name: "a", Role: "crl", Fetched: now.Add(-time.Hour), Expires: now.Add(time.Hour)},
		{Name: "b", Role: "crl", Fetched: now.Add(-2 * time.Hour), Expires: now.Add(3 * time.Hour), Fault: wire.Unavailable},
		{Name: "c", Role: "vcek", Fault: wire.Unavailable},
	}
}

// TestDocuments: for each role the metrics have the age of the oldest document and the time left
// of the first to expire. For a role without documents they have only the fault.
func TestDocuments(t *testing.T) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(metrics.Documents{Stats: new(vendorDesk).Stats, Clock: trustedclock.System()})
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			got[strings.TrimPrefix(f.GetName(), "cohort_authority_collateral_")+" "+m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
		}
	}
	for name, want := range map[string]float64{"age_seconds crl": 7200, "left_seconds crl": 3600, "faults crl": 1, "faults vcek": 1} {
		if math.Abs(got[name]-want) > 60 {
			t.Errorf("%s: got %v, want %v", name, got[name], want)
		}
	}
	if len(got) != 4 {
		t.Errorf("got %v, want 4 numbers", got)
	}
}

// TestEndorser: the endorser is called for evidence of platforms that the policy names, the
// authority's own included; clients receive that with the endorsements. When the endorser fails,
// the request is refused with its reason and nothing is issued.
func TestEndorser(t *testing.T) {
	w := newWorld(t)
	desk := new(vendorDesk)
	config := w.config("authority")
	config.Endorser = desk.open
	a, err := Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	if len(desk.asked) == 0 {
		t.Error("not asked about the authority itself")
	}
	var own attest.Evidence
	response, err := a.trust(t.Context(), netip.Addr{}, api.TrustQuery{Task: "scoring", Nonce: make([]byte, 32)})
	if err == nil {
		err = own.UnmarshalJSON(response.Evidence)
	}
	if err != nil || string(own.Endorsed["note"]) != "of the vendor" {
		t.Errorf("a client gets %q, %v, want what the vendor said", own.Endorsed["note"], err)
	}
	if _, err := w.scoring().enrol(direct{a}); err != nil {
		t.Error(err)
	}
	desk.asked, desk.err = nil, wire.Refuse(wire.Unavailable, "vendor", "nothing", "an answer")
	_, err = w.scoring().enrol(direct{a})
	testworld.Refused(t, err, wire.Unavailable)
	_, err = a.trust(t.Context(), netip.Addr{}, api.TrustQuery{Task: "scoring", Nonce: make([]byte, 32)})
	testworld.Refused(t, err, wire.Unavailable)
	if len(desk.asked) != 2 || issued(t, a) != 1 {
		t.Errorf("asked %d times, issued %d, want 2 and 1", len(desk.asked), issued(t, a))
	}
	desk.asked = nil
	stranger := attest.Evidence{Platform: attest.SNP, Raw: []byte{1}, Devices: []attest.Evidence{{Platform: attest.NvidiaGPU, Raw: []byte{1}}}}
	if got, err := a.endorseEvidence(t.Context(), stranger, a.inForce().approved, nil); err != nil || len(got) != 2 || got[0] != nil || got[1] != nil || desk.asked != nil {
		t.Errorf("evidence that policy does not name: got %v, %v, asked %v", got, err, desk.asked)
	}
}

// TestReportSaysWhenChecked: a signed report states when the authority fetched the vendor's
// documents, and the documents are beside it. A unit's own value for that time is ignored.
func TestReportSaysWhenChecked(t *testing.T) {
	w := newWorld(t)
	signed := attest.FrameFetched([]attest.Fetched{{Role: "crl", Digest: wire.Sum(nil), At: time.Unix(1, 0), Until: time.Unix(2, 0)}})
	for name, row := range map[string]struct{ unit, endorser, want []byte }{
		"the authority": {nil, signed, signed},
		"both":          {[]byte("not even framed"), signed, signed},
		"the unit":      {[]byte("not even framed"), nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			config := w.config("authority")
			config.Endorser = (&vendorDesk{said: row.endorser}).open
			a, err := Open(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			p := w.scoring()
			challenge, err := direct{a}.Challenge(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			r := p.request(challenge.Nonce, nil)
			if row.unit != nil {
				var e attest.Evidence
				if err := e.UnmarshalJSON(r.Evidence); err != nil {
					t.Fatal(err)
				}
				r.Evidence = testworld.Must(json.Marshal(e.WithEndorsements(attest.Endorsements{attest.RoleChecked: row.unit})))
			}
			sealed, err := direct{a}.Certify(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			report, err := p.openReport(r, sealed)
			if err != nil || !bytes.Equal(report.Checked, row.want) {
				t.Errorf("got %x, %v, want %x", report.Checked, err, row.want)
			}
			if want := (map[string][]byte{"note": []byte("of the vendor")}); !reflect.DeepEqual(sealed.Endorsements, want) {
				t.Errorf("beside the report: got %q, want %q", sealed.Endorsements, want)
			}
		})
	}
}
