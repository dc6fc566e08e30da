// Package founding lets founders verify, before they sign the first policy, that the authority
// root in it was made for their draft, inside a TEE of the program and on a machine that the
// draft names.
//
// [MakeRoot] and [OpenChallenge] run inside the TEE, [Founder.Check] runs at each founder and
// is the only function that returns a genesis to sign. It trusts the founder's own copy of the
// draft and the platform roots in it, and nothing that the authority's operator passed on. If
// a platform's keys are bound by credential activation (TPM), the founder challenges the
// machine first. docs/spec/enrolment.md specifies every byte.
package founding

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Schemas of the files that pass between the machine and the founders.
const (
	SchemaRoot      = "cohort/authority-init/v1"
	SchemaChallenge = "cohort/init-challenge/v1"
	SchemaProof     = "cohort/init-proof/v1"
)

// Root is the output of `cohort authority init`: the authority root that it made for a draft,
// and evidence over both. Only [Founder.Check] verifies it.
type Root struct {
	Schema    string          `json:"schema"`
	Root      wire.Digest     `json:"root"`
	Draft     wire.Digest     `json:"draft"`
	Evidence  json.RawMessage `json:"evidence"`             // with the vendor's endorsements, and for a challenged TEE the keys of its device
	SealedKey []byte          `json:"sealed_key,omitempty"` // for a challenged TEE: its attestation key, sealed to the program itself
}

// ReportData returns the report data of the evidence.
func (r Root) ReportData() attest.ReportData {
	return attest.BindReportData(wire.LabelInit, r.Root[:], r.Draft[:])
}

// Challenge requires a machine to prove that the key of its evidence is in the device that the
// evidence names.
type Challenge struct {
	Schema     string      `json:"schema"`
	Root       wire.Digest `json:"root"`
	Draft      wire.Digest `json:"draft"`
	Credential []byte      `json:"credential"` // only the device can open it, with that key
	SealedKey  []byte      `json:"sealed_key"` // as in [Root]
}

// Proof is the response to a [Challenge].
type Proof struct {
	Schema string      `json:"schema"`
	Root   wire.Digest `json:"root"`
	Draft  wire.Digest `json:"draft"`
	Secret []byte      `json:"secret"` // secret in the credential, 32 bytes
}

// Bytes returns one line of JSON.
func (r Root) Bytes() []byte      { return encode(r) }
func (c Challenge) Bytes() []byte { return encode(c) }
func (p Proof) Bytes() []byte     { return encode(p) }

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("founding: encoding: " + err.Error()) // evidence was marshalled before, the rest always encodes
	}
	return append(b, '\n')
}

// ParseRoot parses the output of `cohort authority init`. Like the two functions below it
// verifies form alone, and refuses with "malformed" and "too-large".
func ParseRoot(b []byte) (r Root, err error) {
	err = decode(b, &r, func() bool { return r.Schema == SchemaRoot && !r.Root.IsZero() && !r.Draft.IsZero() }, "init", "authority init --draft")
	return r, err
}

// ParseChallenge parses the file that `cohort policy sign --init` wrote for the machine.
func ParseChallenge(b []byte) (c Challenge, err error) {
	err = decode(b, &c, func() bool { return c.Schema == SchemaChallenge }, "init challenge", "policy sign --init")
	return c, err
}

// ParseProof parses the output of `cohort authority init --open`.
func ParseProof(b []byte) (p Proof, err error) {
	err = decode(b, &p, func() bool { return p.Schema == SchemaProof }, "init proof", "authority init --open")
	return p, err
}

func decode(b []byte, v any, ok func() bool, what, command string) error {
	if len(b) > wire.MaxRequest {
		return wire.Refuse(wire.TooLarge, what+": size in bytes", len(b), wire.MaxRequest)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil || d.More() || !ok() {
		return wire.Refuse(wire.Malformed, what, fmt.Sprint(len(b), " bytes of another form"), "the output of `cohort "+command+"`, unchanged")
	}
	return nil
}

// MakeRoot returns the output for a root that this TEE has just made for a draft, with the
// vendor's endorsements: endorse returns those of one part of the evidence.
func MakeRoot(ctx context.Context, tee attest.Attester, sealer attest.Sealer, root, draft wire.Digest, endorse func(context.Context, attest.Evidence) (attest.Endorsements, error)) (Root, error) {
	r := Root{Schema: SchemaRoot, Root: root, Draft: draft}
	evidence, err := tee.Attest(ctx, r.ReportData())
	if err != nil {
		return Root{}, fmt.Errorf("attesting the new root: %w", err)
	}
	all := make([]attest.Endorsements, 0, 1+len(evidence.Devices))
	for _, part := range append([]attest.Evidence{evidence}, evidence.Devices...) {
		found, err := endorse(ctx, part)
		if err != nil {
			return Root{}, fmt.Errorf("finding endorsements: %w", err)
		}
		all = append(all, found)
	}
	if r.Evidence, err = evidence.WithEach(all).MarshalJSON(); err != nil {
		return Root{}, err
	}
	if keeper, ok := tee.(attest.CredentialActivator); ok {
		kept := keeper.ExportKey()
		framed := wire.Frame(wire.LabelInitKey, kept)
		r.SealedKey, err = sealer.Seal(ctx, framed, nil)
		clear(kept)
		clear(framed)
		if err != nil {
			return Root{}, fmt.Errorf("sealing the key of the evidence: %w", err)
		}
	}
	return r, nil
}

// OpenChallenge responds to a challenge inside the TEE. It makes no new evidence: the device
// opens the credential with the key of the evidence, which proves that the key is in this
// device, and the evidence under that key was made for the root alone. It refuses with
// "wrong-chip" a credential for another device or key, and with "platform" a TEE that is not
// challenged.
func OpenChallenge(ctx context.Context, tee attest.Attester, sealer attest.Sealer, c Challenge) (Proof, error) {
	keeper, ok := tee.(attest.CredentialActivator)
	if !ok {
		return Proof{}, wire.Refuse(wire.NoPlatform, "init challenge: platform", "a TEE that is not challenged", "a TEE with credential activation; without it, sign without a proof")
	}
	framed, err := sealer.Unseal(ctx, c.SealedKey)
	defer clear(framed)
	if err != nil {
		return Proof{}, fmt.Errorf("unsealing the key of the evidence: %w", err)
	}
	f, err := wire.Unframe(wire.LabelInitKey, framed, 1)
	if err != nil {
		return Proof{}, fmt.Errorf("reading the key of the evidence: %w", err)
	}
	secret, err := keeper.ActivateCredential(ctx, f[0], c.Credential)
	if err != nil {
		return Proof{}, fmt.Errorf("opening the credential: %w", err)
	}
	return Proof{Schema: SchemaProof, Root: c.Root, Draft: c.Draft, Secret: secret}, nil
}
