package nvidia

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/cohort-tee/cohort/internal/wire"
)

// The opaque fields that something decides on.
const (
	fieldDriver  = 3
	fieldVBIOS   = 6
	fieldFWID    = 20 // SHA-384 of the firmware that holds the signing key
	fieldPPCIE   = 21
	fieldFeature = 36
)

// names are NVIDIA's of the opaque fields.
var names = map[uint16]string{
	1: "cert_issuer_name", 2: "cert_authority_key_identifier", fieldDriver: "driver", 4: "gpu_info", 5: "sku", fieldVBIOS: "vbios",
	7: "manufacturer_id", 8: "tamper_detection", 9: "smc", 10: "vpr", 11: "nvdec0_status", 12: "msrscnt", 13: "cprinfo",
	14: "board_id", 15: "chip_sku", 16: "chip_sku_mod", 17: "project", 18: "project_sku", 19: "project_sku_mod", fieldFWID: "fwid",
	fieldPPCIE: "protected_pcie_status", 22: "switch_pdi", 23: "floorswept_ports", 24: "position_id", 25: "lock_switch_status",
	32: "gpu_link_conn", 33: "sys_enable_status", 34: "opaque_data_version", 35: "chip_info", fieldFeature: "feature_flag",
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
	ModeSingle   = "SPT"      // one GPU for the TEE
	ModeMulti    = "MPT"      // several, over links that are encrypted
	ModePPCIE    = "PPCIE"    // several, over links that are in the clear
	ModeUnstated = "unstated" // the report does not say
)

// readOpaque reads the opaque data, each type once, and what must be in it. Types
// that are unknown are signed like the others, and shown.
func (r *report) readOpaque(in *reader) error {
	r.opaque = map[uint16][]byte{}
	for len(in.rest) > 0 {
		kind, value := uint16(in.number("type of a field", 2)), in.sized("field", 2)
		if in.err != nil {
			return in.err
		}
		if _, twice := r.opaque[kind]; twice {
			return wire.Refuse(wire.Malformed, "nvidia: field "+nameOf(kind), "twice", "once")
		}
		r.opaque[kind] = value
	}
	if got := len(r.opaque[fieldFWID]); got != sizeDigest {
		return wire.Refuse(wire.Malformed, "nvidia: size of fwid", got, sizeDigest)
	}
	var err error
	if r.driver, err = text("driver", r.opaque[fieldDriver]); err != nil {
		return err
	}
	if r.vbios, err = version(r.opaque[fieldVBIOS]); err != nil {
		return err
	}
	r.mode, err = r.readMode()
	return err
}

// text reads printable ASCII that ends in NUL, and nothing after it.
func text(name string, field []byte) (string, error) {
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

// readMode tells the mode by the field of newer drivers, else by that of older
// ones, in which 0x55 says off; any other value is taken for on.
func (r *report) readMode() (string, error) {
	if flag, ok := r.opaque[fieldFeature]; ok {
		modes := []string{ModeSingle, ModeMulti, ModePPCIE}
		if len(flag) != 1 || int(flag[0]) >= len(modes) {
			return "", wire.Refuse(wire.Malformed, "nvidia: feature_flag", hex.EncodeToString(flag), "00, 01 or 02")
		}
		return modes[flag[0]], nil
	}
	status, ok := r.opaque[fieldPPCIE]
	switch {
	case !ok:
		return ModeUnstated, nil
	case bytes.Equal(status, []byte{0x55}):
		return ModeSingle, nil
	}
	return ModePPCIE, nil
}
