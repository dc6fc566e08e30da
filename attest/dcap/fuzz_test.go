package dcap

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/vectortest"
)

// encode is the inverse of parse, without zeros at the end.
func (q quote) encode() []byte {
	le := binary.LittleEndian
	tail := slices.Concat(q.qe, q.qeSigned, le.AppendUint16(nil, uint16(len(q.qeAuth))), q.qeAuth,
		[]byte{certPCKChain, 0}, le.AppendUint32(nil, uint32(len(q.chain))), q.chain)
	if q.version > 3 {
		tail = slices.Concat([]byte{certQEReport, 0}, le.AppendUint32(nil, uint32(len(tail))), tail)
	}
	tail = slices.Concat(q.signature, q.key, tail)
	return slices.Concat(q.signed, le.AppendUint32(nil, uint32(len(tail))), tail)
}

// reasoned fails the test if an error has no reason.
func reasoned(t *testing.T, err error) {
	t.Helper()
	var refusal *attest.Refusal
	if err != nil && !errors.As(err, &refusal) {
		t.Fatalf("refused without a reason: %v", err)
	}
}

// FuzzQuote: every accepted quote encodes to the same bytes, except for zeros at the end, and
// every refusal has a reason.
func FuzzQuote(f *testing.F) {
	vendor := attesttest.NewDCAPVendor(now)
	chip := vendor.Chip(vendor.TCB)
	for _, m := range []attest.Measurement{attesttest.MeasureTDX("guest"), attesttest.MeasureSGX("guest")} {
		device := chip.Attester(m)
		for _, device.Version = range []uint16{device.Version, 5} {
			evidence, err := device.Attest(f.Context(), attest.ReportData{1})
			if err != nil {
				f.Fatal(err)
			}
			f.Add(evidence.Raw)
			f.Add(append(evidence.Raw, 0))
			f.Add(evidence.Raw[:100])
		}
	}
	for _, raw := range append(vectortest.Seeds(f, "tdx", 16<<10), vectortest.Seeds(f, "sgx", 16<<10)...) {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, of := range []attest.Platform{attest.TDX, attest.SGX} {
			q, err := parseQuote(raw, of)
			reasoned(t, err)
			if err != nil {
				continue
			}
			again := q.encode()
			rest, ok := bytes.CutPrefix(raw, again)
			if !ok || len(bytes.Trim(rest, "\x00")) > 0 {
				t.Fatalf("encoded again:\n got %x\nwant %x", again, raw)
			}
		}
	})
}

// FuzzBundle: certificates, documents and lists that Intel did not sign are refused with a
// reason.
func FuzzBundle(f *testing.F) {
	vendor := attesttest.NewDCAPVendor(now)
	evidence, err := vendor.Chip(vendor.TCB).Attester(attesttest.MeasureTDX("guest")).Attest(f.Context(), attest.ReportData{1})
	if err != nil {
		f.Fatal(err)
	}
	q, err := parseQuote(evidence.Raw, attest.TDX)
	if err != nil {
		f.Fatal(err)
	}
	good := vendor.Endorsements(attest.TDX)
	f.Add(q.chain, good[roleTCBInfo], good[roleTCBInfoChain], good[roleQEIdentity], good[roleQEIdentityChain], good[rolePCKCRL], good[roleRootCRL])
	f.Fuzz(func(t *testing.T, chain, info, infoChain, identity, identityChain, pckCRL, rootCRL []byte) {
		p, err := bundle{attest.TDX, chain, attest.Endorsements{
			roleTCBInfo: info, roleTCBInfoChain: infoChain, roleQEIdentity: identity, roleQEIdentityChain: identityChain,
			rolePCKCRL: pckCRL, roleRootCRL: rootCRL,
		}}.verify()
		reasoned(t, err)
		if err == nil && (p.key == nil || p.tcb == nil || p.qe == nil || !p.hasLists || len(p.times) < 11) {
			t.Fatalf("accepted without all it needs: %+v", p)
		}
	})
}

// FuzzDocument tests the parsers of documents that Intel signs. Every accepted document can be
// compared with a platform's levels.
func FuzzDocument(f *testing.F) {
	vendor := attesttest.NewDCAPVendor(now)
	for _, of := range []attest.Platform{attest.TDX, attest.SGX} {
		for role, before := range map[string]string{roleTCBInfo: `{"tcbInfo":`, roleQEIdentity: `{"enclaveIdentity":`} {
			text, _, err := splitSigned(vendor.Endorsements(of)[role], role, before)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(text)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		g := guest(make([]byte, guestSize))
		for _, version := range []byte{0, 1} {
			g[1] = version
			if info, err := readTCBInfo(text, idTDX); err == nil {
				_, err = info.platformLevel(pck{}, g.tcbSVN())
				reasoned(t, err)
				_, err = info.moduleLevel(g, g.tcbSVN())
				reasoned(t, err)
			}
		}
		_, err := readTCBInfo(text, idSGX)
		reasoned(t, err)
		identity, err := readQEIdentity(text, idQE)
		reasoned(t, err)
		if err == nil {
			reasoned(t, identity.checkEnclave(enclave(make([]byte, enclaveSize))))
			_, err = identity.level(1)
			reasoned(t, err)
		}
	})
}

// FuzzPCK tests the parser of Intel's certificate extension.
func FuzzPCK(f *testing.F) {
	vendor := attesttest.NewDCAPVendor(now)
	evidence, err := vendor.Chip(vendor.TCB).Attester(attesttest.MeasureTDX("guest")).Attest(f.Context(), attest.ReportData{1})
	if err != nil {
		f.Fatal(err)
	}
	q, err := parseQuote(evidence.Raw, attest.TDX)
	if err != nil {
		f.Fatal(err)
	}
	certs, err := parseChain("the chain", bytes.TrimRight(q.chain, "\x00"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(extension(certs[0]))
	f.Fuzz(func(t *testing.T, value []byte) {
		p, err := readPCK(value)
		reasoned(t, err)
		if err == nil && (len(p.ppid) != 16 || len(p.fmspc) != 6 || len(p.pceID) != 2) {
			t.Fatalf("accepted %+v", p)
		}
	})
}
