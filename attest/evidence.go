// Package attest turns Evidence into an Attestation Result, in the words of
// RFC 9334.
//
// An [Attester] makes [Evidence] about the program it runs beside; evidence is
// always bound to its use by [BindReportData]. A [Verifier] appraises evidence with the
// [Appraiser] of its platform, against the [Rules] that policy gives for that
// platform, and is the only maker of a [Result]. The zero Result is accepted
// nowhere. What code a result may represent is not decided here but by package
// policy, which compares the result's measurement with a task's reference
// values.
//
// Appraisal is pure: evidence, endorsements, rules and time go in, a result or
// a [Refusal] comes out. It reads no clock and no network and keeps nothing.
// The package trusts the vendors whose roots the rules name, and no other party;
// an unknown platform, a missing rule and every malformed byte are refused.
//
// The platforms are in the packages below this one.
//
// Files, each using those before it: evidence.go, fetched.go, result.go, bits.go, composite.go, measurement.go,
// platform.go, policyrules.go, rules.go, sealing.go, credential.go, verifier.go.
package attest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Names of the wire package that appear in this package's API.
type (
	// Digest is a SHA-256 digest; its text form is "sha256:" and 64 digits.
	Digest = wire.Digest
	// Refusal is the error of every refused check.
	Refusal = wire.Refusal
	// Reason is the closed list of why something is refused.
	Reason = wire.Reason
)

// ParseDigest reads a digest: 64 lower-case hexadecimal digits, not all zero, with or without the
// prefix "sha256:". A genesis digest is usually written without it. Its error has the reason
// "malformed".
func ParseDigest(s string) (Digest, error) { return wire.ParseDigest(s) }

// Platform names one kind of TEE, as policy files write it.
type Platform string

// The platforms.
const (
	Soft     Platform = "soft"      // the development TEE: a daemon that launches what it measures
	TPM      Platform = "tpm"       // any TPM 2.0
	SNP      Platform = "snp"       // AMD SEV-SNP
	AzureSNP Platform = "azure-snp" // AMD SEV-SNP on Azure: a report that binds the key of a TPM
	TDX      Platform = "tdx"       // Intel TDX
	SGX      Platform = "sgx"       // Intel SGX
	Nitro    Platform = "nitro"     // AWS Nitro enclaves

	NvidiaGPU Platform = "nvidia-gpu" // NVIDIA GPU: a device beside a TEE
)

// IsDevice reports whether a platform is a device that a program uses and not a TEE
// that it runs in. Its evidence states nothing of a program, so it counts beside a
// TEE's only.
func (p Platform) IsDevice() bool { return p == NvidiaGPU }

// mediaTypes are the types of evidence inside a conceptual message wrapper.
var mediaTypes = map[Platform]string{
	Soft:     "application/vnd.cohort.soft-evidence",
	TPM:      "application/vnd.cohort.tpm-evidence",
	SNP:      "application/vnd.cohort.snp-evidence",
	AzureSNP: "application/vnd.cohort.azure-snp-evidence",
	TDX:      "application/vnd.cohort.tdx-evidence",
	SGX:      "application/vnd.cohort.sgx-evidence",
	Nitro:    "application/vnd.cohort.nitro-evidence",

	NvidiaGPU: "application/vnd.cohort.nvidia-gpu-evidence",
}

// Evidence is what a TEE states about the program inside it, in the encoding of
// its platform. Nothing in it is checked yet.
type Evidence struct {
	Platform Platform
	Raw      []byte
	// Endorsed are endorsements that the TEE's host gave along with it, or
	// nil. Only their vendor's signatures make them count.
	Endorsed Endorsements
	// Devices are the evidence of further devices of the same machine, at most
	// [MaxDevices], bound to the same report data. None of them has devices.
	Devices []Evidence
}

// WithEndorsements is e with more endorsements, which replaces those of the same
// role that came along.
func (e Evidence) WithEndorsements(more Endorsements) Evidence {
	if len(more) > 0 {
		all := Endorsements{}
		maps.Copy(all, e.Endorsed)
		maps.Copy(all, more)
		e.Endorsed = all
	}
	return e
}

// WithEach is With for every part: the first endorsements are the TEE's, the others
// each device's in turn. A part that there are none for stays as it is.
func (e Evidence) WithEach(more []Endorsements) Evidence {
	if len(more) == 0 {
		return e
	}
	e = e.WithEndorsements(more[0])
	e.Devices = slices.Clone(e.Devices)
	for i := range min(len(e.Devices), len(more)-1) {
		e.Devices[i] = e.Devices[i].WithEndorsements(more[i+1])
	}
	return e
}

// MarshalJSON writes the evidence as a conceptual message wrapper (RFC 9999), a
// JSON record of media type and value. With endorsements or devices it is a
// collection of such records.
func (e Evidence) MarshalJSON() ([]byte, error) {
	if len(e.Endorsed) > 0 || len(e.Devices) > 0 {
		return e.collect()
	}
	return e.record()
}

// record is the evidence alone.
func (e Evidence) record() ([]byte, error) {
	mediaType, ok := mediaTypes[e.Platform]
	if !ok {
		return nil, wire.Refuse(wire.NoPlatform, "evidence: platform", e.Platform, "a known platform")
	}
	return wrapRecord(mediaType, e.Raw)
}

// wrapRecord makes a record in JSON.
func wrapRecord(mediaType string, value []byte) ([]byte, error) {
	if len(value) == 0 {
		return nil, wire.Refuse(wire.Malformed, "evidence: size in bytes", 0, "at least 1")
	}
	record := append([]byte(`["`), mediaType...)
	record = base64.RawURLEncoding.AppendEncode(append(record, `","`...), value)
	return append(record, `"]`...), nil
}

// UnmarshalJSON reads a conceptual message wrapper of at most 512 KiB around
// values of at most 256 KiB. Only the encoding that MarshalJSON writes is read.
// An unknown media type is refused with reason "platform", anything else that is
// not such a wrapper with "malformed".
func (e *Evidence) UnmarshalJSON(b []byte) error {
	if len(b) > 2*wire.MaxEvidence {
		return wire.Refuse(wire.TooLarge, "evidence: size in bytes", len(b), 2*wire.MaxEvidence)
	}
	read, err := readWrapper(b)
	if err != nil {
		return err
	}
	if again, err := read.MarshalJSON(); err != nil || !bytes.Equal(again, b) {
		return wire.Refuse(wire.Malformed, "evidence: wrapper", "text that is encoded in another way", "the one encoding")
	}
	*e = read
	return nil
}

// readWrapper reads a record or a collection. Encoding it again shows whether it
// was spelled as it must be.
func readWrapper(b []byte) (Evidence, error) {
	if bytes.HasPrefix(b, []byte("{")) {
		return readCollection(b)
	}
	return readRecord(b)
}

func readRecord(b []byte) (Evidence, error) {
	mediaType, raw, err := unwrapRecord(b)
	if err != nil {
		return Evidence{}, err
	}
	e := Evidence{Platform: platformOf(mediaType), Raw: raw}
	if e.Platform == "" {
		return Evidence{}, wire.Refuse(wire.NoPlatform, "evidence: media type", mediaType, "the type of a known platform")
	}
	return e, nil
}

// unwrapRecord takes a record apart. The caller makes sure that it is spelled as wrap
// does.
func unwrapRecord(b []byte) (mediaType string, raw []byte, err error) {
	inside, began := bytes.CutPrefix(b, []byte(`["`))
	inside, ended := bytes.CutSuffix(inside, []byte(`"]`))
	name, value, both := bytes.Cut(inside, []byte(`","`))
	if !began || !ended || !both {
		return "", nil, wire.Refuse(wire.Malformed, "evidence: wrapper", fmt.Sprintf("%d bytes that begin with %.16q", len(b), b), "a JSON record of RFC 9999")
	}
	raw, err = base64.RawURLEncoding.Strict().AppendDecode(nil, value)
	if err != nil {
		return "", nil, wire.Refuse(wire.Malformed, "evidence: wrapper", err, "base64url without padding")
	}
	if len(raw) == 0 || len(raw) > wire.MaxEvidence {
		return "", nil, wire.Refuse(wire.Malformed, "evidence: size in bytes", len(raw), "1 to 262144")
	}
	return string(name), raw, nil
}

// platformOf is the platform with a media type, or none.
func platformOf(mediaType string) Platform {
	for platform, known := range mediaTypes {
		if mediaType == known {
			return platform
		}
	}
	return ""
}

// Endorsements are the vendor's statements that an appraiser needs beside the
// evidence (certificates, revocation lists, TCB information), by role. They
// are as unchecked as the evidence.
type Endorsements map[string][]byte

// A collection holds evidence and endorsements, one member for each role. With
// devices it has another type, and the members of device N begin with "N.".
const (
	memberType      = "__cmwc_t"
	endorsedType    = "urn:cohort:endorsed-evidence"
	compositeType   = "urn:cohort:composite-evidence"
	memberEvidence  = "evidence"
	endorsementType = "application/vnd.cohort.endorsement"
)

// maxRole bounds the name of a role, in bytes.
const maxRole = 32

// MaxDevices bounds the devices beside one TEE: the largest machines sold have 8
// GPUs, and 4 switches between them.
const MaxDevices = 16

// collect writes a collection. It is flat: a part of a composite is no collection
// of its own, so there is nothing to nest.
func (e Evidence) collect() ([]byte, error) {
	kind := endorsedType
	if len(e.Devices) > 0 {
		kind = compositeType
	}
	members := map[string]json.RawMessage{memberType: json.RawMessage(strconv.Quote(kind))}
	if err := e.addTo(members, ""); err != nil {
		return nil, err
	}
	if err := e.checkDevices(); err != nil {
		return nil, err
	}
	for i, d := range e.Devices {
		if err := d.addTo(members, devicePrefix(i)); err != nil {
			return nil, err
		}
	}
	return joinMembers(members), nil
}

// joinMembers writes members in the order of their names, none of which needs an escape.
// It is written by hand for the reason that splitMembers states.
func joinMembers(members map[string]json.RawMessage) []byte {
	size := 2
	for name, value := range members {
		size += len(name) + len(value) + len(`"":,`)
	}
	out := append(make([]byte, 0, size), '{')
	for i, name := range slices.Sorted(maps.Keys(members)) {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(append(append(append(out, '"'), name...), `":`...), members[name]...)
	}
	return append(out, '}')
}

func devicePrefix(i int) string { return strconv.Itoa(i) + "." }

// addTo adds the members of one part.
func (e Evidence) addTo(members map[string]json.RawMessage, prefix string) (err error) {
	if members[prefix+memberEvidence], err = e.record(); err != nil {
		return err
	}
	for role, content := range e.Endorsed {
		if !isRole(role) {
			return wire.Refuse(wire.Malformed, "evidence: role of an endorsement", role, "1 to 32 of a-z and _, another one")
		}
		if members[prefix+role], err = wrapRecord(endorsementType, content); err != nil {
			return err
		}
	}
	return nil
}

// isRole reports whether a name may be the role of an endorsement, and does not mean something
// else.
func isRole(role string) bool {
	if role == memberEvidence || role == memberType {
		return false
	}
	return role != "" && len(role) <= maxRole && strings.Trim(role, "abcdefghijklmnopqrstuvwxyz_") == ""
}

// checkDevices refuses devices that are none, that have devices, and too many.
func (e Evidence) checkDevices() error {
	if len(e.Devices) > MaxDevices {
		return wire.Refuse(wire.Malformed, "evidence: number of devices", len(e.Devices), MaxDevices)
	}
	for _, d := range e.Devices {
		switch {
		case !d.Platform.IsDevice():
			return wire.Refuse(wire.NoPlatform, "evidence: platform of a device", d.Platform, "that of a device")
		case len(d.Devices) > 0:
			return wire.Refuse(wire.Malformed, "evidence: devices of a device", len(d.Devices), "none")
		}
	}
	return nil
}

// readCollection takes a collection apart. Members that belong to no part, and
// types that are not ours, show when it is encoded again.
func readCollection(b []byte) (Evidence, error) {
	members, ok := splitMembers(b)
	if !ok {
		return Evidence{}, wire.Refuse(wire.Malformed, "evidence: collection", fmt.Sprintf("%d bytes that begin with %.16q", len(b), b), "a JSON collection of RFC 9999")
	}
	e, err := readPart(members, "")
	if err != nil {
		return Evidence{}, err
	}
	// Each part costs a pass over all members, so reading ends with the first device too many.
	for i := 0; i <= MaxDevices && members[devicePrefix(i)+memberEvidence] != nil; i++ {
		d, err := readPart(members, devicePrefix(i))
		if err != nil {
			return Evidence{}, err
		}
		e.Devices = append(e.Devices, d)
	}
	return e, e.checkDevices()
}

// splitMembers finds the members of a collection, none of which needs an escape and none
// holds a bracket inside. It and join are written by hand: package json needs for
// either of the two steps twice as long as all of the reading takes, and for both nearly
// half as long as the appraisal (BenchmarkCollection).
func splitMembers(b []byte) (members map[string]json.RawMessage, ok bool) {
	members = map[string]json.RawMessage{}
	rest, ok := bytes.CutPrefix(b, []byte("{"))
	for ok {
		var name, value []byte
		if name, rest, ok = cutEnclosed(rest, '"', '"'); !ok {
			break
		}
		if rest, ok = bytes.CutPrefix(rest, []byte(":")); !ok {
			break
		}
		if value, rest, ok = cutEnclosed(rest, '[', ']'); !ok {
			value, rest, ok = cutEnclosed(rest, '"', '"')
		}
		if !ok {
			break
		}
		members[string(name[1:len(name)-1])] = value
		if string(rest) == "}" {
			return members, true
		}
		rest, ok = bytes.CutPrefix(rest, []byte(","))
	}
	return nil, false
}

// cutEnclosed is what b begins with, from one character to another.
func cutEnclosed(b []byte, from, to byte) (value, rest []byte, ok bool) {
	if len(b) == 0 || b[0] != from {
		return nil, b, false
	}
	n := bytes.IndexByte(b[1:], to)
	if n < 0 {
		return nil, b, false
	}
	return b[:n+2], b[n+2:], true
}

// readPart reads the members that begin with a prefix and a role.
func readPart(members map[string]json.RawMessage, prefix string) (Evidence, error) {
	e, err := readRecord(members[prefix+memberEvidence])
	if err != nil {
		return Evidence{}, err
	}
	for name, member := range members {
		role, mine := strings.CutPrefix(name, prefix)
		if !mine || !isRole(role) {
			continue
		}
		_, content, err := unwrapRecord(member)
		if err != nil {
			return Evidence{}, err
		}
		if e.Endorsed == nil {
			e.Endorsed = Endorsements{}
		}
		e.Endorsed[role] = content
	}
	return e, nil
}
