package collateral

import (
	"bytes"
	"crypto/x509"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/nitro"
	"github.com/cohort-tee/cohort/attest/platforms"
)

// TestNitro: the lists that AWS's certificates name are had from a mirror, and
// appraisal that demands them holds.
func TestNitro(t *testing.T) {
	vendor := attesttest.NewNitroVendor(noon)
	vendor.Regions = true
	document := evidence(t, vendor.Attester(attesttest.MeasureNitro("image")))
	lists := vendor.Endorsements()
	s := serve(t)
	s.knows = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name, role := range map[string]string{"region": "root_crl", "zone": "region_crl"} {
			if strings.HasSuffix(attesttest.NitroList(name), r.URL.Path) {
				w.Write(lists[role])
				return
			}
		}
		http.NotFound(w, r)
	})
	c := New(Config{Documents: platforms.Supported().Documents, Sources: map[string]string{"aws": s.URL}, Client: s.client, Clock: func() time.Time { return noon }})
	got, err := c.Endorse(t.Context(), document)
	if err != nil || !bytes.Equal(got["root_crl"], lists["root_crl"]) || !bytes.Equal(got["region_crl"], lists["region_crl"]) {
		t.Fatalf("got %d endorsements, %v, want both lists", len(got), err)
	}
	rules := vendor.Rules()
	rules.CRL = attest.CRLRequired
	if _, err := nitro.Platform().Appraiser().Appraise(document.Raw, got, rules, noon); err != nil {
		t.Error(err)
	}
}

// TestNitroPlaces: only AWS's own buckets are asked, and nobody where policy of the
// operator says so.
func TestNitroPlaces(t *testing.T) {
	vendor := attesttest.NewNitroVendor(noon)
	vendor.Regions = true
	urls := func(source string, edit func(c *x509.Certificate)) (all []string) {
		vendor.Edit = edit
		for _, it := range New(Config{Documents: platforms.Supported().Documents, Sources: map[string]string{"aws": source}}).items(evidence(t, vendor.Attester(attesttest.MeasureNitro("image")))) {
			all = append(all, it.Role+" "+it.url+" "+it.Name)
		}
		return all
	}
	place := func(of, url string) func(c *x509.Certificate) {
		return func(c *x509.Certificate) {
			if c.Subject.CommonName == of {
				c.CRLDistributionPoints = []string{url}
			}
		}
	}
	root, region := attesttest.NitroList("region"), attesttest.NitroList("zone")
	both := "root_crl " + root + " nitro/ab4960cc-7d63-42bd-9e9f-59338cb67f84.der, region_crl " + region + " nitro/1b155830-8279-4d8b-a529-98dc11ced7c2.der"
	for name, row := range map[string]struct {
		source string
		edit   func(c *x509.Certificate)
		want   string
	}{
		"as the certificates say": {"aws", nil, both},
		"nobody":                  {"", nil, ""},
		"another host":            {"aws", place("region", strings.Replace(root, "amazonaws.com", "amazonaws.com.evil.example", 1)), both[strings.Index(both, "region_crl"):]},
		"another bucket":          {"aws", place("zone", strings.Replace(region, "crl-ap", "x-ap", 1)), both[:strings.Index(both, ", ")]},
		"two regions":             {"aws", place("zone", strings.Replace(region, "s3.ap-south-1", "s3.eu-north-1", 1)), both[:strings.Index(both, ", ")]},
		"another file":            {"aws", place("zone", strings.Replace(region, ".crl", "/../x", 1)), both[:strings.Index(both, ", ")]},
		"one named again":         {"aws", place("instance", strings.Replace(root, "ab4960cc", "00000000", 1)), both},
	} {
		if got := strings.Join(urls(row.source, row.edit), ", "); got != row.want {
			t.Errorf("%s: got %q, want %q", name, got, row.want)
		}
	}
}
