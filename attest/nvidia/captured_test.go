package nvidia

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/vectortest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// captured returns public reports of real GPUs, one in each file, in hexadecimal. They are beside
// the vectors, or in the folder COHORT_NVIDIA_REPORTS, without their certificate chains.
func captured(t testing.TB) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(vectortest.Beside(t, "COHORT_NVIDIA_REPORTS", "cases", "nvidia-reports"), "*.hex"))
	if err != nil || len(files) == 0 {
		t.Fatalf("got reports %v, %v, want some", files, err)
	}
	reports := map[string][]byte{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		raw, _, err := decodeText(bytes.TrimSpace(text))
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		reports[filepath.Base(file)] = raw
	}
	return reports
}

// capturedIfThere returns the captured reports in the order of their names, none if they are not
// available.
func capturedIfThere(t testing.TB) (reports []report) {
	t.Helper()
	dir, ok := vectortest.Found(t, "COHORT_NVIDIA_REPORTS", "cases", "nvidia-reports")
	if !ok {
		return nil
	}
	all := captured(t)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		r, err := parseReport(all[name])
		if err != nil {
			t.Fatalf("%s: %s: %v", dir, name, err)
		}
		reports = append(reports, r)
	}
	return reports
}

// encode encodes a report from its parts, with behind after the signature, which may be a zero
// byte.
func (r report) encode(behind []byte) []byte {
	var record, opaque []byte
	for index := 1; index < 256; index++ {
		if value, ok := r.measurements[byte(index)]; ok {
			record = append(record, attesttest.NVIDIAMeasurement(byte(index), value)...)
		}
	}
	for _, f := range r.opaque {
		if r.head != nil {
			opaque = append(opaque, attesttest.NVIDIATypedField(f.kind, f.typed, f.value)...)
		} else {
			opaque = append(opaque, attesttest.NVIDIAField(f.kind, f.value)...)
		}
	}
	opaque = append(bytes.Clone(r.head), opaque...)
	size := binary.LittleEndian.AppendUint32([]byte{byte(len(r.measurements))}, uint32(len(record)))[:4]
	return slices.Concat(requestHead, r.nonce, []byte{0}, responseHead, size, record, r.responder,
		binary.LittleEndian.AppendUint16(nil, uint16(len(opaque))), opaque, r.signature, behind)
}

// TestCapturedReports: reports of real drivers parse to the last byte. Without a chain they are
// refused for that reason only.
func TestCapturedReports(t *testing.T) {
	facts := map[string]struct {
		driver, vbios, mode string
		firmware            bool
		behind              []byte
	}{
		"sdk-gb100-575.hex":    {"575.32", "97.00.88.00.0F", modeUnstated, true, nil},
		"sdk-h100-535.hex":     {"535.86.09", "96.00.5E.00.01", modeUnstated, false, nil},
		"sdk-h100-580.159.hex": {"580.159.03", "96.00.74.00.20", modeSingle, true, nil},
		"trustee-h100-580.hex": {"580.95.05", "96.00.74.00.1A", modeSingle, true, []byte{0}},
	}
	for name, raw := range captured(t) {
		t.Run(name, func(t *testing.T) {
			r, err := parseReport(raw)
			if err != nil {
				t.Fatal(err)
			}
			behind := raw[len(r.signed)+sizeSignature:]
			if !bytes.Equal(r.encode(behind), raw) {
				t.Error("the report's parts are not the report")
			}
			_, firmware := r.field(fieldFWID)
			if want, ok := facts[name]; ok && (r.driver != want.driver || r.vbios != want.vbios || r.mode != want.mode || firmware != want.firmware || !bytes.Equal(behind, want.behind)) {
				t.Errorf("got driver %s, VBIOS %s, mode %s, firmware %v, %x behind the signature, want %+v", r.driver, r.vbios, r.mode, firmware, behind, want)
			}
			alone := reportAppraiser{}
			if _, err := alone.Appraise(raw, nil, attest.Rules{}, noon); wire.ReasonOf(err) != wire.BadChain {
				t.Errorf("got %v, want %q alone", err, wire.BadChain)
			}
		})
	}
}

// TestCapturedReportsAnew: a report in the layout of a real driver, made for a new nonce and
// signed by a test GPU with a chain, is accepted. With any flipped bit it is refused.
func TestCapturedReportsAnew(t *testing.T) {
	for name, raw := range captured(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			vendor := attesttest.NewNVIDIAVendor(noon)
			gpu := vendor.GPU("GH100")
			r, err := parseReport(raw)
			if err != nil {
				t.Fatal(err)
			}
			if gpu.FWID, _ = r.field(fieldFWID); gpu.FWID == nil {
				gpu.FWID = make([]byte, sizeDigest)
			}
			gpu.Restart()
			nonce := [32]byte{7}
			_, chain, err := gpu.Report(t.Context(), nonce)
			if err != nil {
				t.Fatal(err)
			}
			behind := raw[len(r.signed)+sizeSignature:]
			r.nonce = nonce[:]
			anew := append(gpu.Sign(r.encode(behind)[:len(r.signed)]), behind...)
			rules := vendor.Rules()
			rules.NVIDIA.Drivers, rules.NVIDIA.VBIOS, rules.NVIDIA.Modes = attest.List{Any: true}, attest.List{Any: true}, []string{r.mode}
			endorsed := gpu.Lists()
			endorsed[roleChain] = chain
			claims, err := reportAppraiser{}.Appraise(anew, endorsed, rules, noon)
			if err != nil || !bytes.Equal(claims.ReportData, nonce[:]) || claims.Details["fwid"] != hex.EncodeToString(gpu.FWID) {
				t.Fatalf("got %v, %v, want it accepted", claims, err)
			}
			step := 211
			if os.Getenv("COHORT_FULL") == "1" {
				step = 1
			}
			for bit := 0; bit < 8*len(anew); bit += step {
				altered := bytes.Clone(anew)
				altered[bit/8] ^= 1 << (bit % 8)
				if _, err := (reportAppraiser{}).Appraise(altered, endorsed, rules, noon); err == nil {
					t.Errorf("bit %d of byte %d flipped: accepted", bit%8, bit/8)
				}
			}
		})
	}
}

// TestModeNumbers: the mode is a number of 1 to 8 bytes; three values have names.
func TestModeNumbers(t *testing.T) {
	for n, want := range map[uint64]string{
		0: modeSingle, 1: modeMulti, 2: modePPCIE, 3: "feature_flag 3", 1 << 8: "feature_flag 256", 1 << 31: "feature_flag 2147483648",
		1<<32 - 1: "feature_flag 4294967295", 1<<63 - 1: "feature_flag 9223372036854775807", 1 << 63: "feature_flag 9223372036854775808",
		1<<64 - 2: "feature_flag 18446744073709551614", 1<<64 - 1: "feature_flag 18446744073709551615",
	} {
		wide := binary.LittleEndian.AppendUint64(nil, n)
		for size := 1; size <= len(wide); size++ {
			if len(bytes.Trim(wide[size:], "\x00")) > 0 {
				continue
			}
			r := report{opaque: []field{{kind: fieldFeature, value: wide[:size]}}}
			if got, err := r.readMode(); err != nil || got != want {
				t.Errorf("%s: got %q, %v, want %q", fmt.Sprintf("%d in %d bytes", n, size), got, err, want)
			}
		}
	}
}
