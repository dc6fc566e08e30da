package nitro

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/internal/pki"
	"github.com/cohort-tee/cohort/internal/wire"
)

// listRoles are the roles of revocation lists, by who signs: the root, AWS's
// authority of a region, and that of a zone.
var listRoles = []string{"root_crl", "region_crl", "zone_crl"}

// revocations looks each certificate of a chain, leaf first, up in the list of its
// issuer. A list that is there is checked. Where the rule is required, one is needed
// for each certificate that names where it is, as AWS's of regions and zones do. It
// returns when the newest of the lists was issued, zero without any.
func revocations(chain []*x509.Certificate, endorsed attest.Endorsements, rule attest.CRLRule, at time.Time) (issued time.Time, err error) {
	var times []pki.Validity
	for i := len(chain) - 1; i > 0; i-- {
		issuer, cert := chain[i], chain[i-1]
		role := "" // of an authority whose list has none
		if n := len(chain) - 1 - i; n < len(listRoles) {
			role = listRoles[n]
		}
		der := endorsed[role]
		if len(der) == 0 {
			if len(cert.CRLDistributionPoints) > 0 && rule == attest.CRLRequired {
				return time.Time{}, wire.Refuse(wire.CRLMissing, "nitro: revocation list of "+issuer.Subject.CommonName, "evidence without it", cert.CRLDistributionPoints[0])
			}
			continue
		}
		list, err := aws.ParseRevocationList(der, issuer, func(e pkix.Extension) bool {
			return e.Id.Equal(oidDistribution) && wholeOf(e.Value, cert.CRLDistributionPoints)
		})
		if err != nil {
			return time.Time{}, err
		}
		if err := aws.CheckValidity(at, list.Validity); err != nil {
			return time.Time{}, err
		}
		if err := list.CheckNotRevoked(cert); err != nil {
			return time.Time{}, err
		}
		times = append(times, list.Validity)
	}
	return pki.NewestIssue(times...), nil
}

// oidDistribution is the issuing distribution point of a list (RFC 5280, section
// 5.2.5).
var oidDistribution = asn1.ObjectIdentifier{2, 5, 29, 28}

// wholeOf reports whether an issuing distribution point states no more than where
// the list is, and that this is where the certificate states. A list of some
// certificates or reasons only does not count for all.
func wholeOf(value []byte, places []string) bool {
	for _, in := range []struct{ class, tag int }{
		{asn1.ClassUniversal, asn1.TagSequence}, // the point, and of its fields
		{asn1.ClassContextSpecific, 0},          // its name alone,
		{asn1.ClassContextSpecific, 0},          // in full,
		{asn1.ClassContextSpecific, 6},          // a URI
	} {
		var inner asn1.RawValue
		rest, err := asn1.Unmarshal(value, &inner)
		if err != nil || len(rest) > 0 || inner.Class != in.class || inner.Tag != in.tag {
			return false
		}
		value = inner.Bytes
	}
	return slices.Contains(places, string(value))
}
