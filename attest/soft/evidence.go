package soft

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"math/big"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Flags of a statement, one byte on the wire.
const (
	flagDebug   = 1 << 0
	flagDynamic = 1 << 1
)

const (
	scalarSize    = 32             // one of the two numbers of a P-256 signature
	signatureSize = 2 * scalarSize // r and s, big-endian, as in IEEE P1363
	evidenceParts = 7              // key, agent, program, arguments, flags, report data, signature
)

// halfOrder is half the order of P-256: of the two signatures (r, s) and
// (r, n-s) only the one with the smaller s is accepted.
var halfOrder = new(big.Int).Rsh(elliptic.P256().Params().N, 1)

// Statement is what a daemon states about one program it launched.
type Statement struct {
	Agent      attest.Digest // SHA-256 of the agent's file; zero when there is none
	Program    attest.Digest // SHA-256 of the program's file
	Arguments  attest.Digest // [Arguments] of the program
	Debug      bool          // a tracer attaches to the child, or it may write its memory to disk
	Dynamic    bool          // agent or program loads shared libraries
	ReportData attest.ReportData
}

// Arguments is the digest of the measured arguments of a program.
func Arguments(args []string) attest.Digest {
	fields := make([][]byte, len(args))
	for i, arg := range args {
		fields[i] = []byte(arg)
	}
	return wire.Hash(wire.LabelArguments, fields...)
}

// Measurement is the statement's measurement, in the order of
// softrules.Rules.
func (s Statement) Measurement() attest.Measurement {
	return attest.Measurement{Platform: attest.Soft, Registers: []attest.Register{
		{Name: "agent", Value: digestBytes(s.Agent)},
		{Name: "program", Value: digestBytes(s.Program)},
		{Name: "args", Value: digestBytes(s.Arguments)},
	}}
}

func digestBytes(d attest.Digest) []byte {
	if d.IsZero() {
		return nil
	}
	return d[:]
}

func (s Statement) flags() byte {
	var flags byte
	if s.Debug {
		flags |= flagDebug
	}
	if s.Dynamic {
		flags |= flagDynamic
	}
	return flags
}

// signed is the part of the evidence that the signature covers.
func (s Statement) signed(spki []byte) []byte {
	return wire.Frame(wire.LabelSoftEvidence, spki,
		digestBytes(s.Agent), digestBytes(s.Program), digestBytes(s.Arguments), []byte{s.flags()}, s.ReportData[:])
}

// RootOf is the digest under which policy names a daemon: the SHA-256 of its
// public key (SubjectPublicKeyInfo, DER).
func RootOf(key *ecdsa.PublicKey) (attest.Digest, error) {
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return attest.Digest{}, fmt.Errorf("encoding the daemon's key: %w", err)
	}
	return wire.Sum(spki), nil
}

// Sign makes evidence of a statement with a daemon's P-256 key: the framing of
// all fields, and as its last field the signature over what is before it.
func Sign(key *ecdsa.PrivateKey, s Statement) ([]byte, error) {
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("encoding the daemon's key: %w", err)
	}
	signed := s.signed(spki)
	digest := sha256.Sum256(signed)
	r, sigma, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		return nil, fmt.Errorf("signing evidence: %w", err)
	}
	if sigma.Cmp(halfOrder) > 0 {
		sigma.Sub(elliptic.P256().Params().N, sigma)
	}
	signature := make([]byte, signatureSize)
	r.FillBytes(signature[:scalarSize])
	sigma.FillBytes(signature[scalarSize:])
	return wire.AppendField(signed, signature), nil
}

// unverifiedEvidence is evidence in its parts, before its signature and its
// root are checked.
type unverifiedEvidence struct {
	statement Statement
	spki      []byte
	key       *ecdsa.PublicKey
	signature []byte
}

// parse reads the one encoding of evidence; every other is refused with reason
// "malformed".
func parse(raw []byte) (unverifiedEvidence, error) {
	parts, err := wire.Unframe(wire.LabelSoftEvidence, raw, evidenceParts)
	if err != nil {
		return unverifiedEvidence{}, err
	}
	e := unverifiedEvidence{spki: parts[0], signature: parts[6]}
	if e.key, err = parseKey(e.spki); err != nil {
		return unverifiedEvidence{}, err
	}
	if err := e.statement.parse(parts[1:6]); err != nil {
		return unverifiedEvidence{}, err
	}
	if len(e.signature) != signatureSize {
		return unverifiedEvidence{}, wire.Refuse(wire.Malformed, "soft evidence: signature length", len(e.signature), signatureSize)
	}
	return e, nil
}

func parseKey(spki []byte) (*ecdsa.PublicKey, error) {
	parsed, err := x509.ParsePKIXPublicKey(spki)
	key, ok := parsed.(*ecdsa.PublicKey)
	if err != nil || !ok || key.Curve != elliptic.P256() {
		return nil, wire.Refuse(wire.Malformed, "soft evidence: key", fmt.Sprintf("%T in %d bytes, error %v", parsed, len(spki), err), "a P-256 SubjectPublicKeyInfo")
	}
	return key, nil
}

// parse reads agent, program, arguments, flags and report data.
func (s *Statement) parse(parts [][]byte) error {
	if len(parts[0]) > 0 {
		if err := parseDigest(&s.Agent, "agent", parts[0]); err != nil {
			return err
		}
	}
	if err := parseDigest(&s.Program, "program", parts[1]); err != nil {
		return err
	}
	if err := parseDigest(&s.Arguments, "args", parts[2]); err != nil {
		return err
	}
	if len(parts[3]) != 1 || parts[3][0]&^(flagDebug|flagDynamic) != 0 {
		return wire.Refuse(wire.Malformed, "soft evidence: flags", fmt.Sprintf("%x", parts[3]), "one byte of known flags")
	}
	s.Debug = parts[3][0]&flagDebug != 0
	s.Dynamic = parts[3][0]&flagDynamic != 0
	if len(parts[4]) != len(s.ReportData) {
		return wire.Refuse(wire.Malformed, "soft evidence: report data length", len(parts[4]), len(s.ReportData))
	}
	s.ReportData = attest.ReportData(parts[4])
	return nil
}

func parseDigest(d *attest.Digest, name string, b []byte) error {
	if len(b) != len(d) || attest.Digest(b).IsZero() {
		return wire.Refuse(wire.Malformed, "soft evidence: "+name, fmt.Sprintf("%x", b), "a SHA-256 digest")
	}
	*d = attest.Digest(b)
	return nil
}

// isSignatureValid checks the signature over everything before it.
func (e unverifiedEvidence) isSignatureValid() bool {
	r := new(big.Int).SetBytes(e.signature[:scalarSize])
	s := new(big.Int).SetBytes(e.signature[scalarSize:])
	digest := sha256.Sum256(e.statement.signed(e.spki))
	return s.Cmp(halfOrder) <= 0 && ecdsa.Verify(e.key, digest[:], r, s)
}
