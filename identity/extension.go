package identity

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// extensionOID identifies the private extension. It is the UUID
// caba1482-1bf4-4a3f-be22-a69bf4f509e1 under the arc that Microsoft reserves for object
// identifiers made of UUIDs, in parts of 16, 16, 16, 16, 16, 24 and 24 bits. Under 2.25 the
// UUID would be one arc of 128 bits. crypto/x509, and so every TLS client in Go, accepts arcs
// of at most 31 bits and refuses such a certificate ("malformed extension OID field").
var extensionOID = asn1.ObjectIdentifier{1, 2, 840, 113556, 1, 8000, 2554, 51898, 5250, 7156, 19007, 48674, 10918900, 16058849}

// maxExtension is the maximum size of the extension, maxChip that of its chip, in bytes.
const (
	maxExtension = 32 << 10
	maxChip      = 256
)

// Marks: all certificates under a development policy have developmentMark. Leaves under a policy
// that accepts debuggable TEEs, whose memory the host can read, have debugMark.
const (
	developmentMark = "development"
	debugMark       = "debug"
)

// extension is the content of the private extension. It is never critical, because OpenSSL
// refuses unknown critical extensions; [Check] requires it.
type extension struct {
	kind         Kind
	id           attest.Digest
	task         string
	keyMode      policyfile.KeyMode
	head         attest.Digest // policy head of the issuance; see below
	development  bool
	debug        bool // in leaves only: roots outlive policies
	unit         wire.UnitID
	platform     attest.Platform
	chip         string
	measurements []attest.Measurement // sorted

	// The fields below are for kind group only. There task is the name of the group, and id
	// the digest of its roster.
	role   string
	ends   time.Time // end of the parties' approval, in whole seconds
	member member    // the unit's program and party; empty in a leaf that all units of the role share
}

// member names the program that a unit in a group runs, and the party of that program.
type member struct {
	task, release string
	party         attest.Digest // digest of the party's SSH key: [sshsig.KeyDigest]
}

// In the leaf of one unit, the field head is the head of the policy history at issuance. In a leaf
// that several units share, it is the head after the last policy step that cut off one of these
// units, or zero before the first such step, so that all of them get the same leaf. In a CA
// certificate it is the genesis digest, so that the certificate stays valid under later policies.

// Numbers of fields: extensionFields in every kind; in kind group, roleFields follow for role
// and end, and memberFields for the member of a unit.
const (
	extensionFields = 9
	roleFields      = 2
	memberFields    = 3
)

// encode returns the extension's value: a DER OCTET STRING that contains the framed fields. It
// refuses, with "extension", everything that [parseExtension] refuses.
func (e extension) encode() ([]byte, error) {
	if err := e.validate(); err != nil {
		return nil, err
	}
	der, err := asn1.Marshal(wire.Frame(wire.LabelExtension, e.fields()...))
	if err == nil && len(der) > maxExtension {
		return nil, wire.Refuse(wire.NoExtension, "extension: size in bytes", len(der), maxExtension)
	}
	return der, err
}

// fields returns the nine fields of every kind, empty where absent, then the measurements, and
// in kind group role and end, then the member of a unit.
func (e extension) fields() [][]byte {
	fields := [][]byte{
		[]byte(e.kind), nonZero(e.id[:]), []byte(e.task), []byte(e.keyMode), e.head[:],
		[]byte(e.marks()), nonZero(e.unit[:]), []byte(e.platform), []byte(e.chip),
	}
	for _, m := range e.measurements {
		fields = append(fields, m.Bytes())
	}
	if e.kind == KindGroup {
		fields = append(fields, []byte(e.role), wire.Uint64(uint64(e.ends.Unix())))
	}
	if e.member != (member{}) {
		fields = append(fields, []byte(e.member.task), []byte(e.member.release), e.member.party[:])
	}
	return fields
}

// marks returns the marks that are set, separated by a space.
func (e extension) marks() string {
	var set []string
	if e.development {
		set = append(set, developmentMark)
	}
	if e.debug {
		set = append(set, debugMark)
	}
	return strings.Join(set, " ")
}

// nonZero returns b, or nil if b is all zero.
func nonZero(b []byte) []byte {
	if len(bytes.Trim(b, "\x00")) == 0 {
		return nil
	}
	return b
}

// parseExtension is the inverse of encode. It refuses, with "extension", all bytes that encode
// does not produce.
func parseExtension(der []byte) (extension, error) {
	e := decodeExtension(der)
	again, err := e.encode()
	if err != nil {
		return extension{}, err
	}
	if !bytes.Equal(again, der) {
		return extension{}, wire.Refuse(wire.NoExtension, "extension: encoding", fmt.Sprintf("%.64x…", der), "the encoding of docs/spec/identity.md")
	}
	return e, nil
}

// decodeExtension parses the fields without checking them. parseExtension encodes the result
// again: fields of wrong size and unknown marks then encode to different bytes. For malformed bytes
// decodeExtension returns the zero extension, which encode refuses.
func decodeExtension(der []byte) extension {
	var framed []byte
	if len(der) > maxExtension {
		return extension{}
	}
	if _, err := asn1.Unmarshal(der, &framed); err != nil {
		return extension{}
	}
	f, err := wire.Unframe(wire.LabelExtension, framed, -1)
	if err != nil || len(f) < extensionFields {
		return extension{}
	}
	e := extension{
		kind: Kind(f[0]), task: string(f[2]), keyMode: policyfile.KeyMode(f[3]),
		development: bytes.HasPrefix(f[5], []byte(developmentMark)), debug: bytes.HasSuffix(f[5], []byte(debugMark)), platform: attest.Platform(f[7]), chip: string(f[8]),
	}
	copy(e.id[:], f[1])
	copy(e.head[:], f[4])
	copy(e.unit[:], f[6])
	if e.kind == KindGroup {
		return e.decodeRole(f[extensionFields:])
	}
	for _, b := range f[extensionFields:] {
		m, err := attest.ParseMeasurement(b)
		if err != nil {
			return extension{}
		}
		e.measurements = append(e.measurements, m)
	}
	return e
}

// decodeRole parses the fields of kind group that follow the nine common fields.
func (e extension) decodeRole(f [][]byte) extension {
	if len(f) != roleFields && len(f) != roleFields+memberFields || len(f[1]) != 8 {
		return extension{}
	}
	e.role, e.ends = string(f[0]), time.Unix(int64(binary.BigEndian.Uint64(f[1])), 0).UTC()
	if f = f[roleFields:]; len(f) > 0 {
		e.member.task, e.member.release = string(f[0]), string(f[1])
		copy(e.member.party[:], f[2])
	}
	return e
}

// shape defines which fields the extension of a kind contains; all others must be absent.
type shape struct {
	identity     bool                 // id and task
	optional     bool                 // id and task, or neither
	keyModes     []policyfile.KeyMode // the key mode is one of these; nil means no key mode
	unit         bool                 // unit and platform, optionally a chip
	measurements bool
	role         bool // role and end, optionally unit, platform and member
	shared       bool // several units share the leaf, unless it names one unit
}

var shapes = map[Kind]shape{
	kindAuthorityRoot: {},
	KindAuthority:     {optional: true},
	kindIdentityRoot:  {identity: true, measurements: true},
	kindCross:         {identity: true, measurements: true},
	KindShared:        {identity: true, keyModes: []policyfile.KeyMode{policyfile.Shared}, shared: true},
	KindUnit:          {identity: true, keyModes: []policyfile.KeyMode{policyfile.Shared, policyfile.PerUnit}, unit: true},
	kindGroupRoot:     {identity: true},
	kindGroupBus:      {identity: true},
	KindGroup:         {identity: true, keyModes: []policyfile.KeyMode{policyfile.Shared, policyfile.PerUnit}, role: true, shared: true},
}

// validate refuses, with "extension", fields that do not match the kind.
func (e extension) validate() error {
	want, known := shapes[e.kind]
	unit := e.unit != wire.UnitID{}
	want.unit = want.unit || want.role && unit
	want.identity = want.identity || want.optional && !e.id.IsZero()
	ofMember := want.role && unit
	complete := wire.ValidName(e.member.task) && wire.ValidReleaseName(e.member.release) && !e.member.party.IsZero()
	rules := []struct {
		name string
		got  any
		ok   bool
	}{
		{"kind", e.kind, known},
		{"identity", e.id, e.id.IsZero() != want.identity},
		{"task", e.task, wire.ValidName(e.task) == want.identity && (e.task != "") == want.identity},
		{"key mode", e.keyMode, slices.Contains(want.keyModes, e.keyMode) || want.keyModes == nil && e.keyMode == ""},
		{"head", e.head, !e.head.IsZero() || want.shared && !unit},
		{"unit", e.unit, unit == want.unit && (unit || !want.shared || e.keyMode == policyfile.Shared)},
		{"platform", e.platform, (e.platform != "") == want.unit},
		{"chip", e.chip, e.chip == "" || want.unit && len(e.chip) <= maxChip},
		{"measurements", len(e.measurements), (len(e.measurements) > 0) == want.measurements && ascending(e.measurements)},
		{"role", e.role, wire.ValidName(e.role) == want.role && (e.role != "") == want.role},
		{"end", e.ends, e.ends.IsZero() != want.role},
		{"member", e.member, (e.member != member{}) == ofMember && complete == ofMember},
	}
	for _, r := range rules {
		if !r.ok {
			return wire.Refuse(wire.NoExtension, "extension: "+r.name, fmt.Sprint(r.got, " in kind ", e.kind), "a value that the kind allows")
		}
	}
	return nil
}

// policyFacts returns the facts about a unit that its leaf contains.
func (e extension) policyFacts() policy.Facts {
	f := policy.Facts{
		Task: e.task, Identity: e.id, Unit: e.unit, Platform: e.platform, Chip: e.chip, Head: e.head, Shared: e.unit == wire.UnitID{},
	}
	if e.kind == KindGroup {
		f.Task, f.Release, f.Party = e.member.task, e.member.release, e.member.party
		f.Group, f.Role = e.task, e.role
	}
	return f
}

// ascending reports whether the measurements are sorted, without duplicates.
func ascending(list []attest.Measurement) bool {
	for i := 1; i < len(list); i++ {
		if list[i-1].Compare(list[i]) >= 0 {
			return false
		}
	}
	return true
}

// extensionOf returns the private extension of a certificate, parsed.
func extensionOf(c *x509.Certificate) (extension, error) {
	for _, x := range c.Extensions {
		if x.Id.Equal(extensionOID) && !x.Critical {
			return parseExtension(x.Value)
		}
	}
	return extension{}, wire.Refuse(wire.NoExtension, "extension of", c.Subject.String()+", which does not have it", extensionOID)
}
