package founding

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policydraft"
)

// KeySize is the size of a founder's key in bytes.
const KeySize = 32

// Founder has the key, the verifier and the time that one founder uses to verify a root before signing the first policy.
type Founder struct {
	Verifier *attest.Verifier
	// Key is this founder's own key, 32 random bytes that are never sent. The secrets of
	// challenges are derived from it, so that none is stored.
	Key []byte
	At  time.Time
	// Endorsements of the TEE's evidence, in addition to those in the evidence.
	Endorsements attest.Endorsements
}

// Check appraises the evidence of a root by a founder's own draft: its platform rules, its
// reference values of the authority, its machines. It returns the genesis to sign. If the
// machine must be challenged and there is no proof yet, it returns the challenge and no
// genesis. It refuses with "draft" a root that was made for another draft, with
// "authority-root" a file that names another root, with "wrong-chip" the proof of another
// challenge, and as [attest.Verifier.Appraise] and [policydraft.Draft.AdmitAuthority] do.
func (f Founder) Check(d policydraft.Draft, r Root, p *Proof) (genesis []byte, c *Challenge, err error) {
	if got := d.Digest(); got != r.Draft {
		return nil, nil, wire.Refuse(wire.WrongDraft, "init: draft", r.Draft, got.String()+", the draft to be signed")
	}
	if genesis, err = d.WithRoot(r.Root); err != nil {
		return nil, nil, err
	}
	var evidence attest.Evidence
	if err := evidence.UnmarshalJSON(r.Evidence); err != nil {
		return nil, nil, fmt.Errorf("reading the evidence of init: %w", err)
	}
	result, challenged, err := f.Verifier.AppraiseFor(attest.Question{
		Evidence: evidence, Endorsements: f.Endorsements, ReportData: r.ReportData(), Rules: d.Rules(), At: f.At,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("appraising the evidence of init: %w", err)
	}
	if err := d.AdmitAuthority(result); err != nil {
		return nil, nil, fmt.Errorf("matching init's program and machine with the draft: %w", err)
	}
	if challenged.Secret() == nil {
		return genesis, nil, nil
	}
	if p == nil {
		c, err := f.newChallenge(r, evidence)
		return nil, c, err
	}
	if err := f.verifyProof(r, evidence, *p); err != nil {
		return nil, nil, err
	}
	return genesis, nil, nil
}

// newChallenge hides this founder's secret for the device that evidence introduces.
func (f Founder) newChallenge(r Root, e attest.Evidence) (*Challenge, error) {
	in, secret, err := f.challengeSecret(r, e)
	if err != nil {
		return nil, err
	}
	defer clear(secret)
	c := Challenge{Schema: SchemaChallenge, Root: r.Root, Draft: r.Draft, SealedKey: r.SealedKey}
	c.Credential, err = f.Verifier.Credential(e.Platform, in, secret)
	return &c, err
}

// verifyProof demands the secret that was hidden for this root, draft, device and key.
func (f Founder) verifyProof(r Root, e attest.Evidence, p Proof) error {
	_, want, err := f.challengeSecret(r, e)
	if err != nil {
		return err
	}
	defer clear(want)
	if p.Root != r.Root || p.Draft != r.Draft || subtle.ConstantTimeCompare(p.Secret, want) != 1 {
		return wire.Refuse(wire.WrongChip, "init: proof", "a secret of another challenge", "the secret of this founder's challenge, opened by the device of the evidence")
	}
	return nil
}

// challengeSecret follows from the founder's key, the root, the draft, the device and its
// key: no proof is valid for another of them, or for another founder.
func (f Founder) challengeSecret(r Root, e attest.Evidence) (attest.TPMKeys, []byte, error) {
	if len(f.Key) != KeySize {
		return attest.TPMKeys{}, nil, wire.Refuse(wire.BadRequest, "founder's key: size in bytes", len(f.Key), KeySize)
	}
	in, _, err := f.Verifier.UnverifiedKeys(e)
	if err != nil {
		return in, nil, err
	}
	mac := hmac.New(sha256.New, f.Key)
	mac.Write(wire.Frame(wire.LabelInitChallenge, r.Root[:], r.Draft[:], in.Device, in.Key))
	return in, mac.Sum(nil), nil
}
