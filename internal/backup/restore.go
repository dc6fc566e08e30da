package backup

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"filippo.io/age"
	"github.com/cloudflare/circl/secretsharing"
	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// SchemaRequest is the schema of a [Request].
const SchemaRequest = "cohort/restore-request/v1"

// Request requests shares from owners: a key that only the TEE which made it can use, and
// evidence over it (label "cohort restore v1").
type Request struct {
	Schema    string          `json:"schema"`
	Key       []byte          `json:"hpke_key"`   // MLKEM768-X25519, 1216 bytes
	SealedKey []byte          `json:"sealed_key"` // its private half, sealed to the TEE's own measurement; for a challenged TEE together with its attestation key
	Evidence  json.RawMessage `json:"evidence"`
}

// ReportData returns the report data of a request's evidence.
func (r Request) ReportData() attest.ReportData {
	return attest.BindReportData(wire.LabelRestore, r.Key)
}

// ParseRequest parses a request and verifies its form alone.
func ParseRequest(b []byte) (Request, error) {
	var r Request
	if len(b) > wire.MaxRequest {
		return r, wire.Refuse(wire.TooLarge, "restore request: size in bytes", len(b), wire.MaxRequest)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil || d.More() || r.Schema != SchemaRequest {
		return Request{}, wire.Refuse(wire.Malformed, "restore request", fmt.Sprint(len(b), " bytes of another form"), "the output of `cohort authority restore`")
	}
	return r, nil
}

// RestoringTEE is the request of a TEE for an owner's share, and the policy by which it is
// appraised.
type RestoringTEE struct {
	Request  Request
	Approved policy.Approved // the newest policy the owner knows
	Verifier *attest.Verifier
	At       time.Time
	// Endorsements of the request's evidence, in addition to those in the evidence.
	Endorsements attest.Endorsements
}

// appraise appraises the requesting TEE as an authority under the owners' newest policy. It
// returns the challenge if the platform requires one: then only the challenged TEE can open
// the share.
func (a RestoringTEE) appraise() (attest.Challenge, error) {
	var evidence attest.Evidence
	if err := evidence.UnmarshalJSON(a.Request.Evidence); err != nil {
		return attest.Challenge{}, err
	}
	result, challenge, err := a.Verifier.AppraiseFor(attest.Question{
		Evidence: evidence, Endorsements: a.Endorsements, ReportData: a.Request.ReportData(), Rules: a.Approved.Rules(), At: a.At,
	})
	if err != nil {
		return attest.Challenge{}, err
	}
	return challenge, a.Approved.AdmitAuthority(result)
}

// Unlock opens an owner's share and seals it to the TEE that requests it. Before it opens the
// share it refuses a TEE that the policy does not name as authority and a share for another
// root or other owners than the policy's.
func Unlock(s Share, id age.Identity, tee RestoringTEE) (Share, error) {
	if s.Schema != SchemaShare {
		return Share{}, malformed("schema", s.Schema, SchemaShare)
	}
	if err := s.CheckPolicy(tee.Approved); err != nil {
		return Share{}, err
	}
	challenge, err := tee.appraise()
	if err != nil {
		return Share{}, fmt.Errorf("appraising the TEE that requests the share: %w", err)
	}
	r, err := age.Decrypt(bytes.NewReader(s.Sealed), id)
	if err != nil {
		return Share{}, wire.Refuse(wire.BadShare, s.label(), err, "a share sealed to this key")
	}
	plain, err := io.ReadAll(io.LimitReader(r, wire.MaxShare))
	defer clear(plain)
	if err != nil {
		return Share{}, wire.Refuse(wire.BadShare, s.label(), err, "a complete age file")
	}
	if err := s.verifyCommitments(plain); err != nil {
		return Share{}, err
	}
	key, err := hpke.MLKEM768X25519().NewPublicKey(tee.Request.Key)
	if err != nil {
		return Share{}, wire.Refuse(wire.Malformed, "restore request: key", err, "MLKEM768-X25519, 1216 bytes")
	}
	hidden, err := s.encryptForChallenge(plain, challenge)
	if err != nil {
		return Share{}, fmt.Errorf("sealing the %s: %w", s.label(), err)
	}
	enc, sender, err := hpke.NewSender(key, hpke.HKDFSHA256(), hpke.AES256GCM(), s.hpkeInfo())
	if err == nil {
		s.Sealed, err = sender.Seal(nil, hidden)
	}
	if err != nil {
		return Share{}, fmt.Errorf("sealing the %s: %w", s.label(), err)
	}
	s.Schema, s.Encapsulated, s.Credential = SchemaUnlocked, enc, challenge.Credential
	return s, nil
}

// encryptForChallenge encrypts the plaintext under the secret of a challenge, if there is one,
// so that only the device that opens the challenge can read it, and not any holder of the
// request's key.
func (s Share) encryptForChallenge(plain []byte, c attest.Challenge) ([]byte, error) {
	if c.Secret() == nil {
		return plain, nil
	}
	aead, err := s.challengeCipher(c.Secret())
	if err != nil {
		return nil, err
	}
	return aead.Seal(nil, nil, plain, nil), nil
}

// challengeCipher returns the cipher of one share under the secret of a challenge.
func (s Share) challengeCipher(secret []byte) (cipher.AEAD, error) {
	digest := s.Digest()
	key, err := hkdf.Key(sha256.New, secret, nil, string(wire.Frame(wire.LabelHiddenShare, digest[:], []byte{byte(s.Number)})), 32)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// hpkeInfo returns the HPKE info of an unlocked share.
func (s Share) hpkeInfo() []byte {
	digest := s.Digest()
	return wire.Frame(wire.LabelSealedShare, digest[:], []byte{byte(s.Number)})
}

// CheckPolicy refuses a share of another root or draft, and one for owners other than those of
// the policy.
func (s Share) CheckPolicy(approved policy.Approved) error {
	if !approved.Genuine() {
		return wire.Refuse(wire.BadPolicy, "restore: policy", "a policy that was not approved", "a history from the pinned genesis")
	}
	doc := approved.Document()
	switch {
	case s.Draft != approved.Draft():
		return wire.Refuse(wire.WrongDraft, s.label()+": draft of the first policy", s.Draft, approved.Draft())
	case s.Genesis != approved.Genesis():
		return wire.Refuse(wire.WrongGenesis, s.label()+": genesis", s.Genesis, approved.Genesis())
	case s.Root != doc.Authority.Root:
		return wire.Refuse(wire.WrongRoot, s.label()+": authority root", "a root that policy does not name", doc.Authority.Root)
	case !approved.Knows(s.Head) || s.Head.IsZero():
		return wire.Refuse(wire.Behind, s.label()+": policy head", s.Head, "a head of the policy history")
	case s.Owners != doc.Owners.Digest():
		return wire.Refuse(wire.StaleShare, s.label()+": owners", s.Owners, doc.Owners.Digest())
	case len(s.Commitments) != doc.Owners.Quorum || s.Count != len(doc.Owners.Keys) || doc.Owners.Keys[s.Number-1].Name != s.Owner:
		return wire.Refuse(wire.BadShare, s.label(), fmt.Sprintf("owner %s, number %d of %d, quorum %d", s.Owner, s.Number, s.Count, len(s.Commitments)), "owner, number and quorum as in the policy")
	}
	return nil
}

// verifyCommitments verifies the opened value against the commitments.
func (s Share) verifyCommitments(plain []byte) error {
	value, err := s.parsePlaintext(plain)
	if err != nil {
		return err
	}
	points, err := s.parseCommitments()
	if err != nil {
		return err
	}
	if !secretsharing.Verify(uint(len(points)-1), s.toShamir(value), points) {
		return wire.Refuse(wire.BadShare, s.label(), "a value that does not match its commitments", "the value that was sealed")
	}
	return nil
}

// Keys open the shares that owners unlocked for a request.
type Keys struct {
	Private hpke.PrivateKey // of the request
	// Open returns the secret of a credential, if owners challenge the TEE; nil if they do
	// not.
	Open func(credential []byte) ([]byte, error)
}

// Combine opens shares with the TEE's keys and restores the secret and the header that all
// shares have in common. It refuses fewer than a quorum, repeated shares, shares of several
// backups, and shares whose secret does not match the root and the mark of the header. It does
// not check policy: the caller checks the header with [Share.CheckPolicy] once the header is
// known to have been made under the root.
func Combine(shares []Share, keys Keys) (identity.Secret, Header, error) {
	raw := make([]secretsharing.Share, 0, len(shares))
	seen := map[int]bool{}
	for _, s := range shares {
		switch {
		case s.Schema != SchemaUnlocked:
			return identity.Secret{}, Header{}, wire.Refuse(wire.BadShare, s.label(), "a share sealed to its owner", "the output of `cohort authority unlock` for it")
		case seen[s.Number]:
			return identity.Secret{}, Header{}, wire.Refuse(wire.BadShare, s.label(), "passed twice", "each share once")
		case s.Digest() != shares[0].Digest():
			return identity.Secret{}, Header{}, wire.Refuse(wire.BadShare, s.label()+": backup", s.ID+" of "+s.Created.Format(time.RFC3339), shares[0].ID+" of "+shares[0].Created.Format(time.RFC3339)+", as the "+shares[0].label())
		}
		seen[s.Number] = true
		value, err := s.openUnlocked(keys)
		if err != nil {
			return identity.Secret{}, Header{}, err
		}
		raw = append(raw, value)
	}
	if len(raw) == 0 || len(raw) < len(shares[0].Commitments) {
		return identity.Secret{}, Header{}, wire.Refuse(wire.NoQuorum, "restore: shares", len(raw), "a quorum of the owners")
	}
	secret, err := combineSecret(shares[0], raw)
	return secret, shares[0].Header, err
}

// openUnlocked opens an unlocked share.
func (s Share) openUnlocked(keys Keys) (secretsharing.Share, error) {
	var none secretsharing.Share
	recipient, err := hpke.NewRecipient(s.Encapsulated, keys.Private, hpke.HKDFSHA256(), hpke.AES256GCM(), s.hpkeInfo())
	var hidden []byte
	if err == nil {
		hidden, err = recipient.Open(nil, s.Sealed)
	}
	defer clear(hidden)
	if err != nil {
		return none, wire.Refuse(wire.BadShare, s.label(), err, "a share unlocked for this request")
	}
	plain, err := s.decryptWithChallenge(hidden, keys)
	defer clear(plain)
	if err != nil {
		return none, err
	}
	if err := s.verifyCommitments(plain); err != nil {
		return none, err
	}
	value, err := s.parsePlaintext(plain)
	if err != nil {
		return none, err
	}
	return s.toShamir(value), nil
}

// decryptWithChallenge is the inverse of [Share.encryptForChallenge].
func (s Share) decryptWithChallenge(hidden []byte, keys Keys) ([]byte, error) {
	if s.Credential == nil {
		return hidden, nil
	}
	if keys.Open == nil {
		return nil, wire.Refuse(wire.BadShare, s.label(), "a share for a TEE that is challenged", "a share unlocked for this request")
	}
	secret, err := keys.Open(s.Credential)
	defer clear(secret)
	if err != nil {
		return nil, fmt.Errorf("opening the credential of the %s: %w", s.label(), err)
	}
	aead, err := s.challengeCipher(secret)
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, nil, hidden, nil)
	if err != nil {
		return nil, wire.Refuse(wire.BadShare, s.label(), err, "a share unlocked for this request")
	}
	return plain, nil
}

// combineSecret restores the secret and checks it against the root and the mark in the
// shares: an attacker could forge all commitments together.
func combineSecret(first Share, raw []secretsharing.Share) (identity.Secret, error) {
	scalar, err := secretsharing.Recover(uint(len(first.Commitments)-1), raw)
	if err != nil {
		return identity.Secret{}, fmt.Errorf("combining the shares: %w", err)
	}
	b, err := scalar.MarshalBinary()
	if err != nil {
		return identity.Secret{}, fmt.Errorf("combining the shares: %w", err)
	}
	defer clear(b)
	if top := b[:len(b)-secretSize]; !bytes.Equal(top, make([]byte, len(top))) {
		return identity.Secret{}, wire.Refuse(wire.WrongRoot, "restore: size of the restored value", "more than 32 bytes", "32 bytes")
	}
	secret, err := identity.OpenSecret(b[len(b)-secretSize:])
	if err != nil {
		return identity.Secret{}, err
	}
	keys, err := identity.Derive(secret)
	if err != nil {
		return identity.Secret{}, err
	}
	if keys.RootDigest() != first.Root {
		return identity.Secret{}, wire.Refuse(wire.WrongRoot, "restore: root of the combined shares", "a root that differs from the one in the shares", first.Root)
	}
	if !hmac.Equal(first.Mark, MarkBackup(keys, first.Header)) {
		return identity.Secret{}, wire.Refuse(wire.BadShare, "restore: mark of the backup", fmt.Sprintf("%x", first.Mark), "a mark made under this root")
	}
	return secret, nil
}
