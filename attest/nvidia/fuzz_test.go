package nvidia

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// roundTrip demands that an accepted report consists of its parsed parts, so that no byte is
// ignored, and that every refusal has a reason.
func roundTrip(t *testing.T, raw []byte) (r report, ok bool) {
	t.Helper()
	r, err := parseReport(raw)
	if refusal := (*attest.Refusal)(nil); err != nil && !errors.As(err, &refusal) {
		t.Fatalf("refused without a reason: %v", err)
	}
	if err != nil {
		return r, false
	}
	behind := raw[len(r.signed)+len(r.signature):]
	if len(behind) > 1 || len(behind) == 1 && behind[0] != 0 || !bytes.Equal(r.encode(behind), raw) {
		t.Fatalf("got parts %x, want %x", r.encode(behind), raw)
	}
	_ = r.claims()
	return r, true
}

// FuzzReport parses arbitrary bytes.
func FuzzReport(f *testing.F) {
	gpu := attesttest.NewNVIDIAVendor(noon).GPU("GH100")
	gpu.Edit = func(r *attesttest.NVIDIAReport) { r.Count, r.Measurements = 2, r.Measurements[:2*55] } // large seeds make minimizing slow
	raw, _, err := gpu.Report(f.Context(), [32]byte{1})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(append(bytes.Clone(raw), 0))
	f.Add(raw[:200])
	f.Fuzz(func(t *testing.T, raw []byte) { roundTrip(t, raw) })
}

// FuzzReportParts edits the parts of a report, with correct lengths, and the GPU signs it. The
// report is accepted, or refused with a reason, and an accepted report is bound to the nonce.
// Where reports of real drivers are available, it uses their layouts too.
func FuzzReportParts(f *testing.F) {
	vendor := attesttest.NewNVIDIAVendor(noon)
	gpu := vendor.GPU("GH100")
	endorsed, rules := gpu.Lists(), vendor.Rules()
	rules.NVIDIA.Drivers, rules.NVIDIA.VBIOS = attest.List{Any: true}, attest.List{Any: true}
	var plain attesttest.NVIDIAReport
	gpu.Edit = func(r *attesttest.NVIDIAReport) { plain = *r }
	_, chain, err := gpu.Report(f.Context(), [32]byte{1})
	if err != nil {
		f.Fatal(err)
	}
	endorsed[roleChain] = chain
	typed := plain
	typed.Typed()
	layouts := [][]byte{plain.Opaque, typed.Opaque}
	for _, r := range capturedIfThere(f) {
		var opaque []byte
		for _, each := range r.opaque {
			opaque = append(opaque, attesttest.NVIDIAField(each.kind, each.value)...)
		}
		layouts = append(layouts, opaque)
	}
	for i := range layouts {
		f.Add(byte(i), []byte{})
		f.Add(byte(i), []byte{1, 20})             // no firmware
		f.Add(byte(i), []byte{0, 36, 2, 1, 0})    // a different mode
		f.Add(byte(i), []byte{2, 3, 4, 1, 2})     // a field twice
		f.Add(byte(i), []byte{3, 70, 48, 4, 255}) // measurements
		f.Add(byte(i), []byte{6, 0})
	}
	f.Fuzz(func(t *testing.T, layout byte, edits []byte) {
		r := plain
		r.Opaque = bytes.Clone(layouts[int(layout)%len(layouts)])
		r.Measurements, r.Head = bytes.Clone(plain.Measurements), bytes.Clone(plain.Head)
		raw := gpu.Sign(editParts(&r, edits))
		raw = append(raw, behindOf(edits)...)
		read, ok := roundTrip(t, raw)
		claims, err := reportAppraiser{}.Appraise(raw, endorsed, rules, noon)
		if refusal := (*attest.Refusal)(nil); err != nil && !errors.As(err, &refusal) {
			t.Fatalf("refused without a reason: %v", err)
		}
		if err == nil && (!ok || !bytes.Equal(claims.ReportData, r.Request[4:36]) || !slices.Contains(rules.NVIDIA.Modes, read.mode)) {
			t.Fatalf("accepted %x, with nonce %x", raw, claims.ReportData)
		}
	})
}

// editParts applies a list of edits, each a number with operands, and returns the bytes to sign.
func editParts(r *attesttest.NVIDIAReport, edits []byte) []byte {
	take := func(n int) []byte {
		taken := edits[:min(n, len(edits))]
		edits = edits[len(taken):]
		return append(bytes.Clone(taken), make([]byte, n-len(taken))...)
	}
	for len(edits) > 0 {
		switch op := take(1)[0]; op % 7 {
		case 0:
			kind, size := take(1)[0], take(1)[0]
			r.Set(uint16(kind), take(int(size)))
		case 1:
			r.Without(uint16(take(1)[0]))
		case 2:
			kind, size := take(1)[0], take(1)[0]
			r.Add(uint16(kind), take(int(size)))
		case 3:
			index, size := take(1)[0], take(1)[0]
			r.Measurements = append(r.Measurements, attesttest.NVIDIAMeasurement(index, make([]byte, size))...)
			r.Count++
		case 4:
			r.Count += take(1)[0]
		case 5:
			r.Head[int(op)%len(r.Head)] ^= take(1)[0]
		case 6:
			take(1) // the byte after the signature: see behindOf
		}
	}
	return r.Encode()
}

// behindOf returns what a list of edits puts after the signature.
func behindOf(edits []byte) []byte {
	if len(edits) > 1 && edits[0]%7 == 6 {
		return edits[1:2]
	}
	return nil
}

// FuzzChain: chains of five PEM certificates and lists that NVIDIA did not sign are refused with
// a reason.
func FuzzChain(f *testing.F) {
	vendor := attesttest.NewNVIDIAVendor(noon)
	gpu := vendor.GPU("GB100")
	raw, text, err := gpu.Report(f.Context(), [32]byte{1})
	if err != nil {
		f.Fatal(err)
	}
	r, err := parseReport(raw)
	if err != nil {
		f.Fatal(err)
	}
	good, err := parseChain(text)
	if err != nil {
		f.Fatal(err)
	}
	lists, rules := gpu.Lists(), vendor.Rules()
	f.Add(good[atLeaf].Raw, good[atChip].Raw, good[atProvisioner].Raw, good[atModel].Raw, good[atRoot].Raw, lists[roleRootCRL], lists[roleModelCRL])
	f.Fuzz(func(t *testing.T, leaf, chip, provisioner, model, root, rootCRL, modelCRL []byte) {
		var text []byte
		for _, der := range [][]byte{leaf, chip, provisioner, model, root} {
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		}
		refused := func(err error) bool {
			if refusal := (*attest.Refusal)(nil); err != nil && !errors.As(err, &refusal) {
				t.Fatalf("refused without a reason: %v", err)
			}
			return err != nil
		}
		u, err := parseChain(text)
		if refused(err) {
			return
		}
		c, err := u.verify(rules.Roots, noon)
		if refused(err) {
			return
		}
		if c.key == nil || c.model != "GB100" {
			t.Fatalf("accepted without a key, of model %q", c.model)
		}
		l, err := c.identity()
		if !refused(err) {
			refused(l.checkReport(r, c))
		}
		_, err = c.checkRevocation(attest.Endorsements{roleRootCRL: rootCRL, roleModelCRL: modelCRL}, rules.CRL, noon)
		refused(err)
	})
}

// FuzzLayer: a leaf's statement about its firmware is parsed or refused with a reason, and its
// flags are reported correctly.
func FuzzLayer(f *testing.F) {
	gpu := attesttest.NewNVIDIAVendor(noon).GPU("GB100")
	f.Add(gpu.DeviceID().Value)
	f.Add(gpu.TCBInfo(0x80, 0, 0, 1).Value)
	f.Fuzz(func(t *testing.T, der []byte) {
		for _, read := range []func([]byte) (layer, error){readDeviceID, readTCBInfo} {
			l, err := read(der)
			if refusal := (*attest.Refusal)(nil); err != nil && !errors.As(err, &refusal) {
				t.Fatalf("refused without a reason: %v", err)
			}
			bad := slices.ContainsFunc(l.flagNames(), func(name string) bool { return name == "not_secure" || name == "recovery" || name == "debug" })
			if err == nil && bad != l.debug() {
				t.Fatalf("got debug %v with flags %v", l.debug(), l.flagNames())
			}
		}
	})
}

func TestDecode(t *testing.T) {
	raw := []byte{0x11, 0xe0, 0x01, 0xff, 0xab}
	for name, text := range map[string]string{"hex": hex.EncodeToString(raw), "base64": base64.StdEncoding.EncodeToString(raw)} {
		got, encoding, err := decodeText([]byte(text))
		if err != nil || encoding != name || !bytes.Equal(got, raw) {
			t.Errorf("%s: got %x, %q, %v", name, got, encoding, err)
		}
		for _, wrong := range []string{text + "\n", " " + text, text + "=", "-" + text} {
			if got, encoding, err := decodeText([]byte(wrong)); err == nil && encoding == name {
				t.Errorf("%q: got %x, want it refused", wrong, got)
			}
		}
	}
	if _, encoding, err := decodeText([]byte("11E001FFAB")); err == nil && encoding == "hex" {
		t.Error("capitals were read as hexadecimal")
	}
}
