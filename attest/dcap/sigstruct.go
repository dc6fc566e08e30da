package dcap

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/big"
	"slices"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// sigstructSize is the size of an enclave's signature structure in bytes (Intel
// SDM, volume 3D, SIGSTRUCT).
const sigstructSize = 1808

// Constants at its offsets 0 and 24.
var (
	sigstructHead = []byte{6, 0, 0, 0, 0xe1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0}
	sigstructBody = []byte{1, 1, 0, 0, 0x60, 0, 0, 0, 0x60, 0, 0, 0, 1, 0, 0, 0}
)

// signedEnclave is what the signer of an enclave states about it.
type signedEnclave struct {
	Measurement attest.Measurement // CONFIGID is zeros: it is not configured yet
	SVN         uint16
	Debug       bool // the signer allows that it is started for debugging
}

// readSigstruct reads a signature structure and checks its signature. It states what
// the CPU will demand of the enclave's code, not that such code exists.
func readSigstruct(b []byte) (signedEnclave, error) {
	if len(b) != sigstructSize || !bytes.Equal(b[:16], sigstructHead) || !bytes.Equal(b[24:40], sigstructBody) {
		return signedEnclave{}, wire.Refuse(wire.Malformed, "sgx: signature structure", fmt.Sprintf("%d bytes that begin with %.16x", len(b), b), "SIGSTRUCT of 1808 bytes")
	}
	le := binary.LittleEndian
	if e := le.Uint32(b[512:]); e != 3 {
		return signedEnclave{}, wire.Refuse(wire.Malformed, "sgx: exponent of the signer's key", e, 3)
	}
	modulus, signature := bytes.Clone(b[128:512]), bytes.Clone(b[516:900])
	signer := sha256.Sum256(modulus)
	slices.Reverse(modulus)
	slices.Reverse(signature)
	signed := sha256.Sum256(append(bytes.Clone(b[:128]), b[900:1028]...))
	key := &rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: 3}
	if err := rsa.VerifyPKCS1v15(key, crypto.SHA256, signed[:], signature); err != nil {
		return signedEnclave{}, wire.Refuse(wire.BadSignature, "sgx: signature of the enclave", err, "one by its signer")
	}
	product := binary.BigEndian.AppendUint16(nil, le.Uint16(b[1024:]))
	return signedEnclave{
		Measurement: attest.Measurement{Platform: attest.SGX, Registers: []attest.Register{
			{Name: "mrenclave", Value: bytes.Clone(b[960:992])}, {Name: "mrsigner", Value: signer[:]},
			{Name: "isvprodid", Value: product}, {Name: "configid", Value: make([]byte, 64)},
		}},
		SVN:   le.Uint16(b[1026:]),
		Debug: b[928]&b[944]&2 != 0 || b[944]&2 == 0,
	}, nil
}

// findSigstruct finds the signature structure in the file of a signed enclave,
// wherever the tool that signed it puts it: alone (Gramine), in a note (Intel's
// SDK), in a section (Open Enclave). It refuses a file with none, or with several
// that are not the same.
func findSigstruct(file []byte) (found signedEnclave, err error) {
	err = wire.Refuse(wire.Malformed, "sgx: signature structure", fmt.Sprintf("a file of %d bytes without one", len(file)), "a file with a SIGSTRUCT of 1808 bytes")
	var raw []byte
	for rest := file; ; rest = rest[1:] {
		at := bytes.Index(rest, sigstructHead)
		if at < 0 || len(rest)-at < sigstructSize {
			return found, err
		}
		rest = rest[at:]
		candidate := rest[:sigstructSize]
		enclave, fault := readSigstruct(candidate)
		switch {
		case fault == nil && raw != nil && !bytes.Equal(raw, candidate):
			return signedEnclave{}, wire.Refuse(wire.Malformed, "sgx: signature structures", "two that differ", "one, or equal ones")
		case fault == nil:
			found, raw, err = enclave, candidate, nil
		case raw == nil:
			err = fault
		}
	}
}
