package dcap

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/internal/pki"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Roles of endorsements.
const (
	roleTCBInfo         = "tcb_info"
	roleTCBInfoChain    = "tcb_info_chain"
	roleQEIdentity      = "qe_identity"
	roleQEIdentityChain = "qe_identity_chain"
	rolePCKCRL          = "pck_crl"
	roleRootCRL         = "root_crl"
)

// bundle is a platform's certificates and Intel's collateral, unchecked.
type bundle struct {
	of       attest.Platform
	chain    []byte // PCK certificate chain, as the quote carries it
	endorsed attest.Endorsements
}

// pckChain is the text of the PCK certificate chain without C's end of a string,
// which is mostly there.
func (b bundle) pckChain() []byte { return bytes.TrimRight(b.chain, "\x00") }

// platform is what certificates and collateral vouch for, once they verify and
// nothing is revoked. Their time is not checked yet. It is immutable.
type platform struct {
	root     attest.Digest // of the root's SubjectPublicKeyInfo
	key      *ecdsa.PublicKey
	pck      pck
	tcb      *tcbInfo
	qe       *qeIdentity
	hasLists bool // both revocation lists were there
	times    []pki.Validity
}

// verify checks everything about a bundle that does not depend on time or rules.
func (b bundle) verify() (*platform, error) {
	p, certs, err := b.certificates()
	if err != nil {
		return nil, err
	}
	signers, err := p.verifyStatements(b)
	if err != nil {
		return nil, err
	}
	return p, p.verifyLists(b, certs, signers)
}

// certificates checks the PCK certificate chain alone, which comes with the quote.
func (b bundle) certificates() (*platform, []*x509.Certificate, error) {
	certs, err := parseChain("the PCK certificate chain", b.pckChain())
	if err != nil {
		return nil, nil, err
	}
	key, err := verifyChain("the PCK certificate chain", certs, []string{namePCK}, []string{namePlatformCA, nameCPUCA}, []string{nameRoot})
	if err != nil {
		return nil, nil, err
	}
	p := &platform{root: wire.Sum(certs[2].RawSubjectPublicKeyInfo), key: key, times: pki.Validities(certs...)}
	if p.pck, err = readPCK(extension(certs[0])); err != nil {
		return nil, nil, err
	}
	return p, certs, nil
}

// verifyStatements checks TCB info and QE identity, and returns the certificates of
// their signers.
func (p *platform) verifyStatements(b bundle) (signers []*x509.Certificate, err error) {
	tcbID, qeID := idSGX, idQE
	if b.of == attest.TDX {
		tcbID, qeID = idTDX, idTDQE
	}
	info, signer, err := p.verifyDocument(b, roleTCBInfo, roleTCBInfoChain, `{"tcbInfo":`)
	if err != nil {
		return nil, err
	}
	identity, other, err := p.verifyDocument(b, roleQEIdentity, roleQEIdentityChain, `{"enclaveIdentity":`)
	if err != nil {
		return nil, err
	}
	if p.tcb, err = readTCBInfo(info, tcbID); err != nil {
		return nil, err
	}
	if p.qe, err = readQEIdentity(identity, qeID); err != nil {
		return nil, err
	}
	if !bytes.Equal(p.tcb.FMSPC, p.pck.fmspc) || !bytes.Equal(p.tcb.PCEID, p.pck.pceID) {
		return nil, wire.Refuse(wire.WrongChip, "dcap: FMSPC and PCE id of TCB info", hex.EncodeToString(p.tcb.FMSPC)+" "+hex.EncodeToString(p.tcb.PCEID),
			hex.EncodeToString(p.pck.fmspc)+" "+hex.EncodeToString(p.pck.pceID))
	}
	p.times = append(p.times, p.tcb.validity("TCB info"), p.qe.validity("QE identity"))
	return []*x509.Certificate{signer, other}, nil
}

// verifyDocument verifies a document of Intel's and returns the bytes that are signed,
// byte for byte: {"tcbInfo":…,"signature":"…"}.
func (p *platform) verifyDocument(b bundle, role, chainRole, before string) ([]byte, *x509.Certificate, error) {
	if len(b.endorsed[role]) == 0 {
		return nil, nil, wire.Refuse(wire.BadTCB, "dcap: "+role, "evidence without this endorsement", "Intel's statement on this platform")
	}
	if len(b.endorsed[chainRole]) == 0 {
		return nil, nil, wire.Refuse(wire.BadChain, "dcap: "+chainRole, "evidence without this endorsement", "the certificate of the signer")
	}
	certs, err := parseChain(chainRole, b.endorsed[chainRole])
	if err != nil {
		return nil, nil, err
	}
	key, err := verifyChain(chainRole, certs, []string{nameSigning}, []string{nameRoot})
	if err != nil {
		return nil, nil, err
	}
	if got := wire.Sum(certs[1].RawSubjectPublicKeyInfo); got != p.root {
		return nil, nil, wire.Refuse(wire.UnknownRoot, "dcap: root of "+chainRole, got, p.root)
	}
	p.times = append(p.times, pki.Validities(certs...)...)
	text, signature, err := splitSigned(b.endorsed[role], role, before)
	if err != nil {
		return nil, nil, err
	}
	if !verify(key, text, signature) {
		return nil, nil, wire.Refuse(wire.BadSignature, "dcap: signature of "+role, "a signature that does not verify", "one by "+nameSigning)
	}
	return text, certs[0], nil
}

// splitSigned takes the frame away without reading what is in it. A line end
// may follow it.
func splitSigned(document []byte, role, before string) (text, signature []byte, err error) {
	const between, after = `,"signature":"`, `"}`
	rest, found := bytes.CutPrefix(bytes.TrimSuffix(document, []byte("\n")), []byte(before))
	rest, ended := bytes.CutSuffix(rest, []byte(after))
	at := len(rest) - 2*signatureSize
	if found && ended && at >= 0 {
		text, found = bytes.CutSuffix(rest[:at], []byte(between))
		signature, err = hex.DecodeString(string(rest[at:]))
		if found && err == nil {
			return text, signature, nil
		}
	}
	return nil, nil, wire.Refuse(wire.Malformed, "dcap: "+role, fmt.Sprintf("%d bytes that begin with %.16q", len(document), document), before+`…`+between+`…`+after)
}

// verifyLists checks the revocation lists that are there: the root's over the
// authorities, the PCK authority's over the platform.
func (p *platform) verifyLists(b bundle, certs, signers []*x509.Certificate) error {
	p.hasLists = true
	for _, l := range []struct {
		role   string
		issuer *x509.Certificate
		over   []*x509.Certificate
	}{
		{rolePCKCRL, certs[1], certs[:1]},
		{roleRootCRL, certs[2], append(signers, certs[1:]...)},
	} {
		der := b.endorsed[l.role]
		if len(der) == 0 {
			p.hasLists = false
			continue
		}
		list, err := intel.ParseRevocationList(der, l.issuer, nil)
		if err != nil {
			return err
		}
		if err := list.CheckNotRevoked(l.over...); err != nil {
			return err
		}
		p.times = append(p.times, list.Validity)
	}
	return nil
}
