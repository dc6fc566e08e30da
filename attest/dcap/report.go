package dcap

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"github.com/cohort-tee/cohort/internal/wire"
)

// enclave is the SGX report of an enclave, 384 bytes (Intel SDM volume 3D,
// table REPORT): the body of an SGX quote, and what vouches for every
// attestation key.
type enclave []byte

func (e enclave) cpuSVN() []byte          { return e[0:16] }
func (e enclave) miscSelect() []byte      { return e[16:20] }
func (e enclave) extProductID() []byte    { return e[32:48] }
func (e enclave) attributes() []byte      { return e[48:64] }
func (e enclave) mrEnclave() []byte       { return e[64:96] }
func (e enclave) mrSigner() []byte        { return e[128:160] }
func (e enclave) configID() []byte        { return e[192:256] }
func (e enclave) productID() uint16       { return binary.LittleEndian.Uint16(e[256:]) }
func (e enclave) securityVersion() uint16 { return binary.LittleEndian.Uint16(e[258:]) }
func (e enclave) configSVN() uint16       { return binary.LittleEndian.Uint16(e[260:]) }
func (e enclave) familyID() []byte        { return e[304:320] }
func (e enclave) reportData() []byte      { return e[320:384] }

// debug reports attribute bit 1: the host can read the enclave.
func (e enclave) debug() bool { return e[48]&2 != 0 }

// checkForm refuses what no enclave that runs can be: attribute bit 0, INIT, is set
// and the reserved bytes are zero.
func (e enclave) checkForm() error {
	if e[48]&1 == 0 {
		return wire.Refuse(wire.Malformed, "dcap: enclave", "an enclave that is not initialised", "an initialised one")
	}
	return checkZero("enclave", e[20:32], e[96:128], e[160:192], e[262:304])
}

// guest is the TD report of a trust domain, 584 bytes or, since TDX 1.5, 648
// (Intel TDX DCAP quoting library, TD quote body).
type guest []byte

func (g guest) tcbSVN() []byte                  { return g[0:16] }
func (g guest) mrSEAM() []byte                  { return g[16:64] }
func (g guest) mrSignerSEAM() []byte            { return g[64:112] }
func (g guest) seamAttributes() []byte          { return g[112:120] }
func (g guest) attributes() []byte              { return g[120:128] }
func (g guest) extendedFeatures() []byte        { return g[128:136] }
func (g guest) measurementTD() []byte           { return g[136:184] }
func (g guest) mrConfigID() []byte              { return g[184:232] }
func (g guest) mrOwner() []byte                 { return g[232:280] }
func (g guest) mrOwnerConfig() []byte           { return g[280:328] }
func (g guest) runtimeMeasurement(n int) []byte { return g[328+48*n : 376+48*n] }
func (g guest) reportData() []byte              { return g[520:584] }

// tcbSVN2 and mrServiceTD are nil before TDX 1.5.
func (g guest) tcbSVN2() []byte     { return g[guestSize:min(len(g), 600)] }
func (g guest) mrServiceTD() []byte { return g[min(len(g), 600):] }

// owners is MROWNER and then MROWNERCONFIG, 96 bytes.
func (g guest) owners() []byte { return g[232:328] }

// debug reports whether any of the attribute bits 0 to 7 is set, all of which
// make a trust domain untrusted; bit 0 lets the host read it.
func (g guest) debug() bool { return g[120] != 0 }

// migratable reports attribute bit 29: a migration TD may move it.
func (g guest) migratable() bool { return g[123]&0x20 != 0 }

// checkForm refuses a trust domain without x87 and SSE state, which there is not.
func (g guest) checkForm() error {
	if g.extendedFeatures()[0]&3 != 3 {
		return wire.Refuse(wire.Malformed, "dcap: XFAM", g.extendedFeatures(), "with x87 and SSE")
	}
	return nil
}

// checkZero refuses reserved bytes that are used.
func checkZero(of string, reserved ...[]byte) error {
	for _, b := range reserved {
		if len(bytes.Trim(b, "\x00")) > 0 {
			return wire.Refuse(wire.Malformed, "dcap: reserved bytes of the "+of, hex.EncodeToString(b), "zeros")
		}
	}
	return nil
}
