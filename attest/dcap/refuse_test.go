package dcap_test

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/wire"
)

type refusal struct {
	name   string
	change change
	want   attest.Reason
}

// judgeAll applies each change to a good scene, which must then be refused.
func judgeAll(t *testing.T, of attest.Platform, rows []refusal) {
	t.Helper()
	if _, err := newScene(of).appraise(t); err != nil {
		t.Fatalf("the scene before any change: %v", err)
	}
	for _, tt := range rows {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene(of)
			tt.change(t, s)
			got, err := s.appraise(t)
			if !errors.Is(err, tt.want) || got.Appraised() {
				t.Errorf("err = %v, want reason %q", err, tt.want)
			}
		})
	}
}

func resize(by int) change {
	return func(t *testing.T, s *scene) {
		raw := s.evidence(t)
		s.question.Evidence.Raw = append(raw, make([]byte, max(by, 0))...)[:len(raw)+by]
	}
}

func TestRefuseForm(t *testing.T) {
	judgeAll(t, attest.TDX, []refusal{
		{"a header only", func(t *testing.T, s *scene) { s.question.Evidence.Raw = s.evidence(t)[:body] }, wire.Malformed},
		{"less than a header", func(t *testing.T, s *scene) { s.question.Evidence.Raw = s.evidence(t)[:body-1] }, wire.Malformed},
		{"one byte less", resize(-1), wire.Malformed},
		{"over the limit", resize(wire.MaxEvidence), wire.TooLarge},
		{"version 2", edit(0, 2), wire.Malformed},
		{"version 6", edit(0, 6), wire.Malformed},
		{"attestation key of P-384", edit(2, 3), wire.Malformed},
		{"quote of an enclave", edit(4, 0), wire.Malformed},
		{"quote of an unknown TEE", edit(4, 0x82), wire.Malformed},
		{"another QE vendor", edit(12, 0), wire.Malformed},
		{"signature length less one", flip(tdxEnd), wire.Malformed},
		{"signature length of 4 GiB", func(t *testing.T, s *scene) { copy(s.evidence(t)[tdxEnd:], "\xff\xff\xff\xff") }, wire.Malformed},
		{"certification data of another type", flip(outerType), wire.Malformed},
		{"certification data of another length", flip(outerType + 2), wire.Malformed},
		{"authentication data of another length", flip(qeAuth), wire.Malformed},
		{"certification of the QE without a chain", flip(pckType), wire.Malformed},
		{"chain of another length", flip(pckType + 2), wire.Malformed},
		{"chain with other text", func(t *testing.T, s *scene) { s.evidence(t)[pckChain+27] = '\f' }, wire.Malformed},
		{"chain whose end is other text", func(t *testing.T, s *scene) { raw := s.evidence(t); raw[len(raw)-1] = 'x' }, wire.Malformed},
		{"body type 3 of the size of type 2", func(_ *testing.T, s *scene) {
			s.device.Version = 5
			s.device.Edit = func(signed []byte) { signed[body] = 3 }
		}, wire.Malformed},
		{"XFAM without SSE", edit(body+128, 1), wire.Malformed},
	})
	judgeAll(t, attest.SGX, []refusal{
		{"quote of a trust domain", edit(4, 0x81), wire.Malformed},
		{"enclave that is not initialised", edit(body+48, 4), wire.Malformed},
		{"reserved bytes after MISCSELECT", edit(body+20, 1), wire.Malformed},
		{"reserved bytes after MRENCLAVE", edit(body+127, 1), wire.Malformed},
		{"reserved bytes after MRSIGNER", edit(body+160, 1), wire.Malformed},
		{"reserved bytes after CONFIGSVN", edit(body+303, 1), wire.Malformed},
	})
}

func TestRefuseForgery(t *testing.T) {
	judgeAll(t, attest.TDX, []refusal{
		{"header changed", flip(30), wire.BadSignature},
		{"MRTD changed", flip(body + 136), wire.BadSignature},
		{"report data changed", flip(body + 520), wire.BadSignature},
		{"R changed", flip(signature), wire.BadSignature},
		{"S changed", flip(signature + 63), wire.BadSignature},
		{"R of zero", func(t *testing.T, s *scene) { clear(s.evidence(t)[signature:][:32]) }, wire.BadSignature},
		{"attestation key changed", flip(key), wire.BadDigest},
		{"authentication data changed", flip(qeAuth + 2), wire.BadDigest},
		{"QE report changed", flip(qeReport), wire.BadSignature},
		{"QE report data changed", flip(qeReport + 320), wire.BadSignature},
		{"signature of the QE report changed", flip(qeSigned), wire.BadSignature},
		{"QE report over more than the key", editQE(383, 1), wire.BadDigest},
		{"QE of another chip", func(t *testing.T, s *scene) {
			other := newScene(attest.TDX)
			other.vendor = s.vendor
			other.use(attest.TDX, s.vendor.Chip(s.vendor.TCB))
			copy(s.evidence(t)[qeReport:], other.evidence(t)[qeReport:qeAuth])
		}, wire.BadSignature},
		{"QE of another signer", editQE(128, 0xff, 0xff), wire.BadChain},
		{"QE of another product", editQE(256, 1), wire.BadChain},
		{"QE in debug mode", editQE(48, 0x17), wire.BadChain},
		{"QE with another MISCSELECT", editQE(16, 1), wire.BadChain},
	})
}

// unit changes the name of a certificate.
func unit(c *x509.Certificate) { c.Subject.OrganizationalUnit = []string{"another"} }

// arcPPID is the offset in the SGX extension of the last arc of the PPID's object identifier.
const arcPPID = 17

func TestRefuseChain(t *testing.T) {
	judgeAll(t, attest.TDX, []refusal{
		{"root that policy does not name", func(_ *testing.T, s *scene) {
			s.rules.Roots = []attest.Digest{attesttest.NewDCAPVendor(now).Root()}
		}, wire.UnknownRoot},
		{"no roots", func(_ *testing.T, s *scene) { s.rules.Roots = nil }, wire.UnknownRoot},
		{"collateral of another vendor", func(_ *testing.T, s *scene) {
			s.question.Endorsements = attesttest.NewDCAPVendor(now).Endorsements(attest.TDX)
		}, wire.UnknownRoot},
		{"PCK under another name", certificate(pckName, func(c *x509.Certificate) { c.Subject.CommonName = signingName }), wire.BadChain},
		{"authority under another name", certificate(authorityName, func(c *x509.Certificate) { c.Subject.CommonName = rootName }), wire.BadChain},
		{"root under another name", certificate(rootName, func(c *x509.Certificate) { c.Subject.CommonName = authorityName }), wire.BadChain},
		{"signer under another name", certificate(signingName, func(c *x509.Certificate) { c.Subject.CommonName = pckName }), wire.BadChain},
		{"authority that is no CA", certificate(authorityName, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, x509.KeyUsageCRLSign }), wire.BadChain},
		{"PCK that is a CA", certificate(pckName, func(c *x509.Certificate) { c.IsCA = true }), wire.BadChain},
		{"other signature algorithm", certificate(pckName, func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA384 }), wire.BadChain},
		{"unknown critical extension", certificate(authorityName, func(c *x509.Certificate) { c.ExtraExtensions = append(c.ExtraExtensions, critical) }), wire.BadChain},
		{"signature of the PCK changed", func(t *testing.T, s *scene) {
			raw := s.evidence(t)
			pck, _ := pem.Decode(raw[pckChain:])
			pck.Bytes[len(pck.Bytes)-1] ^= 1
			copy(raw[pckChain:], pem.EncodeToMemory(pck))
		}, wire.BadChain},
		{"no SGX extension", certificate(pckName, func(c *x509.Certificate) { c.ExtraExtensions = nil }), wire.BadChain},
		{"SGX extension with bytes after it", extension(func(v []byte) []byte { return append(v, 0) }), wire.BadChain},
		{"SGX extension with a field twice", extension(func(v []byte) []byte { v[arcPPID]++; return v }), wire.BadChain},
		{"SGX extension without a PPID", extension(func(v []byte) []byte { v[arcPPID] = 99; return v }), wire.BadChain},
		{"root of the right key under another name", func(t *testing.T, s *scene) {
			signer, _ := pem.Decode(s.endorsements()["tcb_info_chain"])
			certificate(rootName, unit)(t, s)
			_, root := pem.Decode(s.vendor.Endorsements(attest.TDX)["tcb_info_chain"])
			s.endorsements()["tcb_info_chain"] = append(pem.EncodeToMemory(signer), root...)
		}, wire.BadChain},
		{"no chain of the signer", without("tcb_info_chain"), wire.BadChain},
		{"no chain of the QE identity's signer", without("qe_identity_chain"), wire.BadChain},
		{"chain of the signer that is none", replace("tcb_info_chain", []byte("x")), wire.Malformed},
		{"bytes after the chain of the signer", func(_ *testing.T, s *scene) {
			s.endorsements()["tcb_info_chain"] = append(s.endorsements()["tcb_info_chain"], "more"...)
		}, wire.Malformed},
		{"PCK chain in place of the signer's", func(t *testing.T, s *scene) {
			raw := bytes.TrimRight(s.evidence(t), "\x00")
			s.endorsements()["qe_identity_chain"] = raw[pckChain:]
		}, wire.BadChain},
	})
}

func TestRefuseTime(t *testing.T) {
	ended := func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) }
	judgeAll(t, attest.TDX, []refusal{
		{"PCK one second past its end", certificate(pckName, ended), wire.Expired},
		{"PCK one second before its time", certificate(pckName, func(c *x509.Certificate) { c.NotBefore = now.Add(time.Second) }), wire.Expired},
		{"authority past its end", certificate(authorityName, ended), wire.Expired},
		{"signer past its end", certificate(signingName, ended), wire.Expired},
		{"root past its end", certificate(rootName, ended), wire.Expired},
		{"TCB info one second past its end", set("TDX", "nextUpdate", now.Add(-time.Second).Format(time.RFC3339)), wire.Expired},
		{"TCB info issued more than two minutes later", set("TDX", "issueDate", now.Add(2*time.Minute+time.Second).Format(time.RFC3339)), wire.Expired},
		{"QE identity one second past its end", set("TD_QE", "nextUpdate", now.Add(-time.Second).Format(time.RFC3339)), wire.Expired},
		{"TCB info without a time", document("TDX", func(d map[string]any) { delete(d, "nextUpdate") }), wire.Expired},
		{"PCK list one second past its end", list(attesttest.DCAPAuthoritySerial, func(l *x509.RevocationList) { l.NextUpdate = now.Add(-time.Second) }), wire.Expired},
		{"root list one second past its end", list(attesttest.DCAPRootSerial, func(l *x509.RevocationList) { l.NextUpdate = now.Add(-time.Second) }), wire.Expired},
		{"list issued more than two minutes later", list(attesttest.DCAPRootSerial, func(l *x509.RevocationList) { l.ThisUpdate = now.Add(2*time.Minute + time.Second) }), wire.Expired},
		{"list past its end, though it need not be there", func(_ *testing.T, s *scene) {
			s.rules.CRL = attest.CRLIfPresent
			s.question.At = s.vendor.Until.Add(time.Second)
		}, wire.Expired},
	})
}

func TestRefuseRevocation(t *testing.T) {
	revoke := func(serial int64) change {
		return func(_ *testing.T, s *scene) { s.vendor.Revoke(big.NewInt(serial)) }
	}
	stranger := func(role string) change {
		return func(_ *testing.T, s *scene) {
			s.endorsements()[role] = attesttest.NewDCAPVendor(now).Endorsements(attest.TDX)[role]
		}
	}
	judgeAll(t, attest.TDX, []refusal{
		{"revoked PCK", func(_ *testing.T, s *scene) { s.vendor.Revoke(s.chip.Serial()) }, wire.Revoked},
		{"revoked PCK, though the list need not be there", func(_ *testing.T, s *scene) {
			s.rules.CRL = attest.CRLIfPresent
			s.vendor.Revoke(s.chip.Serial())
		}, wire.Revoked},
		{"revoked authority", revoke(attesttest.DCAPAuthoritySerial), wire.Revoked},
		{"revoked signer", revoke(attesttest.DCAPSigningSerial), wire.Revoked},
		{"no PCK list", without("pck_crl"), wire.CRLMissing},
		{"no root list", without("root_crl"), wire.CRLMissing},
		{"no lists", without("pck_crl", "root_crl"), wire.CRLMissing},
		{"empty list", replace("pck_crl", []byte{}), wire.CRLMissing},
		{"list that is none", replace("root_crl", []byte("x")), wire.Malformed},
		{"PCK list of another vendor", stranger("pck_crl"), wire.BadSignature},
		{"root list of another vendor", stranger("root_crl"), wire.BadSignature},
		{"root's list in place of the authority's", func(_ *testing.T, s *scene) {
			s.endorsements()["pck_crl"] = s.endorsements()["root_crl"]
		}, wire.BadSignature},
		{"list of the authority's key under another name", func(t *testing.T, s *scene) {
			s.evidence(t)
			certificate(authorityName, unit)(t, s)
		}, wire.BadSignature},
		{"root's list under another name", list(attesttest.DCAPRootSerial, func(l *x509.RevocationList) {
			l.Issuer = pkix.Name{CommonName: "another"}
		}), wire.BadSignature},
		{"list with another signature algorithm", list(attesttest.DCAPRootSerial, func(l *x509.RevocationList) {
			l.SignatureAlgorithm = x509.ECDSAWithSHA384
		}), wire.BadSignature},
		{"list with a critical extension", list(attesttest.DCAPRootSerial, func(l *x509.RevocationList) {
			l.ExtraExtensions = append(l.ExtraExtensions, critical)
		}), wire.Malformed},
	})
}

func TestRefuseCollateral(t *testing.T) {
	reframe := func(role, old, new string) change {
		return func(_ *testing.T, s *scene) {
			s.endorsements()[role] = bytes.Replace(s.endorsements()[role], []byte(old), []byte(new), 1)
		}
	}
	judgeAll(t, attest.TDX, []refusal{
		{"no TCB info", without("tcb_info"), wire.BadTCB},
		{"no QE identity", without("qe_identity"), wire.BadTCB},
		{"one digit of TCB info changed", reframe("tcb_info", `:18,`, `:19,`), wire.BadSignature},
		{"one digit of QE identity changed", reframe("qe_identity", `:18,`, `:19,`), wire.BadSignature},
		{"a space in TCB info", reframe("tcb_info", `:18,`, `: 18,`), wire.BadSignature},
		{"a space before TCB info", reframe("tcb_info", `{"`, ` {"`), wire.Malformed},
		{"another field name", reframe("tcb_info", `tcbInfo`, `TcbInfo`), wire.Malformed},
		{"no signature", reframe("tcb_info", `"signature"`, `"Signature"`), wire.Malformed},
		{"a signature that is not hexadecimal", func(_ *testing.T, s *scene) {
			info := s.endorsements()["tcb_info"]
			info[len(info)-3] = 'x'
		}, wire.Malformed},
		{"QE identity in place of TCB info", func(_ *testing.T, s *scene) {
			s.endorsements()["tcb_info"] = s.endorsements()["qe_identity"]
		}, wire.Malformed},
		{"TCB info of SGX", func(_ *testing.T, s *scene) {
			s.endorsements()["tcb_info"] = s.vendor.Endorsements(attest.SGX)["tcb_info"]
		}, wire.WrongChip},
		{"QE identity of SGX", func(_ *testing.T, s *scene) {
			s.endorsements()["qe_identity"] = s.vendor.Endorsements(attest.SGX)["qe_identity"]
		}, wire.WrongChip},
		{"TCB info of another FMSPC", set("TDX", "fmspc", "90C06F000001"), wire.WrongChip},
		{"TCB info of another PCE", set("TDX", "pceId", "0001"), wire.WrongChip},
		{"TCB info of a later version", set("TDX", "version", 4), wire.Malformed},
		{"QE identity of an earlier version", set("TD_QE", "version", 1), wire.Malformed},
		{"TCB info of another type", set("TDX", "tcbType", 1), wire.Malformed},
		{"TCB info without a TDX module", document("TDX", func(d map[string]any) { delete(d, "tdxModule") }), wire.Malformed},
		{"TCB info that is not what it seems", set("TDX", "fmspc", 5), wire.Malformed},
		{"QE identity that is not what it seems", set("TD_QE", "isvprodid", "x"), wire.Malformed},
		{"level with a component less", level("TDX", func(l map[string]any) {
			tcb := l["tcb"].(map[string]any)
			tcb["tdxtcbcomponents"] = tcb["tdxtcbcomponents"].([]any)[:15]
		}), wire.Malformed},
		{"level without a status", level("TDX", func(l map[string]any) { delete(l, "tcbStatus") }), wire.Malformed},
		{"level of an unknown status", level("TDX", func(l map[string]any) { l["tcbStatus"] = "Fine" }), wire.Malformed},
		{"level of the QE without a version", level("TD_QE", func(l map[string]any) { l["tcb"] = map[string]any{} }), wire.Malformed},
		{"level of the QE without a status", level("TD_QE", func(l map[string]any) { delete(l, "tcbStatus") }), wire.Malformed},
		{"QE identity with a short mask", set("TD_QE", "attributesMask", "FB"), wire.BadChain},
	})
}

func TestRefusePolicy(t *testing.T) {
	judgeAll(t, attest.TDX, []refusal{
		{"no rules but the root", func(_ *testing.T, s *scene) { s.rules.DCAP = attest.DCAPRules{} }, wire.NoPlatform},
		{"chip that is not listed", func(_ *testing.T, s *scene) {
			s.rules.DCAP.Chips = attest.List{Values: [][]byte{make([]byte, 16)}}
		}, wire.NoPlatform},
		{"chip that is cut off", func(_ *testing.T, s *scene) { s.rules.DCAP.CutChips = [][]byte{s.chip.ID()} }, wire.NoPlatform},
		{"model that is cut off", func(_ *testing.T, s *scene) { s.rules.DCAP.CutModels = [][]byte{{1}, s.chip.Model()} }, wire.NoPlatform},
		{"old TCB info", func(t *testing.T, s *scene) {
			s.rules.DCAP.MinEvaluation = 19
			set("TD_QE", "tcbEvaluationDataNumber", 19)(t, s)
		}, wire.BadTCB},
		{"old QE identity", func(t *testing.T, s *scene) {
			s.rules.DCAP.MinEvaluation = 19
			set("TDX", "tcbEvaluationDataNumber", 19)(t, s)
		}, wire.BadTCB},
		{"TDX module of another signer", edit(body+64, 1), wire.BadTCB},
		{"TDX module of other attributes", edit(body+112, 1), wire.BadTCB},
		{"TDX module of no version, of another signer", func(_ *testing.T, s *scene) {
			s.vendor.TCB.TDX[1] = 0
			s.device.Edit = func(signed []byte) { signed[body+1], signed[body+64] = 0, 1 }
		}, wire.BadTCB},
		{"TDX module of another version", edit(body+1, 2), wire.BadTCB},
		{"TDX module below all levels", edit(body, 1), wire.BadTCB},
		{"QE below all levels", editQE(258, 1), wire.BadTCB},
		{"platform below all levels", func(t *testing.T, s *scene) {
			document("TDX", func(d map[string]any) { d["tcbLevels"] = d["tcbLevels"].([]any)[:1] })(t, s)
			s.use(attest.TDX, s.vendor.Chip(attesttest.DCAPTCB{TDX: s.vendor.TCB.TDX}))
		}, wire.BadTCB},
		{"migration", edit(body+123, 0x30), wire.BadTCB},
		{"debug", edit(body+120, 1), wire.Debug},
		{"another attribute that makes a TD untrusted", edit(body+120, 0x10), wire.Debug},
		{"made for another use", edit(body+520, 0, 1, 2), wire.BadNonce},
	})
	judgeAll(t, attest.SGX, []refusal{
		{"debug", edit(body+48, 7), wire.Debug},
		{"old enclave", func(_ *testing.T, s *scene) { s.rules.DCAP.MinISVSVN = 4 }, wire.BadTCB},
		{"TCB info of TDX", func(_ *testing.T, s *scene) {
			s.endorsements()["tcb_info"] = s.vendor.Endorsements(attest.TDX)["tcb_info"]
		}, wire.WrongChip},
		{"made for another use", edit(body+320, 0, 1, 2), wire.BadNonce},
	})
}

// TestPermit: each permission of the rules admits the case that it names.
func TestPermit(t *testing.T) {
	tests := []struct {
		name   string
		of     attest.Platform
		change change
		permit func(s *scene)
	}{
		{"no lists", attest.TDX, without("pck_crl", "root_crl"), func(s *scene) { s.rules.CRL = attest.CRLIfPresent }},
		{"listed chip", attest.TDX, nil, func(s *scene) { s.rules.DCAP.Chips = attest.List{Values: [][]byte{s.chip.ID()}} }},
		{"evaluation number met exactly", attest.TDX, nil, func(s *scene) { s.rules.DCAP.MinEvaluation = 18 }},
		{"migration", attest.TDX, edit(body+123, 0x30), func(s *scene) { s.rules.DCAP.Migration = true }},
		{"debug", attest.TDX, edit(body+120, 1), func(s *scene) { s.rules.Debug = true }},
		{"debug enclave", attest.SGX, edit(body+48, 7), func(s *scene) { s.rules.Debug = true }},
		{"enclave version met exactly", attest.SGX, nil, func(s *scene) { s.rules.DCAP.MinISVSVN = 3 }},
		{"line end after a document", attest.SGX, func(_ *testing.T, s *scene) {
			s.endorsements()["tcb_info"] = append(s.endorsements()["tcb_info"], '\n')
		}, func(*scene) {}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene(tt.of)
			if tt.change != nil {
				tt.change(t, s)
			}
			tt.permit(s)
			if _, err := s.appraise(t); err != nil {
				t.Error(err)
			}
		})
	}
}
