// Package backup splits the authority's root secret for its owners into Shamir shares, of
// which a quorum of owners can restore it. Each share is sealed to one owner.
//
// [Split] and [Combine] run inside the authority's TEE, the only place where the secret or a
// quorum of opened shares exists. [Unlock] runs at an owner: it opens the owner's share and
// seals it to the TEE that requests it, after appraising that TEE under the policy that the
// owners signed. A share names its owner and its backup; a bad share is named whenever the
// commitments or the other shares reveal it. docs/spec/backup.md specifies every byte.
//
// Files, each using those before it: share.go, restore.go, split.go.
package backup

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/cloudflare/circl/group"
	"github.com/cloudflare/circl/secretsharing"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Schemas of a [Share]: sealed to its owner, and to the TEE that restores.
const (
	SchemaShare    = "cohort/share/v1"
	SchemaUnlocked = "cohort/unlocked/v1"
)

// curve is the group of shares and commitments. Its order is over 2^256, so that
// every root secret is a scalar without reduction.
var curve = group.P384

// Sizes in bytes.
const (
	secretSize     = 32
	idSize         = 16
	valueSize      = 48 // a scalar
	commitmentSize = 49 // a compressed point
)

// maxOwners bounds the shares of a backup.
const maxOwners = 255

// maxCredential bounds a credential in bytes.
const maxCredential = 1 << 10

// Header is the common part of all shares of one backup.
type Header struct {
	TrustDomain string      `json:"trust_domain"`
	Genesis     wire.Digest `json:"genesis"`
	Root        wire.Digest `json:"authority_root"`
	Draft       wire.Digest `json:"draft"`   // the draft for which the root was made
	ID          string      `json:"backup"`  // 32 hexadecimal digits, random
	Created     time.Time   `json:"created"` // whole seconds, UTC
	Head        wire.Digest `json:"policy_head"`
	Owners      wire.Digest `json:"owners"`      // policy.Owners.Digest
	Count       int         `json:"count"`       // number of owners and of shares
	Commitments [][]byte    `json:"commitments"` // to the coefficients of the polynomial, constant first; their number is the quorum
}

// Digest returns the digest of the header.
func (h Header) Digest() wire.Digest {
	id, _ := hex.DecodeString(h.ID)
	fields := [][]byte{
		[]byte(h.TrustDomain), h.Genesis[:], h.Root[:], h.Draft[:], id, binary.BigEndian.AppendUint64(nil, uint64(h.Created.Unix())),
		h.Head[:], h.Owners[:], {byte(h.Count)},
	}
	return wire.Hash(wire.LabelBackup, append(fields, h.Commitments...)...)
}

// Share is one owner's share. Only its form is verified; its Mark can be verified only by an
// authority of the same root.
type Share struct {
	Schema string `json:"schema"`
	Header
	Mark         []byte `json:"mark"`                 // MAC of the header's digest under the root
	Owner        string `json:"owner"`                // the owner's name in the policy
	Number       int    `json:"number"`               // 1 to Count
	Encapsulated []byte `json:"enc,omitempty"`        // HPKE, in an unlocked share alone
	Credential   []byte `json:"credential,omitempty"` // contains a second key, for a TEE that is challenged
	Sealed       []byte `json:"sealed"`               // an age file, or an HPKE ciphertext
}

// Bytes returns the one encoding: indented JSON and a line feed.
func (s Share) Bytes() []byte {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		panic("backup: encoding a share: " + err.Error()) // its fields always encode
	}
	return append(b, '\n')
}

// Parse parses a share of either schema and verifies its form alone. It refuses with
// "malformed" and "too-large".
func Parse(b []byte) (Share, error) {
	var s Share
	if len(b) > wire.MaxShare {
		return s, wire.Refuse(wire.TooLarge, "share: size in bytes", len(b), wire.MaxShare)
	}
	if err := json.Unmarshal(b, &s); err != nil || !bytes.Equal(s.Bytes(), b) {
		return Share{}, malformed("encoding", fmt.Sprint(len(b), " bytes of another form"), "a file of `cohort authority backup`, unchanged")
	}
	if err := s.validate(); err != nil {
		return Share{}, err
	}
	return s, nil
}

func malformed(rule string, got, want any) error {
	return wire.Refuse(wire.Malformed, "share: "+rule, got, want)
}

func (s Share) validate() error {
	id, err := hex.DecodeString(s.ID)
	quorum := len(s.Commitments)
	switch {
	case s.Schema != SchemaShare && s.Schema != SchemaUnlocked:
		return malformed("schema", s.Schema, SchemaShare+" or "+SchemaUnlocked)
	case (s.Schema == SchemaUnlocked) != (len(s.Encapsulated) > 0):
		return malformed("enc", len(s.Encapsulated), "bytes in "+SchemaUnlocked+" alone")
	case s.Schema != SchemaUnlocked && s.Credential != nil || len(s.Credential) > maxCredential:
		return malformed("credential", len(s.Credential), "at most 1024 bytes, in "+SchemaUnlocked+" alone")
	case s.Draft.IsZero():
		return malformed("draft", "empty", "the digest of a draft")
	case err != nil || len(id) != idSize || hex.EncodeToString(id) != s.ID:
		return malformed("backup", s.ID, "32 lower-case hexadecimal digits")
	case !s.Created.Equal(s.Created.Truncate(time.Second)) || s.Created.Location() != time.UTC || s.Created.Unix() < 0:
		return malformed("created", s.Created, "whole seconds of UTC")
	case s.Count < 1 || s.Count > maxOwners:
		return malformed("count", s.Count, "1 to 255")
	case quorum < 1 || quorum > s.Count:
		return malformed("number of commitments", quorum, "1 to the number of owners")
	case s.Number < 1 || s.Number > s.Count:
		return malformed("number", s.Number, "1 to the number of owners")
	case !wire.ValidName(s.Owner):
		return malformed("owner", s.Owner, "a name")
	}
	return nil
}

// parseCommitments parses the points, each in its one encoding and none the identity.
func (h Header) parseCommitments() (secretsharing.SecretCommitment, error) {
	points := make(secretsharing.SecretCommitment, len(h.Commitments))
	for i, b := range h.Commitments {
		points[i] = curve.NewElement()
		if len(b) != commitmentSize || points[i].UnmarshalBinary(b) != nil || points[i].IsIdentity() {
			return nil, malformed("commitment", hex.EncodeToString(b), "a compressed point of P-384")
		}
		if again, err := points[i].MarshalBinaryCompress(); err != nil || !slices.Equal(again, b) {
			return nil, malformed("commitment", hex.EncodeToString(b), "its one encoding")
		}
	}
	return points, nil
}

// label names the share in errors.
func (s Share) label() string { return "share of " + s.Owner }

// encodePlaintext returns the bytes to seal: the header's digest, the number and the value, so
// that a share cannot be moved to another header or number.
func (s Share) encodePlaintext(value []byte) []byte {
	digest := s.Digest()
	return wire.Frame(wire.LabelShare, digest[:], []byte{byte(s.Number)}, value)
}

// parsePlaintext parses the sealed bytes.
func (s Share) parsePlaintext(plain []byte) (value group.Scalar, err error) {
	fields, err := wire.Unframe(wire.LabelShare, plain, 3)
	if err != nil {
		return nil, err
	}
	digest := s.Digest()
	if !bytes.Equal(fields[0], digest[:]) || !bytes.Equal(fields[1], []byte{byte(s.Number)}) {
		return nil, wire.Refuse(wire.BadShare, s.label(), fmt.Sprintf("sealed for header %x and number %d", fields[0], fields[1]), fmt.Sprintf("header %x and number %d", digest, s.Number))
	}
	value = curve.NewScalar()
	if len(fields[2]) != valueSize || value.UnmarshalBinary(fields[2]) != nil {
		return nil, malformed("value", len(fields[2]), "a scalar of P-384")
	}
	if again, err := value.MarshalBinary(); err != nil || !bytes.Equal(again, fields[2]) {
		return nil, malformed("value", "a scalar that is not reduced", "a scalar of P-384")
	}
	return value, nil
}

// toShamir returns the share in the form of the library.
func (s Share) toShamir(value group.Scalar) secretsharing.Share {
	return secretsharing.Share{ID: curve.NewScalar().SetUint64(uint64(s.Number)), Value: value}
}
