package pki

import (
	"crypto/x509"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Validity is when a certificate, revocation list or statement counts, both ends
// included.
type Validity struct {
	Of          string // for people
	From, Until time.Time
	// Issued states that From is when a list or statement was issued. It counts from 2
	// minutes before that: so much the clocks of an honest vendor and reader differ.
	Issued bool
}

// Validities are those of certificates.
func Validities(certs ...*x509.Certificate) []Validity {
	var all []Validity
	for _, cert := range certs {
		all = append(all, Validity{Of: cert.Subject.CommonName, From: cert.NotBefore, Until: cert.NotAfter})
	}
	return all
}

// CheckValidity refuses, with reason "expired", what does not count at a time.
func (v Vendor) CheckValidity(at time.Time, all ...Validity) error {
	for _, s := range all {
		from := s.From
		if s.Issued {
			from = from.Add(-wire.MaxClockJump)
		}
		if at.Before(from) || at.After(s.Until) {
			return wire.Refuse(wire.Expired, v.Name+": validity of "+s.Of, at.UTC().Format(time.RFC3339),
				s.From.UTC().Format(time.RFC3339)+" to "+s.Until.UTC().Format(time.RFC3339))
		}
	}
	return nil
}

// NewestIssue is when the newest list or statement was issued, zero without any.
func NewestIssue(all ...Validity) (at time.Time) {
	for _, s := range all {
		if s.Issued && s.From.After(at) {
			at = s.From
		}
	}
	return at
}
