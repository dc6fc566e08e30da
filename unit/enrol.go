package unit

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// secrets are the private keys of one certificate request.
type secrets struct {
	hpke hpke.PrivateKey
	tls  *ecdsa.PrivateKey // nil in key mode shared
}

// enrol requests a certificate report from one authority and verifies it.
func (u *Unit) enrol(ctx context.Context, p *peer) (*enrolment, error) {
	if !u.watchedAt(p) {
		if err := u.refresh(ctx, p); err != nil {
			return nil, err
		}
	}
	challenge, err := p.Authority.ChallengeFor(ctx, u.introduction())
	if err != nil {
		return nil, fmt.Errorf("asking for a challenge: %w", err)
	}
	request, keys, err := u.request(ctx, challenge)
	if err != nil {
		return nil, err
	}
	sealed, err := p.Authority.Certify(ctx, request)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("asking for certificates: %w", err), u.pushHistory(ctx, p, err))
	}
	signed, err := keys.openReport(request, sealed)
	if err != nil {
		return nil, fmt.Errorf("opening the report: %w", err)
	}
	received := u.currentTime()
	e, err := u.accept(request, sealed.GroupRoot, signed, keys)
	if errors.Is(err, wire.Behind) {
		return nil, errors.Join(fmt.Errorf("checking the report: %w", err), u.refresh(ctx, p))
	}
	if err == nil {
		e.offset = received.Sub(e.proved.SignedAt())
	}
	if err != nil {
		return nil, fmt.Errorf("checking the report: %w", err)
	}
	return e, e.stapleEndorsements(sealed)
}

// introduction returns a challenge request with the keys of a TPM. Other TEEs need no
// credential.
func (u *Unit) introduction() api.ChallengeRequest {
	if tee, ok := u.tee.Attester.(attest.CredentialAttester); ok {
		in := tee.TPMKeys()
		return api.ChallengeRequest{EK: in.Device, AK: in.Key}
	}
	return api.ChallengeRequest{}
}

// request makes a certificate request: new keys, and evidence that is bound to them.
func (u *Unit) request(ctx context.Context, challenge api.Challenge) (api.CertificateRequest, secrets, error) {
	approved := u.seen.Load().Policy()
	request := api.CertificateRequest{
		Task: u.config.Task, Group: u.config.Group, Role: u.config.Role, PartyKeys: u.config.PartyKeys, Roster: u.config.Roster,
		Nonce: challenge.Nonce, SigningKey: u.spki,
		Root: approved.Document().Authority.Root, Head: approved.PolicyHead(),
	}
	terms, err := u.config.certificateTerms(approved)
	if err != nil {
		return request, secrets{}, err
	}
	keys, err := newSecrets(terms.keyMode, &request)
	if err != nil {
		return request, keys, err
	}
	evidence, err := u.tee.attest(ctx, attest.BindReportData(wire.LabelIssue, request.Bound()...), challenge.Credential)
	if err != nil {
		return request, keys, fmt.Errorf("asking the TEE for evidence: %w", err)
	}
	if request.Evidence, err = evidence.MarshalJSON(); err != nil {
		return request, keys, fmt.Errorf("encoding the evidence: %w", err)
	}
	return request, keys, nil
}

// newSecrets generates the keys that the key mode requires, and sets the public keys in the
// request.
func newSecrets(mode policyfile.KeyMode, request *api.CertificateRequest) (keys secrets, err error) {
	if keys.hpke, err = hpke.MLKEM768X25519().GenerateKey(); err != nil {
		return keys, fmt.Errorf("making the HPKE key: %w", err)
	}
	request.HPKEKey = keys.hpke.PublicKey().Bytes()
	if mode == policyfile.Shared {
		return keys, nil
	}
	if keys.tls, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return keys, fmt.Errorf("making the TLS key: %w", err)
	}
	if request.CSR, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, keys.tls); err != nil {
		return keys, fmt.Errorf("making the CSR: %w", err)
	}
	return keys, nil
}

func findTask(p policy.Approved, name string) (*policyfile.Task, error) {
	task, ok := p.Document().Tasks[name]
	if !ok {
		return nil, wire.Refuse(wire.NotFound, "policy: task", name, "a task of the policy")
	}
	return task, nil
}

// openReport decrypts the response. Successful decryption proves that the report is for this
// request, but does not authenticate its sender.
func (s secrets) openReport(request api.CertificateRequest, sealed api.SealedReport) (api.SignedReport, error) {
	var unverified api.SignedReport
	recipient, err := hpke.NewRecipient(sealed.Encapsulated, s.hpke, hpke.HKDFSHA256(), hpke.AES256GCM(), api.SealInfo(request, sealed.GroupRoot))
	if err != nil {
		return unverified, wire.Refuse(wire.BadSignature, "sealed report: encapsulated key", err, "sealed to this request")
	}
	plain, err := recipient.Open(nil, sealed.Ciphertext)
	if err != nil {
		return unverified, wire.Refuse(wire.BadSignature, "sealed report: ciphertext", err, "sealed to this request")
	}
	defer clear(plain)
	if err := json.Unmarshal(plain, &unverified); err != nil {
		return unverified, wire.Refuse(wire.Malformed, "signed report", fmt.Sprint(len(plain), " bytes that do not parse"), "JSON")
	}
	return unverified, nil
}

// accept verifies a report in this order: its signature, that it is about this unit under the
// newest policy, its certificates, and its keys.
func (u *Unit) accept(request api.CertificateRequest, groupRoot wire.Digest, signed api.SignedReport, keys secrets) (*enrolment, error) {
	defer clear(signed.Report)
	chain, err := u.checkSignature(request, groupRoot, signed)
	if err != nil {
		return nil, err
	}
	var report api.Report
	if err := json.Unmarshal(signed.Report, &report); err != nil {
		return nil, wire.Refuse(wire.Malformed, "report", fmt.Sprint(len(signed.Report), " bytes that do not parse"), "JSON")
	}
	defer clear(report.LeafKey)
	defer report.Rings.Clear()
	e, err := u.snapshot(report, chain)
	if err != nil {
		return nil, err
	}
	if err := u.checkUnit(e, report); err != nil {
		return nil, fmt.Errorf("unit certificate: %w", err)
	}
	if err := u.checkLeaf(e, report, keys); err != nil {
		return nil, fmt.Errorf("leaf certificate: %w", err)
	}
	if err := e.setRing(report.Rings); err != nil {
		return nil, fmt.Errorf("ring keys: %w", err)
	}
	return e, e.setTimes(report, u.currentTime())
}

// checkSignature verifies the signature over the report and this request, by the authority that
// the newest policy names. For a unit in a group, the signer must be a leaf under the group root
// that its parties approve, and this root must be the one in the sealed report. It returns the
// signer's chain.
func (u *Unit) checkSignature(request api.CertificateRequest, groupRoot wire.Digest, signed api.SignedReport) ([]*x509.Certificate, error) {
	chain, err := parseAll(signed.Chain...)
	if err != nil {
		return nil, err
	}
	want, sealedUnder := 2, wire.Digest{}
	if u.config.Group != "" {
		want = 3
	}
	if len(chain) != want {
		return nil, wire.Refuse(wire.BadChain, "report: certificates of the signer", len(chain), want)
	}
	if u.config.Group != "" {
		sealedUnder = wire.Sum(chain[1].RawSubjectPublicKeyInfo)
	}
	if groupRoot != sealedUnder {
		return nil, wire.Refuse(wire.WrongRoot, "report: group root that it is sealed under", groupRoot, sealedUnder)
	}
	if err := u.checkSigner(chain, u.config.Group); err != nil {
		return nil, fmt.Errorf("signer of the report: %w", err)
	}
	message := api.ReportMessage(signed.Report, request.Digest())
	defer clear(message)
	if chain[0].CheckSignature(x509.ECDSAWithSHA256, message, signed.Signature) != nil {
		return nil, wire.Refuse(wire.BadSignature, "report: signature", "a signature that does not verify", "the authority's, over this request")
	}
	return chain, nil
}

// snapshot checks the report's claims against the unit's configuration and the policy, and its
// roots against the signer's chain. It returns an enrolment without leaf, keys and times.
func (u *Unit) snapshot(report api.Report, signer []*x509.Certificate) (*enrolment, error) {
	approved, root := u.seen.Load().Policy(), signer[len(signer)-1]
	terms, err := u.config.certificateTerms(approved)
	if err != nil {
		return nil, err
	}
	switch {
	case report.Schema != api.ReportSchema:
		return nil, wire.Refuse(wire.Malformed, "report: schema", report.Schema, api.ReportSchema)
	case !approved.Knows(report.Head): // an older head is known too: the unit adopted a step in the meantime
		return nil, wire.Refuse(wire.Behind, "report: policy head", report.Head, approved.PolicyHead())
	case report.KeyMode != string(terms.keyMode):
		return nil, wire.Refuse(wire.WrongKind, "report: key mode", report.KeyMode, terms.keyMode)
	case !bytes.Equal(report.Authority, root.Raw):
		return nil, wire.Refuse(wire.WrongRoot, "report: authority root", wire.Sum(report.Authority), wire.Sum(root.Raw))
	case u.config.Group != "" && !bytes.Equal(report.IdentityCA, signer[1].Raw):
		return nil, wire.Refuse(wire.WrongRoot, "report: group root", wire.Sum(report.IdentityCA), wire.Sum(signer[1].Raw))
	}
	id, err := u.config.identity(approved, report)
	if err != nil {
		return nil, err
	}
	if report.Identity != id {
		return nil, wire.Refuse(wire.WrongIdentity, "report: identity", report.Identity, id)
	}
	var party attest.Digest
	if u.config.Group != "" {
		if party, err = u.config.ownParty(approved, report); err != nil {
			return nil, err
		}
	}
	proved, err := identity.ParseHead(report.ProvedHead, approved, root, u.currentTime())
	if err != nil {
		return nil, fmt.Errorf("checking the head in the report: %w", err)
	}
	return &enrolment{
		proved: proved, policy: approved, root: root, unit: report.Unit, env: report.Env, replaced: make(chan struct{}), lifetime: terms.lifetime,
		identity: identity.Identity{
			ID: id, Task: report.Task, Release: report.Release, Group: report.Group, Role: report.Role,
			Root: report.IdentityCA, Cross: report.Cross,
		},
		party: party, endorsed: fetchTimes(report),
	}, nil
}

// fetchTimes returns, for each part of the evidence, the times at which the authority fetched
// the vendors' documents.
func fetchTimes(report api.Report) (all []attest.Endorsements) {
	for _, checked := range append([][]byte{report.Checked}, report.DevicesChecked...) {
		one := attest.Endorsements{}
		if len(checked) > 0 {
			one[attest.RoleChecked] = checked
		}
		all = append(all, one)
	}
	return all
}

// stapleEndorsements stores the endorsements with which a client appraises the unit's evidence
// without requests to the vendors: the vendors' documents, unverified, and the times at which
// the authority fetched them.
func (e *enrolment) stapleEndorsements(sealed api.SealedReport) error {
	unverified := append([]map[string][]byte{sealed.Endorsements}, sealed.DeviceEndorsements...)
	if len(unverified) != len(e.endorsed) {
		return wire.Refuse(wire.Malformed, "report: devices with endorsements", len(unverified)-1, len(e.endorsed)-1)
	}
	for i, one := range e.endorsed {
		for role, document := range unverified[i] {
			if role != attest.RoleChecked {
				one[role] = document
			}
		}
		if _, err := one.Fetched(); err != nil {
			return err
		}
	}
	return nil
}

// checkUnit verifies the certificate of the unit's signing key, and sets facts.
func (u *Unit) checkUnit(e *enrolment, report api.Report) error {
	own, err := u.checkOwn(e, e.identity.Signing(report.Unit), u.signing.Public(), identity.Expect{
		Kinds: []identity.Kind{identity.KindUnit}, Use: identity.UseSigning,
	})
	if err != nil {
		return err
	}
	if e.facts = own.Facts(); e.facts.Release == "" {
		e.facts.Release = report.Release
	}
	return nil
}

// checkLeaf verifies the certificate and key for TLS, and sets leaf.
func (u *Unit) checkLeaf(e *enrolment, report api.Report, keys secrets) error {
	kind, key := identity.KindUnit, keys.tls
	if report.KeyMode == string(policyfile.Shared) {
		parsed, err := x509.ParsePKCS8PrivateKey(report.LeafKey)
		shared, ok := parsed.(*ecdsa.PrivateKey)
		if err != nil || !ok {
			return wire.Refuse(wire.Malformed, "shared key", fmt.Sprintf("%d bytes of type %T", len(report.LeafKey), parsed), "an ECDSA key, PKCS #8")
		}
		kind, key = identity.KindShared, shared
	}
	raw := e.identity.Serving(report.Leaf)
	_, err := u.checkOwn(e, raw, key.Public(), identity.Expect{Kinds: []identity.Kind{kind}, Use: identity.UseTLS})
	if err != nil {
		return err
	}
	leaf, err := x509.ParseCertificate(report.Leaf)
	if err != nil {
		return err
	}
	e.leaf = &tls.Certificate{Certificate: raw, PrivateKey: key, Leaf: leaf}
	return nil
}

// checkOwn verifies a chain of the unit's own identity: it must certify key, and have the kind
// and use in expect.
func (u *Unit) checkOwn(e *enrolment, raw [][]byte, key crypto.PublicKey, expect identity.Expect) (identity.Peer, error) {
	chain, err := parseAll(raw...)
	if err != nil {
		return identity.Peer{}, err
	}
	if !key.(*ecdsa.PublicKey).Equal(chain[0].PublicKey) {
		return identity.Peer{}, wire.Refuse(wire.BadChain, "certified key", wire.Sum(chain[0].RawSubjectPublicKeyInfo), "the unit's own key")
	}
	if expect.At, err = verificationTime(chain[0], u.currentTime()); err != nil {
		return identity.Peer{}, err
	}
	expect.Policy, expect.IDs = e.policy, []attest.Digest{e.identity.ID}
	if e.identity.Group != "" {
		expect.Kinds, expect.Group, expect.Roles = []identity.Kind{identity.KindGroup}, e.identity.Group, []string{e.identity.Role}
	}
	own, err := identity.Check(chain, e.root, expect)
	if err == nil && !own.Party().IsZero() && own.Party() != e.party {
		err = wire.Refuse(wire.NoParty, "certificate: party of the member", own.Party(), e.party)
	}
	return own, err
}

// setTimes sets the times of renewal and expiry. It refuses with "clock" a certificate window
// that is too old: the next window began longer ago than the permitted difference between
// clocks.
func (e *enrolment) setTimes(report api.Report, now time.Time) error {
	e.renewAfter, e.renewBefore, e.notAfter = report.RenewAfter, report.RenewBefore, e.leaf.Leaf.NotAfter
	if !e.renewAfter.Before(e.notAfter) || e.renewBefore.Before(e.renewAfter) {
		return wire.Refuse(wire.Malformed, "report: renewal", e.renewAfter, "before the certificate's end")
	}
	begin := e.leaf.Leaf.NotBefore.Add(wire.WindowLead)
	next := begin.Add(e.lifetime * 2 / 3)
	if latest := next.Add(wire.MaxClockSkew); now.After(latest) {
		return wire.Refuse(wire.ClockSkew, "certificate window: time here", now.UTC().Format(time.RFC3339), "before "+latest.UTC().Format(time.RFC3339))
	}
	return nil
}

func parseAll(raw ...[]byte) ([]*x509.Certificate, error) {
	chain := make([]*x509.Certificate, len(raw))
	for i, der := range raw {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, wire.Refuse(wire.Malformed, "report: certificate", err, "X.509, DER")
		}
		chain[i] = c
	}
	return chain, nil
}

// setRing sets the ring keys. It refuses malformed keys and a missing current key with
// "malformed", and with "identity" keys that are inherited from a release other than the one
// that this release continues by policy.
func (e *enrolment) setRing(r api.Rings) (err error) {
	if e.ring.Strict, err = openRing(r.Strict); err != nil {
		return err
	}
	if e.ring.Follow, err = openRing(r.Follow); err != nil || r.Inherited == nil {
		return err
	}
	if e.identity.Group != "" {
		return wire.Refuse(wire.WrongIdentity, "report: keys inherited in a group", r.Inherited.Identity, "no inherited keys")
	}
	task, release := e.identity.Task, e.identity.Release
	before, err := identity.ReleaseID(e.policy, task, e.policy.Document().Tasks[task].Releases[release].Continues)
	if err != nil || r.Inherited.Identity != before {
		return wire.Refuse(wire.WrongIdentity, "report: keys inherited from", r.Inherited.Identity, before)
	}
	e.ring.Inherited.Identity = before
	e.ring.Inherited.Keys, err = openRing(r.Inherited.RingKeys)
	return err
}

func openRing(from api.RingKeys) (identity.RingKeys, error) {
	var keys identity.RingKeys
	if from.Current == nil {
		return keys, wire.Refuse(wire.Malformed, "report: current ring key", "no current key", "a current key for each kind of session")
	}
	for _, k := range []struct {
		from *api.RingKey
		to   **identity.RingKey
	}{{from.Previous, &keys.Previous}, {from.Current, &keys.Current}, {from.Next, &keys.Next}} {
		if k.from == nil {
			continue
		}
		var err error
		if *k.to, err = identity.OpenRingKey(k.from.Key, k.from.End); err != nil {
			return identity.RingKeys{}, err
		}
	}
	return keys, nil
}

// leaveTime limits the wait for the authority in leave: a place that is not released expires.
const leaveTime = 2 * time.Second

// leave releases the unit's place among the units of its task: the authority issues no more
// certificates to this unit. One response of an authority is enough.
func (u *Unit) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), leaveTime)
	defer cancel()
	l := api.LeaveRequest{Unit: u.id, Time: u.currentTime().UTC().Truncate(time.Second)}
	digest := sha256.Sum256(api.LeaveMessage(l.Unit, l.Time, u.seen.Load().Policy().Document().Authority.Root))
	var err error
	if l.Signature, err = ecdsa.SignASN1(rand.Reader, u.signing, digest[:]); err == nil {
		for _, p := range u.peers {
			if _, err = p.Authority.ReleasePlace(ctx, l); err == nil {
				return
			}
		}
	}
	u.config.Log.Info("no authority released the place of this unit; it expires", "unit", u.id, "reason", wire.ReasonOf(err), "cause", err)
}
