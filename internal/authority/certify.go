package authority

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/records"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/collateral"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// enrolment is one certificate request and the results of each step that handles it.
type enrolment struct {
	request  api.CertificateRequest
	from     string // the address that sent it
	at       time.Time
	snap     *snapshot
	evidence attest.Evidence
	endorsed []attest.Endorsements // endorsements that the authority added: of the TEE, then of each device
	hpkeKey  hpke.PublicKey
	signing  *ecdsa.PublicKey
	tlsKey   crypto.PublicKey // in key mode unit
	grant    policy.Grant
	identity identity.Identity
	serial   *big.Int // of the unit certificate
	report   api.Report
}

// certify responds to a certificate request from an address. The issuance is on disk before the
// report is sent. The challenge is spent whether or not the request succeeds. When the policy
// changes between decision and record, certify decides the request once more under the new
// policy.
func (a *Authority) certify(ctx context.Context, r api.CertificateRequest, from string) (api.SealedReport, error) {
	if err := a.spendNonce(r.Nonce); err != nil {
		return api.SealedReport{}, err
	}
	response, err := a.certifyOnce(ctx, r, from)
	if errors.Is(err, errPolicyChanged) {
		if err := a.history.Refresh(ctx); err != nil {
			return api.SealedReport{}, err
		}
		response, err = a.certifyOnce(ctx, r, from)
	}
	return response, err
}

// errPolicyChanged reports that the policy in the store differs from the policy under which a
// request was decided.
var errPolicyChanged = errors.New("policy changed while issuing")

func (a *Authority) certifyOnce(ctx context.Context, r api.CertificateRequest, from string) (api.SealedReport, error) {
	now, err := a.clock.Now()
	if err != nil {
		return api.SealedReport{}, err
	}
	e := &enrolment{request: r, from: from, at: now, snap: a.inForce()}
	defer e.clear()
	if err := a.checkRequest(e); err != nil {
		return api.SealedReport{}, err
	}
	if err := e.parseKeys(); err != nil {
		return api.SealedReport{}, err
	}
	if err := a.rings.EnsureLease(ctx); err != nil {
		return api.SealedReport{}, err
	}
	stranger := &collateral.Stranger{Address: e.from, Screen: sync.OnceValue(func() error { return a.screen(e) })}
	e.endorsed, err = a.endorseEvidence(ctx, e.evidence, e.snap.approved, stranger)
	if err != nil {
		return api.SealedReport{}, err
	}
	e.evidence = e.evidence.WithEach(e.endorsed)
	if err := a.appraise(e); err != nil {
		return api.SealedReport{}, err
	}
	if err := e.issue(); err != nil {
		return api.SealedReport{}, err
	}
	if err := a.addRings(e); err != nil {
		return api.SealedReport{}, err
	}
	if err := a.record(ctx, e); err != nil {
		return api.SealedReport{}, err
	}
	a.clock.Raise(e.grant.Result.Issued())
	return e.sealReport()
}

// checkRequest does the cheap checks: that the authority may issue, that the task exists, and
// that the unit names this root and a policy head that this authority knows.
func (a *Authority) checkRequest(e *enrolment) error {
	r := e.request
	if err := a.history.Behind(); err != nil {
		return err
	}
	if e.snap.unnamed != nil {
		return wire.Refuse(wire.Unavailable, "authority", e.snap.unnamed, "an authority that policy names")
	}
	if err := e.snap.validateTarget(r); err != nil {
		return err
	}
	if err := e.notCut(e.snap.document().Tasks[r.Task]); err != nil {
		return err
	}
	if r.Root != a.root.Digest {
		return wire.Refuse(wire.WrongRoot, "request: authority root", r.Root, a.root.Digest)
	}
	if !e.snap.approved.Knows(r.Head) {
		return wire.Refuse(wire.Behind, "request: policy head", r.Head, e.snap.approved.PolicyHead())
	}
	err := e.evidence.UnmarshalJSON(r.Evidence)
	for _, part := range append([]attest.Evidence{e.evidence}, e.evidence.Devices...) {
		delete(part.Endorsed, attest.RoleChecked) // only the authority sets this
	}
	return err
}

// notCut refuses a unit that its task's policy cuts off. For a unit in a group, the task is known
// only after appraisal.
func (e *enrolment) notCut(task *policyfile.Task) error {
	if unit := wire.UnitIDOf(e.request.SigningKey).String(); task != nil && slices.Contains(task.CutUnits, unit) {
		return wire.Refuse(wire.CutOff, "request: unit", unit, "one that is not among the task's cut_units")
	}
	return nil
}

// parseKeys reads the keys of the request. Key mode unit requires a CSR; other modes refuse one.
func (e *enrolment) parseKeys() error {
	r := e.request
	var err error
	if e.hpkeKey, err = hpke.MLKEM768X25519().NewPublicKey(r.HPKEKey); err != nil {
		return wire.Refuse(wire.BadRequest, "request: HPKE key", err, "MLKEM768-X25519, 1216 bytes")
	}
	if e.signing, err = parseSigningKey(r.SigningKey); err != nil {
		return err
	}
	mode := e.snap.keyMode(r)
	if (mode == policyfile.PerUnit) != (len(r.CSR) > 0) {
		return wire.Refuse(wire.BadCSR, "request: CSR", fmt.Sprint(len(r.CSR), " bytes"), "one in key mode unit only; the mode is "+string(mode))
	}
	if mode == policyfile.PerUnit {
		e.tlsKey, err = identity.CSRKey(r.CSR)
	}
	return err
}

func parseSigningKey(spki []byte) (*ecdsa.PublicKey, error) {
	const rule, want = "request: signing key", "a P-256 SubjectPublicKeyInfo"
	parsed, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, wire.Refuse(wire.BadRequest, rule, err, want)
	}
	key, ok := parsed.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, wire.Refuse(wire.BadRequest, rule, fmt.Sprintf("%T, not of P-256", parsed), want)
	}
	// Accept one encoding only: the unit id is a digest of it.
	if again, err := x509.MarshalPKIXPublicKey(key); err != nil || string(again) != string(spki) {
		return nil, wire.Refuse(wire.BadRequest, rule, "a second encoding of a key", want)
	}
	return key, nil
}

// endorseEvidence returns the vendors' endorsements of evidence, first of the TEE, then of each
// device. It skips platforms that the policy does not name. s is the sender of the evidence, nil
// for the authority's own evidence.
func (a *Authority) endorseEvidence(ctx context.Context, e attest.Evidence, approved policy.Approved, s *collateral.Stranger) ([]attest.Endorsements, error) {
	if a.endorser == nil {
		return nil, nil
	}
	all := make([]attest.Endorsements, 1+len(e.Devices))
	for i, part := range append([]attest.Evidence{e}, e.Devices...) {
		if _, ruled := approved.Rules()[part.Platform]; !ruled {
			continue
		}
		var err error
		if s == nil {
			all[i], err = a.endorser.Endorse(ctx, part)
		} else if all[i], err = a.endorser.EndorseFor(ctx, part, *s); errors.Is(err, wire.TooMany) {
			a.metrics.Unknown.Inc()
		}
		if err != nil {
			return nil, fmt.Errorf("finding endorsements: %w", err)
		}
	}
	return all, nil
}

// question returns the input of appraisal: the evidence must be valid and bound to every other
// field of the request.
func (a *Authority) question(e *enrolment) attest.Question {
	return attest.Question{
		Evidence:   e.evidence,
		ReportData: attest.BindReportData(wire.LabelIssue, e.request.Bound()...),
		Rules:      e.snap.approved.Rules(),
		At:         e.at,
		Secret:     func(in attest.TPMKeys) []byte { return a.root.Keys.CredentialSecret(e.request.Nonce, in) },
	}
}

// screen refuses evidence that no endorsements could make acceptable, before the authority sends
// a request to a vendor: evidence of a platform or chip without rules, below a floor, made for a
// different request, or of code that the policy does not name. Where the evidence contains its
// certificates, screen also refuses evidence without a valid signature.
func (a *Authority) screen(e *enrolment) error {
	unverified, err := a.verifier.Screen(a.question(e))
	if err != nil {
		return err
	}
	if r := e.request; r.Group != "" {
		return e.snap.approved.CouldAdmitMember(r.Group, r.Role, unverified)
	}
	return e.snap.approved.CouldAdmit(e.request.Task, unverified)
}

// appraise appraises the evidence and matches it with the releases of the task or role.
func (a *Authority) appraise(e *enrolment) error {
	result, err := a.verifier.Appraise(a.question(e))
	if err != nil {
		return err
	}
	if err := a.clock.CheckSigned(result.Issued()); err != nil {
		return err
	}
	if r := e.request; r.Group != "" {
		pins := policy.Pins{Parties: r.PartyKeys, Roster: r.Roster}
		if e.grant, err = e.snap.approved.AdmitMember(r.Group, r.Role, result, pins, e.snap.groups.RootDigest, e.at); err == nil {
			err = e.notCut(e.grant.Task)
		}
	} else {
		e.grant, err = e.snap.approved.Admit(r.Task, result)
	}
	if err == nil && a.endorser != nil {
		a.endorser.RecordAccepted(e.from)
	}
	return err
}

// issue makes the certificates and the report. It sends nothing.
func (e *enrolment) issue() error {
	unit, err := e.snap.issuer.UnitLeaf(e.grant, e.signing, e.at)
	if err != nil {
		return err
	}
	e.serial = unit.Serial
	if e.identity, err = e.snap.identityFor(e.grant); err != nil {
		return err
	}
	e.report = api.Report{
		Schema: api.ReportSchema,
		Task:   e.grant.Task.Name, Release: e.grant.Release.Name, Identity: e.identity.ID, KeyMode: string(e.snap.keyMode(e.request)),
		Unit: unit.DER, IdentityCA: e.identity.Root, Cross: e.identity.Cross, Authority: e.snap.issuer.AuthorityRoot(),
		Env: e.grant.Release.Env, Head: e.snap.approved.PolicyHead(),
		RenewAfter: unit.RenewAfter, RenewBefore: unit.RenewBefore, NotAfter: unit.NotAfter,
	}
	e.addChecked()
	e.addGroup()
	if e.report.ProvedHead, err = e.snap.proveHead(e.at); err != nil {
		return err
	}
	if err := e.addLeaf(); err != nil {
		return err
	}
	return e.addCalls()
}

// addChecked adds the times at which the vendors' documents were fetched, for each part of the
// evidence.
func (e *enrolment) addChecked() {
	for i, endorsed := range e.endorsed {
		if checked := endorsed[attest.RoleChecked]; i == 0 {
			e.report.Checked = checked
		} else {
			e.report.DevicesChecked = append(e.report.DevicesChecked, checked)
		}
	}
}

// addLeaf adds the certificate that TLS serves: the leaf and key that all units share, or a leaf
// for the unit's own key.
func (e *enrolment) addLeaf() error {
	if e.tlsKey != nil {
		leaf, err := e.snap.issuer.UnitTLSLeaf(e.grant, e.tlsKey, wire.UnitIDOf(e.request.SigningKey), e.at)
		e.report.Leaf = leaf.DER
		return err
	}
	leaf, err := e.snap.sharedLeaf(e.grant, e.at)
	if err != nil {
		return err
	}
	e.report.Leaf = leaf.DER
	e.report.LeafKey, err = x509.MarshalPKCS8PrivateKey(leaf.Key)
	return err
}

// addCalls adds the identity roots of the tasks that the unit's task may call.
func (e *enrolment) addCalls() error {
	e.report.Calls = make(map[string][][]byte, len(e.grant.Task.Calls))
	for _, task := range e.grant.Task.Calls {
		for _, release := range e.snap.document().Tasks[task].ReleaseNames() {
			id, err := e.snap.issuer.Identity(task, release)
			if err != nil {
				return err
			}
			e.report.Calls[task] = append(e.report.Calls[task], id.Root)
		}
	}
	return nil
}

// record makes the issuance durable. In the same transaction the store refuses a nonce that was
// already used and a policy that is no longer in force.
func (a *Authority) record(ctx context.Context, e *enrolment) error {
	entry := api.LogEntry{
		Time: e.at.UTC(), Kind: records.KindIssued, Task: e.report.Task, Release: e.report.Release, Identity: e.report.Identity,
		Group: e.report.Group, Role: e.report.Role,
		Unit: wire.UnitIDOf(e.request.SigningKey).String(), Platform: string(e.grant.Result.Measurement().Platform),
		Chip: e.grant.Result.ChipID(), Devices: logged(e.grant.Result.Devices()), Serial: e.serial.Text(16), NotAfter: e.report.NotAfter, Head: e.report.Head,
	}
	row, err := a.records.Seal(records.TableLog, e.request.Nonce, entry)
	if err != nil {
		return err
	}
	place, err := a.placeOf(e)
	if err != nil {
		return err
	}
	err = a.store.Record(ctx, store.Issuance{
		Entry:  store.Entry{Row: row, Task: entry.Task, Unit: entry.Unit},
		Serial: entry.Serial, Certificate: wire.Sum(e.report.Unit), Head: entry.Head, Place: place,
	})
	if errors.Is(err, wire.Behind) {
		return fmt.Errorf("%w: %w", errPolicyChanged, err)
	}
	return err
}

// logged returns devices in the form of the log.
func logged(devices []attest.Device) []api.LogDevice {
	var out []api.LogDevice
	for _, d := range devices {
		out = append(out, api.LogDevice{Platform: string(d.Platform), Chip: d.Chip, Unjudged: d.NotVerified})
	}
	return out
}

// clear overwrites the secrets of the report.
func (e *enrolment) clear() {
	clear(e.report.LeafKey)
	e.report.Rings.Clear()
}

// sealReport signs the report with the kind-authority key, or with the group's in a group, and
// encrypts it to the HPKE key that the evidence is bound to.
func (e *enrolment) sealReport() (api.SealedReport, error) {
	signer, chain, groupRoot, err := e.reportSigner()
	if err != nil {
		return api.SealedReport{}, err
	}
	report, err := json.Marshal(e.report)
	if err != nil {
		return api.SealedReport{}, fmt.Errorf("encoding report: %w", err)
	}
	defer clear(report)
	digest := sha256.Sum256(api.ReportMessage(report, e.request.Digest()))
	signature, err := ecdsa.SignASN1(rand.Reader, signer.Key, digest[:])
	if err != nil {
		return api.SealedReport{}, fmt.Errorf("signing report: %w", err)
	}
	plain, err := json.Marshal(api.SignedReport{
		Report: report, Signature: signature, Chain: chain,
	})
	if err != nil {
		return api.SealedReport{}, fmt.Errorf("encoding signed report: %w", err)
	}
	defer clear(plain)
	enc, sender, err := hpke.NewSender(e.hpkeKey, hpke.HKDFSHA256(), hpke.AES256GCM(), api.SealInfo(e.request, groupRoot))
	if err != nil {
		return api.SealedReport{}, fmt.Errorf("sealing report: %w", err)
	}
	sealed, err := sender.Seal(nil, plain)
	if err != nil {
		return api.SealedReport{}, fmt.Errorf("sealing report: %w", err)
	}
	response := api.SealedReport{GroupRoot: groupRoot, Encapsulated: enc, Ciphertext: sealed}
	e.addDocuments(&response)
	return response, nil
}

// addDocuments adds the vendors' documents beside the sealed report: they are not secret, and the
// vendors signed them.
func (e *enrolment) addDocuments(response *api.SealedReport) {
	for i, endorsed := range e.endorsed {
		documents := maps.Clone(endorsed)
		delete(documents, attest.RoleChecked)
		if i == 0 {
			response.Endorsements = documents
		} else {
			response.DeviceEndorsements = append(response.DeviceEndorsements, documents)
		}
	}
}
