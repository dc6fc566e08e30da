package dcap

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Tags of a stream, 8 bytes each: the CPU's instructions, as it measures them, and
// a chunk that is loaded without being measured.
const (
	tagCreate     = "ECREATE\x00"
	tagAdd        = "EADD\x00\x00\x00\x00"
	tagExtend     = "EEXTEND\x00"
	tagUnmeasured = "UNMEASRD"
)

// Sizes in bytes.
const (
	recordSize = 64 // of what an instruction adds to the measurement
	chunkSize  = 256
	pageSize   = 4096
)

// isSGXS reports whether a file begins as an SGXS stream does.
func isSGXS(b []byte) bool { return bytes.HasPrefix(b, []byte(tagCreate)) }

// measureSGXS computes an enclave's MRENCLAVE from its SGXS stream: the
// instructions that build it, each as the 64 bytes that the CPU measures of it
// (Intel SDM, volume 3D, ECREATE, EADD, EEXTEND), the last with its 256 bytes of
// content. Signer, product and configuration are none of it: they are open, and
// zeros. It also counts the bytes that are loaded unmeasured, for the host to
// change as it likes. It refuses with "malformed" what no enclave is built by.
func measureSGXS(b []byte) (m attest.ReferenceValue, unmeasured int, err error) {
	digest := sha256.New()
	s := sgxs{rest: b}
	for len(s.rest) > 0 {
		tag, record, err := s.nextRecord()
		if err != nil {
			return m, 0, err
		}
		if tag == tagUnmeasured {
			unmeasured += chunkSize
			continue
		}
		digest.Write(record)
	}
	if !s.page {
		return m, 0, wire.Refuse(wire.Malformed, "sgxs: pages", 0, "at least 1")
	}
	return attest.ReferenceValue{Platform: attest.SGX, Registers: []attest.Register{
		{Name: "mrenclave", Value: digest.Sum(nil)}, {Name: "mrsigner", Any: true}, {Name: "isvprodid", Any: true}, {Name: "configid", Value: make([]byte, 64)},
	}}, unmeasured, nil
}

// sgxs reads a stream, record by record.
type sgxs struct {
	rest []byte
	size uint64 // of the enclave; zero before ECREATE
	at   uint64 // the page that was added last
	page bool   // whether there was one
	seen uint16 // chunks of it
}

// nextRecord reads one record, with its content where it has any.
func (s *sgxs) nextRecord() (tag string, record []byte, err error) {
	refused := wire.Refuse(wire.Malformed, "sgxs: record", fmt.Sprintf("%.8q with %d bytes left, unknown or out of order", s.rest, len(s.rest)), "ECREATE, then pages by their offsets, each with its chunks")
	if len(s.rest) < recordSize {
		return "", nil, refused
	}
	tag, size := string(s.rest[:8]), recordSize
	le := binary.LittleEndian
	ok := false
	switch tag {
	case tagCreate:
		enclave := le.Uint64(s.rest[12:])
		ok, s.size = s.size == 0 && enclave >= pageSize && enclave&(enclave-1) == 0 && isZero(s.rest[20:recordSize]), enclave
	case tagAdd:
		ok = s.addPage(le.Uint64(s.rest[8:]))
	case tagExtend, tagUnmeasured:
		size += chunkSize
		ok = len(s.rest) >= size && s.addChunk(le.Uint64(s.rest[8:])) && isZero(s.rest[16:recordSize])
	}
	if !ok {
		return "", nil, refused
	}
	record, s.rest = s.rest[:size], s.rest[size:]
	return tag, record, nil
}

func isZero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// addPage begins a page behind the one before, inside the enclave.
func (s *sgxs) addPage(at uint64) bool {
	if at%pageSize != 0 || at >= s.size || s.page && at <= s.at {
		return false
	}
	s.at, s.page, s.seen = at, true, 0
	return true
}

// addChunk takes each chunk of the newest page once.
func (s *sgxs) addChunk(at uint64) bool {
	if !s.page || at%chunkSize != 0 || at < s.at || at-s.at >= pageSize {
		return false
	}
	bit := uint16(1) << ((at - s.at) / chunkSize)
	again := s.seen&bit != 0
	s.seen |= bit
	return !again
}
