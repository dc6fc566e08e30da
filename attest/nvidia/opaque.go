package nvidia

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/cohort-tee/cohort/internal/wire"
)

// The opaque fields that something decides on.
const (
	fieldDriver  = 3
	fieldVBIOS   = 6
	fieldFWID    = 20 // SHA-384 of the firmware that holds the signing key
	fieldPPCIE   = 21
	fieldVersion = 34
	fieldFeature = 36
)

// The newest versions of the opaque data whose fields are known, in either form.
const (
	maxVersion      = 1 // of field 34
	maxTypedVersion = 2 // of the head, major
)

// The head of opaque data whose fields have types.
const (
	typedMagic = "NVDAOD"
	sizeTyped  = 12 // magic 6, profile 2, major 1, minor 1, reserved 2
)

// field is one of the opaque fields.
type field struct {
	kind  uint16
	typed uint16 // type of the content; zero where fields have none
	value []byte
}

// field is the content of one opaque field; ok is false where the report has none.
func (r *report) field(kind uint16) (value []byte, ok bool) {
	at := slices.IndexFunc(r.opaque, func(f field) bool { return f.kind == kind })
	if at < 0 {
		return nil, false
	}
	return r.opaque[at].value, true
}

// names are NVIDIA's of the opaque fields.
var names = map[uint16]string{
	1: "cert_issuer_name", 2: "cert_authority_key_identifier", fieldDriver: "driver", 4: "gpu_info", 5: "sku", fieldVBIOS: "vbios",
	7: "manufacturer_id", 8: "tamper_detection", 9: "smc", 10: "vpr", 11: "nvdec0_status", 12: "msrscnt", 13: "cprinfo",
	14: "board_id", 15: "chip_sku", 16: "chip_sku_mod", 17: "project", 18: "project_sku", 19: "project_sku_mod", fieldFWID: "fwid",
	fieldPPCIE: "protected_pcie_status", 22: "switch_pdi", 23: "floorswept_ports", 24: "position_id", 25: "lock_switch_status",
	32: "gpu_link_conn", 33: "sys_enable_status", fieldVersion: "opaque_data_version", 35: "chip_info", fieldFeature: "feature_flag",
}

func nameOf(kind uint16) string {
	if name, ok := names[kind]; ok {
		return name
	}
	return fmt.Sprintf("opaque_%d", kind)
}

// The modes, as policy names them: how GPUs of a machine are protected from one
// another and from the links between them.
const (
	modeSingle   = "SPT"      // one GPU for the TEE
	modeMulti    = "MPT"      // several, over links that are encrypted
	modePPCIE    = "PPCIE"    // several, over links that are in the clear
	modeUnstated = "unstated" // the report does not say
)

// readOpaque reads the opaque data, each type once, and what must be in it. Types
// that are unknown are signed like the others, and shown.
func (r *report) readOpaque(data []byte) error {
	in := &reader{rest: data}
	typed := bytes.HasPrefix(data, []byte(typedMagic))
	if typed {
		if err := r.readTypedHead(in); err != nil {
			return err
		}
	}
	for len(in.rest) > 0 {
		f := field{kind: uint16(in.number("type of a field", 2))}
		if typed {
			f.typed = uint16(in.number("type of a field's content", 2))
		}
		f.value = in.sized("field", 2)
		if in.err != nil {
			return in.err
		}
		if _, twice := r.field(f.kind); twice {
			return wire.Refuse(wire.Malformed, "nvidia: field "+nameOf(f.kind), "a second one", "one of each")
		}
		r.opaque = append(r.opaque, f)
	}
	if fwid, ok := r.field(fieldFWID); ok && len(fwid) != sizeDigest {
		return wire.Refuse(wire.Malformed, "nvidia: size of fwid", len(fwid), sizeDigest)
	}
	if !typed {
		form, _, err := r.fieldNumber(fieldVersion)
		if err != nil {
			return err
		}
		if form > maxVersion {
			return wire.Refuse(wire.Malformed, "nvidia: "+nameOf(fieldVersion), form, fmt.Sprint("at most ", maxVersion))
		}
	}
	return r.readVersions()
}

// readTypedHead reads the head of opaque data whose fields have types. Its minor
// version and what is reserved are shown.
func (r *report) readTypedHead(in *reader) error {
	r.head = in.readNext("head of the opaque data", sizeTyped)
	if in.err != nil {
		return in.err
	}
	profile, major := binary.LittleEndian.Uint16(r.head[len(typedMagic):]), r.head[len(typedMagic)+2]
	if profile != 0 || major > maxTypedVersion {
		return wire.Refuse(wire.Malformed, "nvidia: opaque data "+typedMagic, fmt.Sprintf("profile %d, version %d", profile, major), fmt.Sprint("profile 0, version at most ", maxTypedVersion))
	}
	return nil
}

// readVersions reads what the rules are about: driver, VBIOS and mode.
func (r *report) readVersions() error {
	driver, _ := r.field(fieldDriver)
	vbios, _ := r.field(fieldVBIOS)
	var err error
	if r.driver, err = parsePrintable("driver", driver); err != nil {
		return err
	}
	if r.vbios, err = version(vbios); err != nil {
		return err
	}
	r.mode, err = r.readMode()
	return err
}

// fieldNumber is a field of 1 to 8 bytes as a number, little-endian; ok is false
// where the report has none.
func (r *report) fieldNumber(kind uint16) (n uint64, ok bool, err error) {
	value, ok := r.field(kind)
	if !ok {
		return 0, false, nil
	}
	var wide [8]byte
	if len(value) == 0 || len(value) > len(wide) {
		return 0, true, wire.Refuse(wire.Malformed, "nvidia: size of "+nameOf(kind), len(value), "1 to 8")
	}
	copy(wide[:], value)
	return binary.LittleEndian.Uint64(wide[:]), true, nil
}

// parsePrintable reads printable ASCII that ends in NUL, and nothing after it.
func parsePrintable(name string, field []byte) (string, error) {
	s, ended := strings.CutSuffix(string(field), "\x00")
	if !ended || s == "" || strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return "", wire.Refuse(wire.Malformed, "nvidia: "+name, hex.EncodeToString(field), "printable text that ends in NUL")
	}
	return s, nil
}

// version reads a VBIOS version of 8 bytes as NVIDIA prints it: 00 9f 00 96 01 00 00
// 00 is 96.00.9F.00.01.
func version(field []byte) (string, error) {
	if len(field) != 8 || !bytes.Equal(field[5:], make([]byte, 3)) {
		return "", wire.Refuse(wire.Malformed, "nvidia: vbios", hex.EncodeToString(field), "8 bytes, the last 3 zero")
	}
	return fmt.Sprintf("%02X.%02X.%02X.%02X.%02X", field[3], field[2], field[1], field[0], field[4]), nil
}

// readMode reads the mode from the field of newer drivers, else from that of older
// ones, in which 0x55 is off; any other value is taken for on. A number that is
// unknown names a mode that no policy accepts.
func (r *report) readMode() (string, error) {
	flag, ok, err := r.fieldNumber(fieldFeature)
	if err != nil {
		return "", err
	}
	if ok {
		modes := []string{modeSingle, modeMulti, modePPCIE}
		if flag >= uint64(len(modes)) {
			return fmt.Sprint(nameOf(fieldFeature), " ", flag), nil
		}
		return modes[flag], nil
	}
	status, ok := r.field(fieldPPCIE)
	switch {
	case !ok:
		return modeUnstated, nil
	case bytes.Equal(status, []byte{0x55}):
		return modeSingle, nil
	}
	return modePPCIE, nil
}
