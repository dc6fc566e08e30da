package dcap

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/vectortest"
)

// sized returns b cut or zero-padded to size bytes.
func sized(b []byte, size int) []byte {
	out := make([]byte, size)
	copy(out, b)
	return out
}

// FuzzQuoteParts encodes quotes of arbitrary parts with correct lengths, seeded by captured
// quotes and the test vendor's. A quote parses to its parts, and appraisal refuses it with a
// reason, because its signatures are wrong.
func FuzzQuoteParts(f *testing.F) {
	vendor := attesttest.NewDCAPVendor(now)
	endorsed := vendor.Endorsements(attest.TDX)
	add := func(raw []byte, of attest.Platform) {
		q, err := parseQuote(raw, of)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(of == attest.TDX, q.version, q.signed[:len(q.signed)-len(q.body)], q.body, []byte(q.qe), q.qeAuth, q.chain, byte(len(raw)-len(q.encode())))
	}
	for of, seeds := range map[attest.Platform][][]byte{attest.TDX: vectortest.Seeds(f, "tdx", 16<<10), attest.SGX: vectortest.Seeds(f, "sgx", 16<<10)} {
		for _, raw := range seeds {
			add(raw, of)
		}
	}
	for of, m := range map[attest.Platform]attest.Measurement{attest.TDX: attesttest.MeasureTDX("guest"), attest.SGX: attesttest.MeasureSGX("guest")} {
		evidence, err := vendor.Chip(vendor.TCB).Attester(m).Attest(f.Context(), attest.ReportData{1})
		if err != nil {
			f.Fatal(err)
		}
		add(evidence.Raw, of)
	}
	f.Fuzz(func(t *testing.T, tdx bool, version uint16, head, body, qe, auth, chain []byte, zeros byte) {
		of, tee, size := attest.SGX, uint32(teeSGX), enclaveSize
		if tdx {
			of, tee, size = attest.TDX, teeTDX, guestSize
		}
		header := sized(head, headerSize)
		binary.LittleEndian.PutUint16(header, version)
		binary.LittleEndian.PutUint32(header[4:], tee)
		if version == 5 {
			kind := uint16(1)
			if tdx {
				if kind = 2; len(body) == guest15Size {
					kind, size = 3, guest15Size
				}
			}
			header = binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint16(header, kind), uint32(size))
		}
		body = sized(body, size)
		want := quote{
			version: version, signed: append(header, body...), signature: make([]byte, signatureSize), key: make([]byte, keySize),
			qe: sized(qe, enclaveSize), qeSigned: make([]byte, signatureSize), qeAuth: auth[:min(len(auth), 1<<16-1)], chain: chain,
		}
		raw := append(want.encode(), make([]byte, zeros)...)
		got, err := parseQuote(raw, of)
		reasoned(t, err)
		if err == nil && (!bytes.Equal(got.body, body) || !bytes.Equal(got.qeAuth, want.qeAuth) || !bytes.Equal(got.encode(), want.encode())) {
			t.Fatalf("got %+v, want %+v", got, want)
		}
		_, err = newTDX().Appraise(raw, endorsed, vendor.Rules(), now)
		if reasoned(t, err); err == nil {
			t.Fatal("a quote that nobody signed is accepted")
		}
	})
}
