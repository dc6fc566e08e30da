package unit

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/history"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

func (u *Unit) newPeer(address string) (*peer, error) {
	p, err := history.NewPeer(history.Config{Address: address, LeafPolicy: u.leafPolicy, Clock: u.currentTime, Certificate: u.signingCertificate})
	if err != nil {
		return nil, fmt.Errorf("authority %q: %w", address, err)
	}
	return &peer{p, address}, nil
}

// signingCertificate returns the newest certificate of the signing key, or an empty one if there
// is none.
func (u *Unit) signingCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	e, err := u.currentEnrolment()
	if err != nil {
		return new(tls.Certificate), nil
	}
	return &tls.Certificate{Certificate: [][]byte{e.unit, e.identity.Cross}, PrivateKey: u.signing}, nil
}

// leafPolicy returns the policy and the time for the verification of an authority's leaf.
func (u *Unit) leafPolicy(leaf *x509.Certificate) (policy.Approved, time.Time, error) {
	at, err := verificationTime(leaf, u.currentTime())
	return u.seen.Load().Policy(), at, err
}

// checkSigner verifies a chain from a leaf of kind authority to the root that the newest policy
// names. For a group, the chain also contains the group root, and the leaf must be one that
// signs the group's reports.
func (u *Unit) checkSigner(chain []*x509.Certificate, group string) error {
	last := len(chain) - 1
	approved, at, err := u.leafPolicy(chain[0])
	if err != nil {
		return err
	}
	_, err = identity.Check(chain[:last], chain[last], identity.Expect{
		Policy: approved, Kinds: []identity.Kind{identity.KindAuthority}, Use: identity.UseSigning, At: at, Group: group, Approvers: u.config.PartyKeys,
	})
	return err
}

// verificationTime returns the time for the verification of a new certificate: now, or the
// certificate's NotBefore if the unit's clock is behind the authority's by no more than the
// permitted difference. It refuses with "clock" any other certificate that is not valid now.
func verificationTime(c *x509.Certificate, now time.Time) (time.Time, error) {
	earliest := c.NotBefore.Add(wire.WindowLead - wire.MaxClockSkew)
	if now.Before(earliest) || !now.Before(c.NotAfter) {
		return time.Time{}, wire.Refuse(wire.ClockSkew, "certificate window: time here", now.UTC().Format(time.RFC3339),
			fmt.Sprintf("%s to %s", earliest.UTC().Format(time.RFC3339), c.NotAfter.UTC().Format(time.RFC3339)))
	}
	if now.Before(c.NotBefore) {
		return c.NotBefore, nil
	}
	return now, nil
}

// refresh adopts the authority's policy history. If the authority does not know the unit's
// policy, refresh refuses with "behind" and sends its newer history to the authority, so that
// the next attempt can succeed.
func (u *Unit) refresh(ctx context.Context, p *peer) error {
	next, err := p.Follow(ctx, *u.seen.Load(), u.config.Genesis)
	if err != nil {
		return errors.Join(err, u.pushHistory(ctx, p, err))
	}
	u.adopt(next)
	return nil
}

// pushHistory sends the unit's history to an authority if cause says that the authority is
// behind.
func (u *Unit) pushHistory(ctx context.Context, p *peer, cause error) error {
	if !errors.Is(cause, wire.Behind) {
		return nil
	}
	return p.PushHistory(ctx, *u.seen.Load())
}
