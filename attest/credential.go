package attest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TPMKeys is what a device states about itself before it is challenged, on
// platforms whose signing key no authority certifies: a credential made for both, which
// only the device opens, binds the key to the device.
type TPMKeys struct {
	Device []byte // what the maker states about the device (TPM: EK certificate, DER)
	Key    []byte // the key that signs evidence (TPM: TPMT_PUBLIC)
}

// CredentialAttester is an [Attester] whose evidence must show the secret of a
// credential.
type CredentialAttester interface {
	Attester
	// TPMKeys identifies the device and its key.
	TPMKeys() TPMKeys
	// AttestFor is Attest, with the secret of the credential in the
	// evidence. It refuses with reason "wrong-chip" a credential that was
	// not made for this device and key.
	AttestFor(ctx context.Context, data ReportData, credential []byte) (Evidence, error)
}

// CredentialActivator is a [CredentialAttester] whose key a later start of the same program may use,
// to open credentials that were made for it.
type CredentialActivator interface {
	CredentialAttester
	// ExportKey returns the key for [CredentialActivator.ActivateCredential]. It is as secret as the key.
	ExportKey() []byte
	// ActivateCredential returns the secret of a credential for this device and a key that
	// was kept. It refuses with reason "wrong-chip" any other.
	ActivateCredential(ctx context.Context, kept, credential []byte) ([]byte, error)
}

// SecretSize is the size in bytes of a secret that a credential hides.
const SecretSize = 32

// challenger is an [Appraiser] of such a platform.
type challenger interface {
	// Credential hides a secret so that only the device gets it, and only
	// while it holds the key.
	Credential(in TPMKeys, secret []byte) ([]byte, error)
	// Introduced are the device and key that evidence, of which nothing is
	// checked yet, speaks of.
	UnverifiedKeys(raw []byte) (TPMKeys, error)
}

// challenger is the appraiser of a platform that challenges.
func (v *Verifier) challenger(p Platform) (challenger, error) {
	if c, ok := v.appraisers[p].(challenger); ok {
		return c, nil
	}
	return nil, wire.Refuse(wire.NoPlatform, "credential: platform", p, "one whose key is bound by a credential")
}

// Credential makes a credential for a device of a platform.
func (v *Verifier) Credential(p Platform, in TPMKeys, secret []byte) ([]byte, error) {
	c, err := v.challenger(p)
	if err != nil {
		return nil, err
	}
	return c.Credential(in, secret)
}

// UnverifiedKeys reports whom evidence introduces; ok is false on platforms that need
// no credential.
func (v *Verifier) UnverifiedKeys(e Evidence) (in TPMKeys, ok bool, err error) {
	c, err := v.challenger(e.Platform)
	if err != nil {
		return in, false, nil
	}
	in, err = c.UnverifiedKeys(e.Raw)
	return in, true, err
}

// Challenge is one credential with a random secret.
type Challenge struct {
	Credential []byte
	in         TPMKeys
	secret     []byte
}

// Challenge makes one for a device of a platform.
func (v *Verifier) Challenge(p Platform, in TPMKeys) (Challenge, error) {
	c := Challenge{in: in, secret: make([]byte, SecretSize)}
	rand.Read(c.secret)
	var err error
	c.Credential, err = v.Credential(p, in, c.secret)
	return c, err
}

// Secret is what only the device that was challenged learns; nil when none was.
func (c Challenge) Secret() []byte { return c.secret }

// SecretFor is [Question.Secret] of evidence for the challenge.
func (c Challenge) SecretFor(in TPMKeys) []byte {
	if !bytes.Equal(in.Device, c.in.Device) || !bytes.Equal(in.Key, c.in.Key) {
		return nil
	}
	return c.secret
}

// RequestEvidence asks an attester for evidence, and challenges it where its platform needs
// that. hidden is the [Question.Secret] for its evidence.
func (v *Verifier) RequestEvidence(ctx context.Context, a Attester, data ReportData) (e Evidence, hidden func(TPMKeys) []byte, err error) {
	challenged, ok := a.(CredentialAttester)
	if !ok {
		e, err = a.Attest(ctx, data)
		return e, nil, err
	}
	c, err := v.Challenge(TPM, challenged.TPMKeys())
	if err != nil {
		return e, nil, err
	}
	e, err = challenged.AttestFor(ctx, data, c.Credential)
	return e, c.SecretFor, err
}

// AttestWithCredential asks an attester for evidence that shows the secret of a credential; an
// empty one asks for none.
func AttestWithCredential(ctx context.Context, a Attester, data ReportData, credential []byte) (Evidence, error) {
	if len(credential) == 0 {
		return a.Attest(ctx, data)
	}
	if challenged, ok := a.(CredentialAttester); ok {
		return challenged.AttestFor(ctx, data, credential)
	}
	return Evidence{}, wire.Refuse(wire.BadRequest, "credential", fmt.Sprintf("%d bytes", len(credential)), "no credential: this platform's keys are bound otherwise")
}

// Activation is what evidence shows of a credential.
type Activation struct {
	TPMKeys
	Secret []byte
}

// verify demands the secret that this verifier hid for this device and key.
func (a *Activation) verify(hidden func(TPMKeys) []byte) error {
	switch {
	case a == nil:
		return nil
	case hidden == nil:
		return wire.Refuse(wire.WrongChip, "appraisal: credential", "evidence for which no credential was made", "a key that is bound to its device")
	case len(a.Secret) != SecretSize || subtle.ConstantTimeCompare(a.Secret, hidden(a.TPMKeys)) != 1:
		return wire.Refuse(wire.WrongChip, "appraisal: credential", "a credential that was not opened", "a key inside the device of its certificate")
	}
	return nil
}
