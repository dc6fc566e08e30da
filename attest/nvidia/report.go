package nvidia

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Sizes in bytes (DMTF DSP0274 1.1, GET_MEASUREMENTS and MEASUREMENTS).
const (
	sizeRequest   = 37 // header 4, nonce 32, slot 1
	sizeNonce     = 32
	sizeSignature = 96 // ECDSA P-384: r, s, big-endian
	sizeDigest    = 48 // SHA-384
	maxReport     = 16 << 10
)

// What is around the nonce of a request and at the head of a response: SPDM
// 1.1, all measurements, signed, by the key of slot 0.
var (
	requestHead  = []byte{0x11, 0xe0, 0x01, 0xff}
	responseHead = []byte{0x11, 0x60, 0x00, 0x00}
)

// report is a request with its response, whose form is right. None of it is
// verified yet.
type report struct {
	nonce        []byte          // of the request: what the report is bound to
	responder    []byte          // nonce of the GPU
	measurements map[byte][]byte // by index
	head         []byte          // of opaque data whose fields have types, else nil
	opaque       []field         // each type once, in the order of the report
	driver       string
	vbios        string
	mode         string

	raw, signed, signature []byte
}

// parseReport reads a report to its last byte. Every length is bounded by the bytes that
// are there. What is before the signature states where the signature begins:
// some drivers put a zero byte behind it.
func parseReport(raw []byte) (report, error) {
	r := report{raw: raw}
	if len(raw) > maxReport {
		return r, wire.Refuse(wire.TooLarge, "nvidia: size of the report", len(raw), maxReport)
	}
	if len(raw) < sizeRequest+sizeSignature {
		return r, short("report", len(raw), sizeRequest+sizeSignature)
	}
	request, in := raw[:sizeRequest], &reader{rest: raw[sizeRequest:]}
	if !bytes.HasPrefix(request, requestHead) || request[sizeRequest-1] != 0 {
		return r, wire.Refuse(wire.Malformed, "nvidia: request", hex.EncodeToString(request[:4]), "SPDM 1.1 GET_MEASUREMENTS of all, signed, slot 0")
	}
	r.nonce = request[4 : 4+sizeNonce]
	record, count, opaque, err := r.readResponse(in)
	if err != nil {
		return r, err
	}
	r.signed, r.signature = raw[:len(raw)-len(in.rest)], in.readNext("signature", sizeSignature)
	switch {
	case in.err != nil:
		return r, in.err
	case len(in.rest) > 0 && !bytes.Equal(in.rest, []byte{0}):
		return r, wire.Refuse(wire.Malformed, "nvidia: report", fmt.Sprint(len(in.rest), " bytes after the signature"), "none, or one zero byte")
	}
	if err := r.readMeasurements(&reader{rest: record}, count); err != nil {
		return r, err
	}
	return r, r.readOpaque(opaque)
}

// readResponse reads a response up to its signature, and returns its parts.
func (r *report) readResponse(in *reader) (record []byte, count int, opaque []byte, err error) {
	head := in.readNext("head", len(responseHead))
	count = in.number("number of measurements", 1)
	record = in.sized("measurements", 3)
	r.responder = in.readNext("nonce of the GPU", sizeNonce)
	opaque = in.sized("opaque data", 2)
	if in.err == nil && !bytes.Equal(head, responseHead) {
		in.err = wire.Refuse(wire.Malformed, "nvidia: response", hex.EncodeToString(head), "SPDM 1.1 MEASUREMENTS, slot 0")
	}
	return record, count, opaque, in.err
}

// readMeasurements reads the blocks of the record, in the order of their index:
// SHA-384 digests in DMTF's form.
func (r *report) readMeasurements(in *reader, count int) error {
	r.measurements = make(map[byte][]byte, count)
	last := 0
	for range count {
		index, spec := in.number("index of a measurement", 1), in.number("form of a measurement", 1)
		block := reader{rest: in.sized("measurement", 2)}
		if in.err != nil {
			return in.err
		}
		kind, value := block.number("type of a measurement", 1), block.sized("value of a measurement", 2)
		switch {
		case block.err != nil:
			return block.err
		case index <= last:
			return wire.Refuse(wire.Malformed, "nvidia: index of a measurement", index, fmt.Sprint("more than ", last))
		case spec != 1 || kind&0x80 != 0 || len(value) != sizeDigest || len(block.rest) > 0:
			return wire.Refuse(wire.Malformed, fmt.Sprint("nvidia: measurement ", index), fmt.Sprintf("form %d, type %#x, %d bytes, %d after them", spec, kind, len(value), len(block.rest)), "a digest of 48 bytes in DMTF's form")
		}
		r.measurements[byte(index)], last = value, index
	}
	if count == 0 || len(in.rest) > 0 {
		return wire.Refuse(wire.Malformed, "nvidia: number of measurements", count, "as many as the record holds, at least 1")
	}
	return nil
}

// claims are what the report states, once it is verified. A GPU measures no program,
// so there are no registers.
func (r report) claims() attest.Claims {
	details := map[string]any{
		"spdm": hex.EncodeToString(r.raw[:4]), "length": len(r.raw),
		"nonce": hex.EncodeToString(r.nonce), "nonce_of_gpu": hex.EncodeToString(r.responder), "mode": r.mode,
	}
	for index, value := range r.measurements {
		details[fmt.Sprintf("measurement_%02d", index)] = hex.EncodeToString(value)
	}
	for _, f := range r.opaque {
		details[nameOf(f.kind)] = hex.EncodeToString(f.value)
	}
	if r.head != nil {
		details["opaque_head"], details["opaque_types"] = hex.EncodeToString(r.head), r.types()
	}
	details[nameOf(fieldDriver)], details[nameOf(fieldVBIOS)] = r.driver, r.vbios
	return attest.Claims{
		Measurement: attest.Measurement{Platform: attest.NvidiaGPU}, ReportData: r.nonce, Details: details,
		NotVerified: []string{"measurements: compared with no reference value (RIM)", "development mode: the report states it by its measurements alone"},
	}
}

// types are the types of the opaque fields' contents, by the types of the fields.
func (r report) types() string {
	var all []string
	for _, f := range r.opaque {
		all = append(all, fmt.Sprintf("%d:%02x", f.kind, f.typed))
	}
	return strings.Join(all, " ")
}

// reader takes bytes from the front. After its first error it returns nothing.
type reader struct {
	rest []byte
	err  error
}

func (in *reader) readNext(what string, n int) []byte {
	if in.err == nil && n > len(in.rest) {
		in.err = short(what, len(in.rest), n)
	}
	if in.err != nil {
		return nil
	}
	taken := in.rest[:n]
	in.rest = in.rest[n:]
	return taken
}

// number is little-endian, as all of SPDM.
func (in *reader) number(what string, size int) int {
	var wide [4]byte
	copy(wide[:], in.readNext(what, size))
	return int(binary.LittleEndian.Uint32(wide[:]))
}

// sized is bytes after their length of so many bytes.
func (in *reader) sized(what string, size int) []byte {
	return in.readNext(what, in.number(what, size))
}

func short(what string, got, want int) error {
	return wire.Refuse(wire.Malformed, "nvidia: bytes left for "+what, got, fmt.Sprint("at least ", want))
}

// decodeText reads a report as NVIDIA's tools print it, in lower-case hexadecimal or in
// base64, and states which it was. Anything else is refused.
func decodeText(text []byte) (raw []byte, encoding string, err error) {
	if raw, err := hex.DecodeString(string(text)); err == nil && hex.EncodeToString(raw) == string(text) {
		return raw, "hex", nil
	}
	// Strict leaves line ends to be refused.
	if raw, err := base64.StdEncoding.Strict().DecodeString(string(text)); err == nil && base64.StdEncoding.EncodeToString(raw) == string(text) {
		return raw, "base64", nil
	}
	return nil, "", wire.Refuse(wire.Malformed, "nvidia: text of a report", fmt.Sprintf("%d bytes that begin with %.16q", len(text), text), "hexadecimal or base64")
}
