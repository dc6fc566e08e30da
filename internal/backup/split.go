package backup

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"github.com/cloudflare/circl/secretsharing"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"golang.org/x/crypto/ssh"
)

// Split makes one share for each owner of the policy in force. A quorum of the shares restores
// the secret and the draft for which it was made. If nothing can be sealed to some owners it
// makes no share, and refuses with "recipient", naming those owners.
func Split(secret identity.Secret, draft wire.Digest, approved policy.Approved, at time.Time) ([]Share, error) {
	doc := approved.Document()
	recipients, err := recipientsOf(doc.Owners)
	if err != nil {
		return nil, err
	}
	keys, err := identity.Derive(secret)
	if err != nil {
		return nil, err
	}
	plain := secret.Expose()
	defer clear(plain)
	scalar := curve.NewScalar()
	if err := scalar.UnmarshalBinary(append(make([]byte, valueSize-secretSize), plain...)); err != nil {
		return nil, fmt.Errorf("splitting the root: %w", err)
	}
	sharing := secretsharing.New(rand.Reader, uint(doc.Owners.Quorum-1), scalar)
	header := Header{
		TrustDomain: doc.TrustDomain, Genesis: approved.Genesis(), Root: keys.RootDigest(), Draft: draft, ID: newID(), Created: at.UTC().Truncate(time.Second),
		Head: approved.PolicyHead(), Owners: doc.Owners.Digest(), Count: len(doc.Owners.Keys),
	}
	for _, point := range sharing.CommitSecret() {
		b, err := point.MarshalBinaryCompress()
		if err != nil {
			return nil, fmt.Errorf("encoding a commitment: %w", err)
		}
		header.Commitments = append(header.Commitments, b)
	}
	shares := make([]Share, header.Count)
	for i, raw := range sharing.Share(uint(header.Count)) {
		shares[i] = Share{Schema: SchemaShare, Header: header, Mark: MarkBackup(keys, header), Owner: doc.Owners.Keys[i].Name, Number: i + 1}
		if err := shares[i].sealTo(raw, recipients[i]); err != nil {
			return nil, err
		}
	}
	return shares, nil
}

// MarkBackup returns the authority's MAC over the header of a backup: a caller that presents
// it has seen one of the shares.
func MarkBackup(keys *identity.Keys, h Header) []byte {
	digest := h.Digest()
	return keys.RowMAC(wire.LabelBackup, digest[:])
}

func newID() string {
	id := make([]byte, idSize)
	rand.Read(id)
	return hex.EncodeToString(id)
}

// recipientsOf returns the age recipients of owners, in their order.
func recipientsOf(owners policyfile.Owners) ([]age.Recipient, error) {
	if len(owners.Keys) > maxOwners {
		return nil, wire.Refuse(wire.TooLarge, "backup: owners", len(owners.Keys), maxOwners)
	}
	recipients := make([]age.Recipient, len(owners.Keys))
	var without []string
	for i, owner := range owners.Keys {
		var err error
		if recipients[i], err = recipientOf(owner); err != nil {
			without = append(without, owner.Name+" ("+owner.Key.Type()+")")
		}
	}
	if len(without) > 0 {
		return nil, wire.Refuse(wire.NoRecipient, "backup: owners", strings.Join(without, ", "), "an ssh-ed25519 key, or age = \"age1…\" beside it in policy")
	}
	return recipients, nil
}

// recipientOf returns the age recipient that policy sets for an owner, or the owner's SSH key
// if it can decrypt: an ECDSA key, or a hardware key, can only sign.
func recipientOf(owner policyfile.Owner) (age.Recipient, error) {
	if owner.Age != "" {
		return age.ParseX25519Recipient(owner.Age)
	}
	if owner.Key.Type() != ssh.KeyAlgoED25519 {
		return nil, wire.NoRecipient
	}
	return agessh.NewEd25519Recipient(owner.Key)
}

// sealTo encrypts the value to the share's owner.
func (s *Share) sealTo(raw secretsharing.Share, to age.Recipient) error {
	value, err := raw.Value.MarshalBinary()
	if err != nil {
		return fmt.Errorf("encoding the %s: %w", s.label(), err)
	}
	plain := s.encodePlaintext(value)
	defer clear(plain)
	defer clear(value)
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, to)
	if err == nil {
		_, err = w.Write(plain)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return fmt.Errorf("sealing the %s: %w", s.label(), err)
	}
	s.Sealed = sealed.Bytes()
	return nil
}
