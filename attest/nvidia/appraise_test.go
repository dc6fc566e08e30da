package nvidia_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/nvidia"
	"github.com/cohort-tee/cohort/internal/wire"
)

var (
	now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	use = attest.BindReportData(wire.LabelIssue, []byte("nonce"))
)

// scene has all inputs of an appraisal. A row of the refusal table changes the smallest part of a
// good one.
type scene struct {
	vendor *attesttest.NVIDIAVendor
	gpu    *attesttest.NVIDIAGPU
	lists  attest.Endorsements
	mangle func(e *attest.Evidence) // applied after signing
	rules  attest.Rules
	at     time.Time
}

func newScene() *scene {
	s := &scene{vendor: attesttest.NewNVIDIAVendor(now), at: now.Add(time.Minute)}
	s.start("GH100")
	s.rules = s.vendor.Rules()
	return s
}

func (s *scene) start(model string) {
	s.gpu = s.vendor.GPU(model)
	s.lists = s.gpu.Lists()
}

// evidence returns the GPU's evidence with the vendor's lists.
func (s *scene) evidence(t *testing.T) attest.Evidence {
	t.Helper()
	e, err := s.gpu.Attest(context.Background(), use)
	if err != nil {
		t.Fatal(err)
	}
	e = e.WithEndorsements(s.lists)
	if s.mangle != nil {
		s.mangle(&e)
	}
	return e
}

// appraise appraises the GPU together with a development TEE.
func (s *scene) appraise(t *testing.T, devices ...attest.Evidence) (attest.Result, error) {
	t.Helper()
	maker := attesttest.NewVendor()
	evidence, err := maker.Chip().Attester(attesttest.Measure("scoring")).Attest(context.Background(), use)
	if err != nil {
		t.Fatal(err)
	}
	if evidence.Devices = devices; devices == nil {
		evidence.Devices = []attest.Evidence{s.evidence(t)}
	}
	rules := maker.Rules()
	rules[attest.NvidiaGPU] = s.rules
	return attesttest.Appraise(t, attesttest.Verifier(nvidia.Platform().Appraiser()), attest.Question{Evidence: evidence, ReportData: use, Rules: rules, At: s.at})
}

func TestAppraise(t *testing.T) {
	s := newScene()
	got, err := s.appraise(t)
	if err != nil {
		t.Fatal(err)
	}
	if err := attest.Match(attesttest.Measure("scoring"), got.Measurement()); err != nil {
		t.Errorf("the TEE's own measurement: %v", err)
	}
	devices := got.Devices()
	if len(devices) != 1 || devices[0].Platform != attest.NvidiaGPU || devices[0].Chip != s.gpu.Chip().String() || devices[0].Debug {
		t.Errorf("got devices %+v, want one, chip %v", devices, s.gpu.Chip())
	}
}

// TestUnjudged: the result states that the GPU's measurements were not compared.
func TestUnjudged(t *testing.T) {
	got, err := newScene().appraise(t)
	if err != nil {
		t.Fatal(err)
	}
	said := slices.ContainsFunc(got.Devices()[0].NotVerified, func(s string) bool { return s == "measurements: compared with no reference value (RIM)" })
	if !said || len(got.NotVerified()) != 0 {
		t.Errorf("got unjudged %q and %q, want it of the device alone", got.Devices()[0].NotVerified, got.NotVerified())
	}
}

type change = func(s *scene)

// edit changes the report before it is signed.
func edit(f func(r *attesttest.NVIDIAReport)) change {
	return func(s *scene) { s.gpu.Edit = f }
}

// mangle changes the report after it is signed.
func mangle(f func(raw []byte) []byte) change {
	return func(s *scene) { s.mangle = func(e *attest.Evidence) { e.Raw = f(bytes.Clone(e.Raw)) } }
}

// chain changes the text of the chain.
func chain(f func(text []byte) []byte) change {
	return func(s *scene) {
		s.mangle = func(e *attest.Evidence) { e.Endorsed["cert_chain"] = f(bytes.Clone(e.Endorsed["cert_chain"])) }
	}
}

func certificate(name string, f func(c *x509.Certificate)) change {
	return func(s *scene) {
		s.vendor = attesttest.NewNVIDIAVendor(now)
		s.vendor.Edit = func(c *x509.Certificate) {
			if c.Subject.CommonName == name {
				f(c)
			}
		}
		s.start("GH100")
		s.rules = s.vendor.Rules()
	}
}

func list(issuer string, f func(l *x509.RevocationList)) change {
	return func(s *scene) {
		s.vendor.EditList = func(by string, l *x509.RevocationList) {
			if by == issuer {
				f(l)
			}
		}
		s.lists = s.gpu.Lists()
	}
}

// dice replaces the extensions of the leaf.
func dice(of func(g *attesttest.NVIDIAGPU) []pkix.Extension) change {
	return func(s *scene) {
		s.gpu.DICE = of(s.gpu)
		s.gpu.Restart()
	}
}

// flags makes a GPU with the newer form of the leaf, whose firmware states flags.
func flags(bits ...byte) change {
	return func(s *scene) {
		s.start("GB100")
		s.rules.NVIDIA.Models = []string{"GB100"}
		dice(func(g *attesttest.NVIDIAGPU) []pkix.Extension { return []pkix.Extension{g.TCBInfo(bits...)} })(s)
	}
}

const (
	modelCA     = "NVIDIA GH100 Identity"
	provisioner = "NVIDIA GH100 Provisioner ICA 1"
	chipCA      = "GH100 A01 GSP BROM"
	leaf        = "GH100 A01 GSP FMC LF"
	root        = "NVIDIA Device Identity CA"
)

func TestRefuse(t *testing.T) {
	type (
		report = attesttest.NVIDIAReport
		gpu    = attesttest.NVIDIAGPU
	)
	tests := []struct {
		name   string
		change change
		want   attest.Reason
	}{
		// Encoding of the report.
		{"empty", mangle(func([]byte) []byte { return nil }), wire.Malformed},
		{"a request and a signature alone", mangle(func(raw []byte) []byte { return append(raw[:37:37], raw[len(raw)-96:]...) }), wire.Malformed},
		{"one byte less", mangle(func(raw []byte) []byte { return raw[:len(raw)-1] }), wire.Malformed},
		{"one byte more", mangle(func(raw []byte) []byte { return append(raw, 1) }), wire.Malformed},
		{"two zero bytes more", mangle(func(raw []byte) []byte { return append(raw, 0, 0) }), wire.Malformed},
		{"too large", mangle(func(raw []byte) []byte { return append(raw, make([]byte, 16<<10)...) }), wire.TooLarge},
		{"another version of SPDM", edit(func(r *report) { r.Request[0] = 0x12 }), wire.Malformed},
		{"a request for a challenge", edit(func(r *report) { r.Request[1] = 0x83 }), wire.Malformed},
		{"a request without signature", edit(func(r *report) { r.Request[2] = 0 }), wire.Malformed},
		{"a request for one measurement", edit(func(r *report) { r.Request[3] = 1 }), wire.Malformed},
		{"a request for another slot", edit(func(r *report) { r.Request[36] = 1 }), wire.Malformed},
		{"a response of another version", edit(func(r *report) { r.Head[0] = 0x12 }), wire.Malformed},
		{"a response that is an error", edit(func(r *report) { r.Head[1] = 0x7f }), wire.Malformed},
		{"a response of another slot", edit(func(r *report) { r.Head[3] = 1 }), wire.Malformed},
		{"one measurement more than counted", edit(func(r *report) { r.Count-- }), wire.Malformed},
		{"one measurement less than counted", edit(func(r *report) { r.Count++ }), wire.Malformed},
		{"no measurement", edit(func(r *report) { r.Count, r.Measurements = 0, nil }), wire.Malformed},
		{"an index twice", edit(func(r *report) { r.Measurements[55] = 1 }), wire.Malformed},
		{"index 0", edit(func(r *report) { r.Measurements[0] = 0 }), wire.Malformed},
		{"a measurement of another form", edit(func(r *report) { r.Measurements[1] = 2 }), wire.Malformed},
		{"a measurement that is no digest", edit(func(r *report) { r.Measurements[4] |= 0x80 }), wire.Malformed},
		{"a measurement that is longer than its block", edit(func(r *report) { r.Measurements[5]++ }), wire.Malformed},
		{"a measurement that is shorter than its block", edit(func(r *report) { r.Measurements[5]-- }), wire.Malformed},
		{"a block that is longer than the record", edit(func(r *report) { r.Measurements[63*55+2]++ }), wire.Malformed},
		{"a digest of 32 bytes", edit(func(r *report) {
			r.Count, r.Measurements = 1, attesttest.NVIDIAMeasurement(1, make([]byte, 32))
		}), wire.Malformed},
		{"an opaque field twice", edit(func(r *report) { r.Opaque = append(r.Opaque, attesttest.NVIDIAField(3, []byte("550.0\x00"))...) }), wire.Malformed},
		{"an opaque field beyond the end", edit(func(r *report) { r.Opaque = append(r.Opaque, 99, 0, 9, 0) }), wire.Malformed},
		{"half an opaque field", edit(func(r *report) { r.Opaque = append(r.Opaque, 99, 0) }), wire.Malformed},
		{"no driver", edit(func(r *report) { r.Without(3) }), wire.Malformed},
		{"an empty driver", edit(func(r *report) { r.Set(3, []byte("\x00")) }), wire.Malformed},
		{"a driver without end", edit(func(r *report) { r.Set(3, []byte("550.90.07")) }), wire.Malformed},
		{"a driver with two ends", edit(func(r *report) { r.Set(3, []byte("550.90.07\x00\x00")) }), wire.Malformed},
		{"a driver with a line end", edit(func(r *report) { r.Set(3, []byte("550\n90\x00")) }), wire.Malformed},
		{"no VBIOS", edit(func(r *report) { r.Without(6) }), wire.Malformed},
		{"a VBIOS of nine bytes", edit(func(r *report) { r.Set(6, make([]byte, 9)) }), wire.Malformed},
		{"a VBIOS with a last byte", edit(func(r *report) { r.Set(6, []byte{0, 0x9f, 0, 0x96, 1, 0, 0, 1}) }), wire.Malformed},
		{"firmware of 32 bytes", edit(func(r *report) { r.Set(20, make([]byte, 32)) }), wire.Malformed},
		{"firmware of no bytes", edit(func(r *report) { r.Set(20, nil) }), wire.Malformed},
		{"a feature of no bytes", edit(func(r *report) { r.Set(36, nil) }), wire.Malformed},
		{"a feature of nine bytes", edit(func(r *report) { r.Set(36, make([]byte, 9)) }), wire.Malformed},
		{"opaque data of a version to come", edit(func(r *report) { r.Set(34, []byte{2, 0}) }), wire.Malformed},
		{"opaque data of a version of nine bytes", edit(func(r *report) { r.Set(34, make([]byte, 9)) }), wire.Malformed},
		{"the head of typed fields before fields without", edit(func(r *report) {
			r.Opaque = append([]byte(attesttest.NVIDIATypedHead), r.Opaque...)
		}), wire.Malformed},
		{"half a head of typed fields", edit(func(r *report) { r.Opaque = []byte(attesttest.NVIDIATypedHead[:11]) }), wire.Malformed},
		{"typed fields of another profile", edit(func(r *report) { r.Typed(); r.Opaque[6] = 1 }), wire.Malformed},
		{"typed fields of a version to come", edit(func(r *report) { r.Typed(); r.Opaque[8] = 3 }), wire.Malformed},
		{"a typed field twice", edit(func(r *report) {
			r.Typed()
			r.Opaque = append(r.Opaque, attesttest.NVIDIATypedField(3, 0x86, []byte("550.0\x00"))...)
		}), wire.Malformed},
		{"a typed field beyond the end", edit(func(r *report) { r.Typed(); r.Opaque = append(r.Opaque, 99, 0, 0, 0, 9, 0) }), wire.Malformed},
		{"half a typed field", edit(func(r *report) { r.Typed(); r.Opaque = append(r.Opaque, 99, 0, 0) }), wire.Malformed},
		{"no driver among typed fields", edit(func(r *report) { r.Typed(); r.Without(3) }), wire.Malformed},
		{"other firmware in a typed field", edit(func(r *report) { r.Typed(); r.Set(20, make([]byte, 48)) }), wire.WrongChip},
		{"links in the clear, in a typed field", edit(func(r *report) { r.Typed(); r.Set(36, []byte{2, 0}) }), wire.BadTCB},

		// Chain.
		{"no chain", chain(func([]byte) []byte { return nil }), wire.BadChain},
		{"text before the chain", chain(func(text []byte) []byte { return append([]byte("x\n"), text...) }), wire.Malformed},
		{"text after the chain", chain(func(text []byte) []byte { return append(text, "\nx\n"...) }), wire.Malformed},
		{"text between certificates", chain(func(text []byte) []byte {
			return bytes.Replace(text, []byte("-----\n-----"), []byte("-----\nx\n-----"), 1)
		}), wire.Malformed},
		{"a key in the chain", chain(func(text []byte) []byte { return bytes.Replace(text, []byte("CERTIFICATE"), []byte("PRIVATE KEY"), 2) }), wire.Malformed},
		{"a certificate with a header", chain(func(text []byte) []byte {
			return bytes.Replace(text, []byte("CERTIFICATE-----\n"), []byte("CERTIFICATE-----\nA: b\n\n"), 1)
		}), wire.Malformed},
		{"a certificate without its end", chain(func(text []byte) []byte { return bytes.Replace(text, []byte("-----END CERTIFICATE-----\n"), nil, 1) }), wire.Malformed},
		{"a certificate that is none", chain(func(text []byte) []byte {
			return append([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), text...)
		}), wire.Malformed},
		{"chain without its root", chain(func(text []byte) []byte { return text[:bytes.LastIndex(text, []byte("-----BEGIN"))] }), wire.BadChain},
		{"chain with its root twice", chain(func(text []byte) []byte {
			return slices.Concat(text, []byte("\n"), text[bytes.LastIndex(text, []byte("-----BEGIN")):])
		}), wire.BadChain},
		{"a root that policy does not name", func(s *scene) { s.rules.Roots = attesttest.NewNVIDIAVendor(now).Rules().Roots }, wire.UnknownRoot},
		{"zero rules", func(s *scene) { s.rules = attest.Rules{} }, wire.UnknownRoot},
		{"another vendor's chip below the right root", func(s *scene) {
			other := attesttest.NewNVIDIAVendor(now).GPU("GH100")
			s.gpu = other
			s.mangle = func(e *attest.Evidence) {
				theirs := e.Endorsed["cert_chain"]
				mine, err := s.vendor.GPU("GH100").Attest(context.Background(), use)
				if err != nil {
					panic(err)
				}
				ours := mine.Endorsed["cert_chain"]
				e.Endorsed["cert_chain"] = append(theirs[:bytes.LastIndex(theirs, []byte("-----BEGIN"))], ours[bytes.LastIndex(ours, []byte("-----BEGIN")):]...)
			}
		}, wire.BadChain},
		{"a leaf that is a CA", certificate(leaf, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }), wire.BadChain},
		{"a chip that is no CA", certificate(chipCA, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, 0 }), wire.BadChain},
		{"weaker digest in a certificate", certificate(leaf, func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA256 }), wire.BadChain},
		{"unknown critical extension", certificate(provisioner, func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
		}), wire.BadChain},
		{"a model of another form", func(s *scene) { s.start("GB2XX"); s.rules.NVIDIA.Models = []string{"GB2XX"} }, wire.BadChain},
		{"a switch of the same root", certificate(modelCA, func(c *x509.Certificate) { c.Subject.CommonName = "NVIDIA NVSwitch LS10 Identity" }), wire.BadChain},
		{"a network card of the same root", certificate(modelCA, func(c *x509.Certificate) { c.Subject.CommonName = "NVIDIA CX7 Identity" }), wire.BadChain},
		{"a chip of another model", certificate(chipCA, func(c *x509.Certificate) { c.Subject.CommonName = "GB100 A01 GSP BROM" }), wire.BadChain},
		{"a leaf of another firmware", certificate(leaf, func(c *x509.Certificate) { c.Subject.CommonName = "GH100 A01 SEC2 LF" }), wire.BadChain},
		{"a provisioner of another model", certificate(provisioner, func(c *x509.Certificate) { c.Subject.CommonName = "NVIDIA GB100 Provisioner ICA 1" }), wire.BadChain},

		// Signature.
		{"another nonce in a signed report", mangle(func(raw []byte) []byte { raw[4] ^= 1; return raw }), wire.BadSignature},
		{"another measurement", mangle(func(raw []byte) []byte { raw[60] ^= 1; return raw }), wire.BadSignature},
		{"last bit of the signature", mangle(func(raw []byte) []byte { raw[len(raw)-1] ^= 1; return raw }), wire.BadSignature},
		{"a signature of zeros", mangle(func(raw []byte) []byte { clear(raw[len(raw)-96:]); return raw }), wire.BadSignature},
		{"another GPU's chain", func(s *scene) {
			s.mangle = func(e *attest.Evidence) {
				other, err := s.vendor.GPU("GH100").Attest(context.Background(), use)
				if err != nil {
					panic(err)
				}
				e.Endorsed = other.Endorsed
			}
		}, wire.BadSignature},

		// Firmware that has the key.
		{"firmware that the key was not made for", edit(func(r *report) { r.Set(20, make([]byte, 48)) }), wire.WrongChip},
		{"firmware that the newer leaf does not name", func(s *scene) {
			flags(0)(s)
			edit(func(r *report) { r.Set(20, make([]byte, 48)) })(s)
		}, wire.WrongChip},
		{"a leaf without firmware", dice(func(*gpu) []pkix.Extension { return []pkix.Extension{} }), wire.BadChain},
		{"a leaf with two", dice(func(g *gpu) []pkix.Extension { return []pkix.Extension{g.DeviceID(), g.TCBInfo(0)} }), wire.BadChain},
		{"a leaf of another chip", func(s *scene) {
			other := s.vendor.GPU("GH100")
			dice(func(*gpu) []pkix.Extension { return []pkix.Extension{other.DeviceID()} })(s)
		}, wire.WrongChip},
		{"a device id that is none", dice(func(g *gpu) []pkix.Extension {
			e := g.DeviceID()
			e.Value = e.Value[:10]
			return []pkix.Extension{e}
		}), wire.Malformed},
		{"TCB information with more", dice(func(g *gpu) []pkix.Extension {
			e := g.TCBInfo(0)
			e.Value = append(e.Value, 5, 0)
			return []pkix.Extension{e}
		}), wire.Malformed},
		{"TCB information without firmware", dice(func(g *gpu) []pkix.Extension {
			e := g.TCBInfo(0)
			e.Value = []byte{0x30, 0}
			return []pkix.Extension{e}
		}), wire.WrongChip},

		// Time and revocation.
		{"leaf past its end", func(s *scene) {
			certificate(leaf, func(c *x509.Certificate) { c.NotAfter = now.Add(time.Hour) })(s)
			s.at = now.Add(time.Hour + time.Second)
		}, wire.Expired},
		{"model before its time", func(s *scene) { s.at = now.Add(-time.Second) }, wire.Expired},
		{"no list by the root", func(s *scene) { delete(s.lists, "root_crl") }, wire.CRLMissing},
		{"no list of the model", func(s *scene) { delete(s.lists, "model_crl") }, wire.CRLMissing},
		{"no lists, and an unknown word for what that means", func(s *scene) { s.lists, s.rules.CRL = nil, "optional" }, wire.CRLMissing},
		{"the model is revoked", func(s *scene) { s.lists = s.gpu.Lists(modelCA) }, wire.Revoked},
		{"the provisioner is revoked", func(s *scene) { s.lists = s.gpu.Lists(provisioner) }, wire.Revoked},
		{"the provisioner is revoked, and lists are not required", func(s *scene) {
			s.lists, s.rules.CRL = s.gpu.Lists(provisioner), attest.CRLIfPresent
		}, wire.Revoked},
		{"a list past its end", func(s *scene) { s.at = now.AddDate(0, 0, 7).Add(time.Second) }, wire.Expired},
		{"a list issued more than two minutes later", list(root, func(l *x509.RevocationList) { l.ThisUpdate = now.Add(3*time.Minute + time.Second) }), wire.Expired},
		{"a list that is none", func(s *scene) { s.lists["root_crl"] = []byte("x") }, wire.Malformed},
		{"the other issuer's list", func(s *scene) { s.lists["model_crl"] = s.lists["root_crl"] }, wire.BadSignature},
		{"a stranger's list of the same name", func(s *scene) {
			s.lists["root_crl"] = attesttest.NewNVIDIAVendor(now).GPU("GH100").Lists()["root_crl"]
		}, wire.BadSignature},
		{"a list of the root's key under another name", list(root, func(l *x509.RevocationList) {
			l.Issuer = pkix.Name{CommonName: "another"}
		}), wire.BadSignature},
		{"a list with a critical extension", list(root, func(l *x509.RevocationList) {
			l.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
		}), wire.Malformed},

		// What the rules do not accept.
		{"a model that policy does not name", func(s *scene) { s.rules.NVIDIA.Models = []string{"GB100"} }, wire.NoPlatform},
		{"a chip that policy does not name", func(s *scene) { s.rules.NVIDIA.Chips = attest.List{Values: [][]byte{make([]byte, 32)}} }, wire.NoPlatform},
		{"a chip that is cut off", func(s *scene) {
			chip := s.gpu.Chip()
			s.rules.NVIDIA.CutChips = [][]byte{chip[:]}
		}, wire.NoPlatform},
		{"another driver", edit(func(r *report) { r.Set(3, []byte("550.90.06\x00")) }), wire.BadTCB},
		{"another VBIOS", edit(func(r *report) { r.Set(6, []byte{0, 0x9f, 0, 0x96, 2, 0, 0, 0}) }), wire.BadTCB},
		{"links in the clear, as older drivers say it", edit(func(r *report) { r.Without(36); r.Set(21, []byte{0xaa}) }), wire.BadTCB},
		{"links in the clear", edit(func(r *report) { r.Set(36, []byte{2, 0}) }), wire.BadTCB},
		{"links in the clear, in eight bytes", edit(func(r *report) { r.Set(36, []byte{2, 0, 0, 0, 0, 0, 0, 0}) }), wire.BadTCB},
		{"several GPUs", edit(func(r *report) { r.Set(36, []byte{1, 0}) }), wire.BadTCB},
		{"a mode by number in the highest byte", edit(func(r *report) { r.Set(36, []byte{0, 1}) }), wire.BadTCB},
		{"a GPU in development mode", func(s *scene) { s.gpu.Development, s.rules.NVIDIA.Development = true, false }, wire.Debug},
		{"a GPU of which nobody says that it is not", func(s *scene) { s.rules.NVIDIA.Development = false }, wire.Debug},
		{"measurements that nobody compares", func(s *scene) { s.rules.NVIDIA.AnyMeasurements = false }, wire.NotMeasured},

		// Debug and binding.
		{"firmware in debug", flags(0x10), wire.Debug},
		{"firmware that is not secure", flags(0x40), wire.Debug},
		{"firmware in recovery", flags(0x20), wire.Debug},
		{"made for another use", edit(func(r *report) { clear(r.Request[4:36]) }), wire.BadNonce},
		{"the use in the GPU's own nonce", edit(func(r *report) { r.Responder = bytes.Clone(r.Request[4:36]); clear(r.Request[4:36]) }), wire.BadNonce},
		{"the first half of the use", edit(func(r *report) { copy(r.Request[4:36], use[:]) }), wire.BadNonce},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene()
			tt.change(s)
			got, err := s.appraise(t)
			if !errors.Is(err, tt.want) || got.Appraised() {
				t.Errorf("err = %v, want reason %q", err, tt.want)
			}
		})
	}
}

// relined returns certificates with other line lengths and line ends, and an empty line between
// them.
func relined(text []byte, length int, end string) []byte {
	var out []byte
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		out = append(out, "-----BEGIN CERTIFICATE-----"+end...)
		for body := base64.StdEncoding.EncodeToString(block.Bytes); body != ""; {
			line := body[:min(length, len(body))]
			out, body = append(out, line+end...), body[len(line):]
		}
		out = append(out, "-----END CERTIFICATE-----"+end+end...)
	}
	return out
}

// TestPermit: each permission of the rules admits the case that it names.
func TestPermit(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change change
	}{
		{"newer form of the leaf, nothing configured", flags(0x80, 0, 0, 1)},
		{"a model whose last digit is not said", func(s *scene) { s.start("GB20X"); s.rules.NVIDIA.Models = []string{"GB20X"} }},
		{"debug", func(s *scene) { flags(0x10)(s); s.rules.Debug = true }},
		{"the chip by its name", func(s *scene) {
			chip := s.gpu.Chip()
			s.rules.NVIDIA.Chips = attest.List{Values: [][]byte{chip[:]}}
		}},
		{"no lists", func(s *scene) { s.lists, s.rules.CRL = nil, attest.CRLIfPresent }},
		{"last second of the lists", func(s *scene) { s.at = now.AddDate(0, 0, 7) }},
		{"first second of the certificates", func(s *scene) { s.at = now }},
		{"another certificate in the list", list(modelCA, func(l *x509.RevocationList) {
			l.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: big.NewInt(7), RevocationTime: now}}
		})},
		{"a GPU in development mode, by name", func(s *scene) { s.gpu.Development = true }},
		{"a zero byte after the signature", mangle(func(raw []byte) []byte { return append(raw, 0) })},
		{"a report that names no firmware", edit(func(r *attesttest.NVIDIAReport) { r.Without(20) })},
		{"typed fields", edit(func(r *attesttest.NVIDIAReport) { r.Typed() })},
		{"typed fields, whose version is not a number", edit(func(r *attesttest.NVIDIAReport) { r.Typed(); r.Set(34, []byte{0, 2}) })},
		{"typed fields of another minor version", edit(func(r *attesttest.NVIDIAReport) { r.Typed(); r.Opaque[9] = 7 })},
		{"a mode in one byte", edit(func(r *attesttest.NVIDIAReport) { r.Set(36, []byte{0}) })},
		{"a mode in eight bytes", edit(func(r *attesttest.NVIDIAReport) { r.Set(36, make([]byte, 8)) })},
		{"no version of the opaque data", edit(func(r *attesttest.NVIDIAReport) { r.Without(34) })},
		{"several GPUs over encrypted links", func(s *scene) {
			edit(func(r *attesttest.NVIDIAReport) { r.Set(36, []byte{1, 0}) })(s)
			s.rules.NVIDIA.Modes = []string{"MPT"}
		}},
		{"links in the clear", func(s *scene) {
			edit(func(r *attesttest.NVIDIAReport) { r.Set(36, []byte{2, 0}) })(s)
			s.rules.NVIDIA.Modes = []string{"PPCIE"}
		}},
		{"a field that is not known", edit(func(r *attesttest.NVIDIAReport) { r.Set(1000, []byte{1}) })},
		{"a chain in lines of 76", chain(func(text []byte) []byte { return relined(text, 76, "\n") })},
		{"a chain in lines of 4", chain(func(text []byte) []byte { return relined(text, 4, "\n") })},
		{"a chain of another system", chain(func(text []byte) []byte { return relined(text, 64, "\r\n") })},
		{"empty lines around the chain", chain(func(text []byte) []byte { return slices.Concat([]byte("\n"), text, []byte("\n\n")) })},
		{"a line end after the chain", chain(func(text []byte) []byte { return append(text, '\n') })},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene()
			tt.change(s)
			if _, err := s.appraise(t); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestTwoGPUs: two GPUs count as two, and one GPU with two reports is refused.
func TestTwoGPUs(t *testing.T) {
	s := newScene()
	first, again := s.evidence(t), s.evidence(t)
	s.start("GH100")
	second := s.evidence(t)
	got, err := s.appraise(t, first, second)
	if err != nil || len(got.Devices()) != 2 || got.Devices()[0].Chip == got.Devices()[1].Chip {
		t.Errorf("got devices %v, %v, want two chips", got.Devices(), err)
	}
	if got, err := s.appraise(t, first, second, again); !errors.Is(err, wire.WrongChip) || got.Appraised() {
		t.Errorf("got %v, want %q of a GPU that vouches twice", err, wire.WrongChip)
	}
}

// TestNonce: the nonce of a GPU's report is the SHA-256 of the report data.
func TestNonce(t *testing.T) {
	e := newScene().evidence(t)
	if got, want := e.Raw[4:36], sha256.Sum256(use[:]); !bytes.Equal(got, want[:]) {
		t.Errorf("got nonce %x, want %x", got, want)
	}
}
