// Package trustresponse signs and verifies what docs/spec/trust.md specifies: the authority's
// response to a request for trust, after the policy history and under a policy that the owners
// signed.
//
// A [Statement] is the authority's signature over evidence of itself. A [Check] verifies a
// response. It trusts policy and nothing in the response. A response counts when it came over a
// connection to the authority that the caller has verified ([Check.Verify]), or when the authority
// signed it, whatever relay passed it on ([Check.VerifyRelayed]). A check refuses evidence that was made
// for another nonce, time, root or policy head, code that policy does not name for the authority,
// and identity roots that the authority root or the parties of a group did not certify.
//
// Verification is pure: no network and no clock.
//
// Files, each using those before it: pin.go, statement.go, check.go.
package trustresponse

import (
	"crypto/x509"
	"fmt"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// Check is what a client requires of one response. All fields are required unless they say
// otherwise.
type Check struct {
	Policy   policy.Approved // the newest policy
	Pinned   []Identity      // of [Pin.Identities] under that policy
	Parties  []attest.Digest // [Pin.PartyKeys]; optional
	Verifier *attest.Verifier
	Nonce    []byte // that the client sent; nil if none
	// Secret is that of the credential that the client sent; nil if none.
	Secret func(attest.TPMKeys) []byte
	At     time.Time // the client's time
}

// Verified are the verified parts of a response.
type Verified struct {
	Root       *x509.Certificate // of the authority
	Evidence   attest.Result     // of the authority
	Identities []Identity        // the pinned ones, with their roots
	StatedAt   time.Time         // when the authority signed its statement; zero without one
}

// Verify verifies a response to a request with a nonce that came over a connection to the
// authority itself.
func (c Check) Verify(unverified api.TrustResponse) (Verified, error) {
	root, err := ParseRoot(unverified)
	if err != nil {
		return Verified{}, err
	}
	claim := Claim{Nonce: c.Nonce, Root: c.Policy.Document().Authority.Root, Head: c.Policy.PolicyHead()}
	return c.verifyBound(unverified, root, claim.ReportData())
}

// VerifyRelayed verifies a response that any party passed on. It refuses one without a statement
// with "malformed", and a statement with the reasons of [ParseStatement].
func (c Check) VerifyRelayed(unverified api.TrustResponse) (Verified, error) {
	root, err := ParseRoot(unverified)
	if err != nil {
		return Verified{}, err
	}
	if len(unverified.Statement) == 0 {
		return Verified{}, wire.Refuse(wire.Malformed, "trust: size of the statement", 0, "the authority's statement, for the response came from a relay; an authority of an earlier version sends none")
	}
	statement, err := ParseStatement(unverified.Statement, Expect{
		Policy: c.Policy, Root: root, Nonce: c.Nonce, Evidence: unverified.Evidence, At: c.At,
	})
	if err != nil {
		return Verified{}, err
	}
	v, err := c.verifyBound(unverified, root, statement.ReportData())
	if err != nil {
		return Verified{}, err
	}
	v.StatedAt = statement.SignedAt()
	return v, nil
}

// verifyBound makes the checks that do not depend on who sent the response.
func (c Check) verifyBound(unverified api.TrustResponse, root *x509.Certificate, bound attest.ReportData) (Verified, error) {
	v := Verified{Root: root}
	if n := len(unverified.History.Entries); n > 0 {
		return Verified{}, wire.Refuse(wire.Malformed, "trust: steps in the response", n, "none: the history is fetched by itself")
	}
	// The authority's policy may have changed since the history was fetched.
	if got, want := unverified.History.Head, c.Policy.PolicyHead(); got != want {
		return Verified{}, wire.Refuse(wire.Behind, "trust: policy head", got, want)
	}
	evidence, err := ParseEvidence(unverified)
	if err != nil {
		return Verified{}, err
	}
	if v.Evidence, err = c.appraise(evidence, bound); err != nil {
		return Verified{}, fmt.Errorf("appraising the authority: %w", err)
	}
	for _, want := range c.Pinned {
		found, err := c.findIdentity(unverified.Identities, want, root)
		if err != nil {
			return Verified{}, fmt.Errorf("checking identity of %s: %w", want, err)
		}
		v.Identities = append(v.Identities, found)
	}
	return v, nil
}

// ParseRoot returns the authority root's certificate in a response. It is not verified.
func ParseRoot(unverified api.TrustResponse) (*x509.Certificate, error) {
	root, err := parseCertificate(unverified.Authority)
	if err != nil {
		return nil, fmt.Errorf("reading the authority root: %w", err)
	}
	return root, nil
}

// ParseEvidence returns the evidence in a response. It is not verified.
func ParseEvidence(unverified api.TrustResponse) (attest.Evidence, error) {
	var e attest.Evidence
	err := e.UnmarshalJSON(unverified.Evidence)
	return e, err
}

// appraise appraises the authority's evidence: the policy names the authority's code and accepts
// its TEE, and the evidence has the report data.
func (c Check) appraise(evidence attest.Evidence, bound attest.ReportData) (attest.Result, error) {
	result, err := c.Verifier.Appraise(attest.Question{
		Evidence: evidence, ReportData: bound, Secret: c.Secret, Rules: c.Policy.Rules(), At: c.At,
	})
	if err != nil {
		return attest.Result{}, err
	}
	return result, c.Policy.AdmitAuthority(result)
}

// findIdentity returns an identity with its roots from a response, after checking them.
func (c Check) findIdentity(unverified []api.TrustIdentity, want Identity, authority *x509.Certificate) (Identity, error) {
	for _, u := range unverified {
		if u.ID != want.ID {
			continue
		}
		var err error
		if want.Root, err = parseCertificate(u.Root); err != nil {
			return Identity{}, fmt.Errorf("reading identity root: %w", err)
		}
		if want.Group != "" {
			return want, identity.CheckGroupRoot(want.Root, identity.Expect{Policy: c.Policy, Group: want.Group, IDs: []attest.Digest{want.ID}, At: c.At, Approvers: c.Parties})
		}
		if want.Cross, err = parseCertificate(u.Cross); err != nil {
			return Identity{}, fmt.Errorf("reading cross-certificate: %w", err)
		}
		return want, identity.CheckRoot(want.Root, want.Cross, authority, identity.Expect{
			Policy: c.Policy,
			Kinds:  []identity.Kind{identity.KindShared, identity.KindUnit},
			Use:    identity.UseTLS,
			IDs:    []attest.Digest{want.ID},
			At:     c.At,
		})
	}
	return Identity{}, wire.Refuse(wire.WrongIdentity, "trust: identity", "not in the response", want.ID)
}

func parseCertificate(der []byte) (*x509.Certificate, error) {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, wire.Refuse(wire.Malformed, "certificate", err, "X.509 DER")
	}
	return c, nil
}

// UnverifiedKeys returns the device and key that the evidence in a response names, if its platform
// needs a credential. A response that cannot be read names none; verifying it shows why.
func (c Check) UnverifiedKeys(unverified api.TrustResponse) (platform attest.Platform, in attest.TPMKeys, named bool) {
	evidence, err := ParseEvidence(unverified)
	if err != nil {
		return "", in, false
	}
	in, named, err = c.Verifier.UnverifiedKeys(evidence)
	return evidence.Platform, in, named && err == nil
}
