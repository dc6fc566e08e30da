package nvidia

import (
	"bytes"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"github.com/cohort-tee/cohort/internal/wire"
)

// The extensions of a leaf that state which firmware its key was made for (TCG DICE):
// a composite device id on GH100, TCB information on GB100.
var (
	oidDeviceID = asn1.ObjectIdentifier{2, 23, 133, 5, 4, 1}
	oidTCBInfo  = asn1.ObjectIdentifier{2, 23, 133, 5, 4, 1, 1}
	oidSHA384   = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}
)

// layer is what a leaf states about the firmware that holds its key.
type layer struct {
	device []byte   // SubjectPublicKeyInfo of the chip's key; nil where it is not stated
	fwids  [][]byte // SHA-384 digests of the firmware
	flags  []byte   // operational flags, first bit first; nil where they are not stated
}

// fwid is a digest of firmware in DER.
type fwid struct {
	Algorithm asn1.ObjectIdentifier
	Digest    []byte
}

// identity reads the leaf's extension: one of the two, once.
func (c chain) identity() (layer, error) {
	var found []layer
	for _, e := range c.leafCertificate().Extensions {
		var l layer
		var err error
		switch {
		case e.Id.Equal(oidDeviceID):
			l, err = readDeviceID(e.Value)
		case e.Id.Equal(oidTCBInfo):
			l, err = readTCBInfo(e.Value)
		default:
			continue
		}
		if err != nil {
			return layer{}, err
		}
		found = append(found, l)
	}
	if len(found) != 1 {
		return layer{}, wire.Refuse(wire.BadChain, "nvidia: DICE extensions of the leaf", len(found), 1)
	}
	return found[0], nil
}

// readDeviceID reads version, key of the device, digest of the firmware.
func readDeviceID(der []byte) (layer, error) {
	var id struct {
		Version int
		Device  asn1.RawValue
		FWID    fwid
	}
	if rest, err := asn1.Unmarshal(der, &id); err != nil || len(rest) > 0 || id.Version != 1 {
		return layer{}, wire.Refuse(wire.Malformed, "nvidia: device id in the leaf", fmt.Sprintf("version %d of %d bytes, error %v", id.Version, len(der), err), "version 1, key and firmware, DER")
	}
	l := layer{device: id.Device.FullBytes}
	return l, l.addDigest(id.FWID)
}

// The fields of TCB information that count here, by their tags.
const (
	tagFWIDs = 6
	tagFlags = 7
)

// readTCBInfo reads the digests and the flags.
func readTCBInfo(der []byte) (layer, error) {
	var fields []asn1.RawValue
	var l layer
	refused := wire.Refuse(wire.Malformed, "nvidia: TCB information in the leaf", fmt.Sprintf("%d bytes of another form", len(der)), "the form of TCG DICE, DER")
	if rest, err := asn1.Unmarshal(der, &fields); err != nil || len(rest) > 0 {
		return l, refused
	}
	for i, f := range fields {
		if f.Class != asn1.ClassContextSpecific || i > 0 && f.Tag <= fields[i-1].Tag {
			return l, refused
		}
		switch f.Tag {
		case tagFWIDs:
			if err := l.addDigests(f.Bytes); err != nil {
				return l, err
			}
		case tagFlags:
			if len(f.Bytes) < 2 || f.Bytes[0] > 7 {
				return l, refused
			}
			l.flags = f.Bytes[1:]
		}
	}
	return l, nil
}

// addDigests adds digests that stand one after the other.
func (l *layer) addDigests(der []byte) error {
	for len(der) > 0 {
		var d fwid
		var err error
		if der, err = asn1.Unmarshal(der, &d); err != nil {
			return wire.Refuse(wire.Malformed, "nvidia: firmware in the leaf", err, "DER")
		}
		if err := l.addDigest(d); err != nil {
			return err
		}
	}
	return nil
}

func (l *layer) addDigest(d fwid) error {
	if !d.Algorithm.Equal(oidSHA384) || len(d.Digest) != sizeDigest {
		return wire.Refuse(wire.Malformed, "nvidia: firmware in the leaf", d.Algorithm, "SHA-384, 48 bytes")
	}
	l.fwids = append(l.fwids, d.Digest)
	return nil
}

// checkReport checks that the key is that of the firmware which the report names, on the chip
// whose certificate is beside it. Drivers up to 535 name no firmware: then the leaf
// alone names it.
func (l layer) checkReport(r report, c chain) error {
	if l.device != nil && !bytes.Equal(l.device, c.certs[atChip].RawSubjectPublicKeyInfo) {
		return wire.Refuse(wire.WrongChip, "nvidia: device of the leaf", wire.Sum(l.device), "the key of "+c.certs[atChip].Subject.CommonName)
	}
	if len(l.fwids) == 0 {
		return wire.Refuse(wire.WrongChip, "nvidia: firmware of the leaf", "a leaf without a digest", "the digest of the firmware that has the key")
	}
	if named, ok := r.field(fieldFWID); ok && !bytes.Equal(l.fwids[0], named) {
		return wire.Refuse(wire.WrongChip, "nvidia: firmware of the report", hex.EncodeToString(named), hex.EncodeToString(l.fwids[0])+", by the signing certificate")
	}
	return nil
}

// flagNames are the operational flags that are set, as TCG names them.
func (l layer) flagNames() []string {
	set := []string{}
	for bit, name := range flagNames {
		if l.isFlagSet(bit) {
			set = append(set, name)
		}
	}
	return set
}

// flagNames are TCG's, by bit.
var flagNames = []string{
	"not_configured", "not_secure", "recovery", "debug",
	"not_replay_protected", "not_integrity_protected", "not_runtime_measured", "not_immutable", "not_tcb",
}

func (l layer) isFlagSet(bit int) bool {
	return bit/8 < len(l.flags) && l.flags[bit/8]&(0x80>>(bit%8)) != 0
}

// debug reports whether the firmware states that it is in a state in which its secrets
// can be read: not secure, recovery or debug.
func (l layer) debug() bool { return l.isFlagSet(1) || l.isFlagSet(2) || l.isFlagSet(3) }
