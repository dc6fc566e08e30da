package attest

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest/internal/closed"
	"github.com/cohort-tee/cohort/internal/wire"
)

// open is an appraiser whose credentials hide nothing, and a device that opens them, so that the
// tests show how the verifier handles the responses.
type open struct{ in TPMKeys }

func (o open) Genuine() closed.Appraiser                    { return closed.VouchFor(o) }
func (open) Platform() Platform                             { return TPM }
func (open) Credential(_ TPMKeys, s []byte) ([]byte, error) { return s, nil }
func (o open) UnverifiedKeys([]byte) (TPMKeys, error)       { return o.in, nil }
func (o open) TPMKeys() TPMKeys                             { return o.in }
func (open) Attest(context.Context, ReportData) (Evidence, error) {
	return Evidence{Platform: TPM}, nil
}
func (open) AttestFor(_ context.Context, _ ReportData, credential []byte) (Evidence, error) {
	return Evidence{Platform: TPM, Raw: credential}, nil
}
func (o open) Appraise(raw []byte, _ Endorsements, _ Rules, _ time.Time) (Claims, error) {
	use := ReportData{1}
	return Claims{Measurement: Measurement{Platform: TPM}, ReportData: use[:], Activation: &Activation{o.in, raw}}, nil
}

// TestChallenge: a secret counts only for the device and key that its credential was made for.
func TestChallenge(t *testing.T) {
	device := open{TPMKeys{[]byte("device"), []byte("key")}}
	v := NewVerifier(device)
	e, hidden, err := v.RequestEvidence(t.Context(), device, ReportData{1})
	if err != nil {
		t.Fatal(err)
	}
	question := Question{Evidence: e, ReportData: ReportData{1}, Rules: map[Platform]Rules{TPM: {}}, Secret: hidden}
	if _, err := v.Appraise(question); err != nil {
		t.Errorf("its own answer: %v", err)
	}
	for name, other := range map[string]open{
		"another key": {TPMKeys{[]byte("device"), []byte("KEY")}}, "another device": {TPMKeys{[]byte("DEVICE"), []byte("key")}},
	} {
		if _, err := NewVerifier(other).Appraise(question); !errors.Is(err, wire.WrongChip) {
			t.Errorf("%s with that secret: %v", name, err)
		}
	}
	question.Secret = Challenge{}.SecretFor
	if _, err := v.Appraise(question); !errors.Is(err, wire.WrongChip) {
		t.Errorf("a challenge that was never made: %v", err)
	}
	question.Evidence.Raw = nil
	if _, err := v.Appraise(question); !errors.Is(err, wire.WrongChip) {
		t.Errorf("no secret, and none asked for: %v", err)
	}
	if answer, err := AttestWithCredential(t.Context(), device, ReportData{1}, []byte("credential")); err != nil || !bytes.Equal(answer.Raw, []byte("credential")) {
		t.Errorf("got %+v, %v", answer, err)
	}
}

// TestAppraiseFor appraises evidence without a secret and returns a new challenge each time. All
// other checks are those of Appraise.
func TestAppraiseFor(t *testing.T) {
	device := open{TPMKeys{[]byte("device"), []byte("key")}}
	v := NewVerifier(device, elsewhere{})
	question := Question{Evidence: Evidence{Platform: TPM}, ReportData: ReportData{1}, Rules: map[Platform]Rules{TPM: {}, Soft: {}}}
	r, first, err := v.AppraiseFor(question)
	if err != nil || !r.Appraised() || len(first.Secret()) != SecretSize || !bytes.Equal(first.Credential, first.Secret()) {
		t.Errorf("got %v, %+v, %v", r.Appraised(), first, err)
	}
	if _, second, _ := v.AppraiseFor(question); bytes.Equal(first.Secret(), second.Secret()) {
		t.Error("got one secret twice")
	}
	question.ReportData = ReportData{2}
	if r, c, err := v.AppraiseFor(question); !errors.Is(err, wire.BadNonce) || r.Appraised() || c.Secret() != nil {
		t.Errorf("of another use: got %v, %v", r.Appraised(), err)
	}
	question.Evidence.Platform = Soft
	if r, c, err := v.AppraiseFor(question); err != nil || !r.Appraised() || c.Secret() != nil || c.Credential != nil {
		t.Errorf("where nothing is challenged: got %v, %+v, %v", r.Appraised(), c, err)
	}
}

// elsewhere is an appraiser of a platform that needs no credential.
type elsewhere struct{}

func (e elsewhere) Genuine() closed.Appraiser { return closed.VouchFor(e) }
func (elsewhere) Platform() Platform          { return Soft }
func (elsewhere) Appraise([]byte, Endorsements, Rules, time.Time) (Claims, error) {
	use := ReportData{2}
	return Claims{Measurement: Measurement{Platform: Soft}, ReportData: use[:]}, nil
}

// plain is an attester of a platform that needs no credential.
type plain struct{ Attester }

// TestChallengeElsewhere: a platform that needs no credential gets none, and refuses one.
func TestChallengeElsewhere(t *testing.T) {
	v := NewVerifier()
	if _, introduced, err := v.UnverifiedKeys(Evidence{Platform: Soft}); introduced || err != nil {
		t.Errorf("got %v, %v, want none", introduced, err)
	}
	if _, err := v.Challenge(Soft, TPMKeys{}); !errors.Is(err, wire.NoPlatform) {
		t.Errorf("a credential for soft: %v", err)
	}
	if _, err := AttestWithCredential(t.Context(), plain{}, ReportData{1}, []byte("credential")); !errors.Is(err, wire.BadRequest) {
		t.Errorf("a credential to soft: %v", err)
	}
}
