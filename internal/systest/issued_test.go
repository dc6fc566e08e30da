package systest

import (
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// issuedAt enrols a unit on a platform and returns the authority's time of issue.
func (e *estate) issuedAt(p attest.Platform) time.Time {
	e.t.Helper()
	u := testworld.Must(e.enrol(p, "scoring 1"))
	return testworld.Must(authorityOf(e.t, e.Cluster).IssuanceLog(e.t.Context(), api.LogQuery{Unit: u.ID().String()})).Entries[0].Time
}

// TestDocumentsRaiseTheTime: a vendor document whose date is slightly ahead of the
// authority's clock raises the authority's time when it admits a unit. A document dated far
// ahead is refused and raises nothing.
func TestDocumentsRaiseTheTime(t *testing.T) {
	t.Parallel()
	near := newVendors(t)
	near.amd.ListFrom = near.now.Add(2 * time.Minute)
	e := settle(t, near, attest.TDX, attest.SNP)
	for _, of := range []struct {
		platform attest.Platform
		want     time.Time
	}{{attest.TDX, near.now}, {attest.SNP, near.now}, {attest.TDX, near.amd.ListFrom}} {
		if got := e.issuedAt(of.platform); !got.Equal(of.want) {
			t.Errorf("%s: issued at %v, want %v", of.platform, got, of.want)
		}
	}
	far := newVendors(t)
	far.amd.ListFrom = far.now.Add(2*time.Minute + time.Second)
	e = settle(t, far, attest.TDX, attest.SNP)
	_, err := e.enrol(attest.SNP, "scoring 1")
	testworld.Refused(t, err, wire.Expired)
	if got := e.issuedAt(attest.TDX); !got.Equal(far.now) {
		t.Errorf("after a refusal: issued at %v, want %v", got, far.now)
	}
}

// TestDocumentsClimb: a document raises the authority's time, and a second one is slightly
// ahead of that. The second is refused, so that a chain of documents cannot lead the
// authority's time away from its clock.
func TestDocumentsClimb(t *testing.T) {
	t.Parallel()
	v := newVendors(t)
	v.amd.ListFrom, v.intel.From = v.now.Add(time.Minute), v.now.Add(3*time.Minute)
	e := settle(t, v, attest.SNP, attest.TDX)
	e.issuedAt(attest.SNP)
	_, err := e.enrol(attest.TDX, "scoring 1")
	testworld.Refused(t, err, wire.ClockSkew)
	if got := e.issuedAt(attest.SNP); !got.Equal(v.amd.ListFrom) {
		t.Errorf("issued at %v, want %v", got, v.amd.ListFrom)
	}
}
