// Package api defines the authority's HTTP API for both sides: paths, bodies, problems (RFC
// 9457), and a thin client. docs/api/openapi.yaml describes the same API.
//
// It checks form and size only. Callers decide whether to trust a response: reports are signed
// and sealed, policy is signed by its owners, and a trust response contains evidence.
//
// Files, each using those before it: status.go, problem.go, trustquery.go, client.go, api.go, body.go,
// buffered.go, cors.go, poll.go, relay.go, rings.go.
package api

import (
	"encoding/binary"
	"encoding/json"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Paths of the authority, version 1.
const (
	PathChallenge    = "/v1/challenge"
	PathCertificates = "/v1/certificates"
	PathLeave        = "/v1/leave"
	PathTrust        = "/v1/trust"
	PathPolicy       = "/v1/policy"
	PathHistory      = "/v1/policy/history"
	PathProposals    = "/v1/policy/proposals"
	PathBackup       = "/v1/backup"
	PathBackupKept   = "/v1/backup/kept"
	PathGroups       = "/v1/groups"
	PathLog          = "/v1/log"
	PathLive         = "/livez"
	PathReady        = "/readyz"
	PathMetrics      = "/metrics"
)

// ChallengeRequest requests a nonce. A TPM identifies itself, because only it can open the
// credential in the response.
type ChallengeRequest struct {
	EK []byte `json:"ek,omitempty"` // certificate of its endorsement key, DER
	AK []byte `json:"ak,omitempty"` // public area of its attestation key, TPMT_PUBLIC
}

// Challenge is a nonce: expiry, 16 random bytes and a MAC, opaque to the unit. The credential
// encrypts a secret that the evidence must contain.
type Challenge struct {
	Nonce      []byte    `json:"nonce"`
	Expires    time.Time `json:"expires"`
	Credential []byte    `json:"credential,omitempty"` // TPM2B_ID_OBJECT, TPM2B_ENCRYPTED_SECRET
}

// CertificateRequest requests a certificate report. Its evidence is bound, by the label
// "cohort issue v1", to every other field ([CertificateRequest.Bound]).
//
// It is for a task, or for a role in a group.
type CertificateRequest struct {
	Task       string          `json:"task,omitempty"`
	Group      string          `json:"group,omitempty"`
	Role       string          `json:"role,omitempty"`       // with group
	PartyKeys  []wire.Digest   `json:"party_keys,omitempty"` // with group: SHA-256 of the SSH keys of the unit's own party, the old and the new one
	Roster     wire.Digest     `json:"roster,omitzero"`      // with group: the only roster the unit accepts; zero accepts any that its party approves
	Nonce      []byte          `json:"nonce"`
	HPKEKey    []byte          `json:"hpke_key"`      // MLKEM768-X25519, 1216 bytes
	SigningKey []byte          `json:"signing_key"`   // P-256 SubjectPublicKeyInfo, DER
	CSR        []byte          `json:"csr,omitempty"` // PKCS #10, DER; in key mode unit only
	Root       wire.Digest     `json:"authority_root"`
	Head       wire.Digest     `json:"policy_head"` // newest head that the unit knows
	Evidence   json.RawMessage `json:"evidence"`    // conceptual message wrapper, RFC 9999
}

// Bound returns the fields to which the request's evidence is bound, in order.
func (r CertificateRequest) Bound() [][]byte {
	keys := make([]byte, 0, len(r.PartyKeys)*len(wire.Digest{}))
	for _, key := range r.PartyKeys {
		keys = append(keys, key[:]...)
	}
	return [][]byte{r.Nonce, r.HPKEKey, r.SigningKey, r.CSR, []byte(r.spiffePath()), r.Root[:], r.Head[:], keys, r.Roster[:]}
}

// spiffePath returns the requested SPIFFE path. Names contain no "/", so different requests have
// different paths.
func (r CertificateRequest) spiffePath() string {
	if r.Group != "" {
		return wire.RolePath(r.Group, r.Role)
	}
	return wire.TaskPath(r.Task)
}

// Digest returns the digest of the request with its evidence. The sealed report is bound to
// it.
func (r CertificateRequest) Digest() wire.Digest {
	return wire.Hash(wire.LabelRequest, append(r.Bound(), r.Evidence)...)
}

// SealedReport is the response: an HPKE ciphertext that only the requesting unit can open. Its
// HPKE info is [SealInfo].
type SealedReport struct {
	// GroupRoot is SHA-256 of the group root's SubjectPublicKeyInfo, in a group. The
	// ciphertext is bound to it; the unit accepts it only if the group's parties approve it.
	GroupRoot    wire.Digest `json:"group_root,omitzero"`
	Encapsulated []byte      `json:"enc"`
	Ciphertext   []byte      `json:"ciphertext"` // a [SignedReport], JSON
	// Endorsements are the vendor's endorsements of the unit's evidence, by role, for later
	// verifiers. Each is verified by its own signature, and [Report.Checked] contains its
	// digest.
	Endorsements map[string][]byte `json:"endorsements,omitempty"`
	// DeviceEndorsements are the endorsements of each device beside the TEE, in the order of
	// the evidence.
	DeviceEndorsements []map[string][]byte `json:"device_endorsements,omitempty"`
}

// SealInfo returns the HPKE info of the report for r. In a group it contains the group's root;
// outside groups groupRoot is zero.
func SealInfo(r CertificateRequest, groupRoot wire.Digest) []byte {
	digest := r.Digest()
	return wire.Frame(wire.LabelSealedReport, r.Nonce, digest[:], r.Root[:], groupRoot[:])
}

// SignedReport is a certificate report under the signature of the authority's
// kind-authority key (ECDSA P-256, ASN.1, over [ReportMessage]).
type SignedReport struct {
	Report    []byte `json:"report"` // a [Report], JSON
	Signature []byte `json:"signature"`
	// Chain is DER: the kind-authority leaf, in a group the group root above it, and the
	// authority root.
	Chain [][]byte `json:"chain"`
}

// ReportMessage returns the bytes that the signature of a report covers.
func ReportMessage(report []byte, request wire.Digest) []byte {
	return wire.Frame(wire.LabelReport, report, request[:])
}

// Report is the certificate report that an attested unit receives. All certificates are DER.
type Report struct {
	Schema      string              `json:"schema"` // "cohort/report/v1"
	Task        string              `json:"task"`
	Release     string              `json:"release"`
	Identity    wire.Digest         `json:"identity"` // of the release, or of the group
	KeyMode     string              `json:"key_mode"`
	Group       string              `json:"group,omitempty"`
	Role        string              `json:"role,omitempty"`
	Roster      []byte              `json:"roster,omitempty"`    // the roster that the group's parties approve
	Approvals   []SignedStatement   `json:"approvals,omitempty"` // the parties' statements about it
	Unit        []byte              `json:"unit"`                // certificate of the signing key
	Leaf        []byte              `json:"leaf"`                // certificate for TLS
	LeafKey     []byte              `json:"leaf_key"`            // PKCS #8; in key mode shared only
	IdentityCA  []byte              `json:"identity_root"`       // self-signed
	Cross       []byte              `json:"cross"`               // the identity root's key under the authority root; in a group for manager and gateway alone
	Authority   []byte              `json:"authority"`           // authority root certificate
	Calls       map[string][][]byte `json:"calls,omitempty"`     // task → identity roots of its releases
	Env         map[string]string   `json:"env,omitempty"`       // environment variables that policy sets
	Rings       Rings               `json:"rings"`               // keys that encrypt sessions between units; in a group strict belongs to the role, follow to the whole group
	Head        wire.Digest         `json:"policy_head"`
	ProvedHead  []byte              `json:"proved_head"` // Head under the authority's signature (docs/spec/head.md)
	RenewAfter  time.Time           `json:"renew_after"`
	RenewBefore time.Time           `json:"renew_before"`      // end of the jitter
	NotAfter    time.Time           `json:"not_after"`         // of leaf and unit certificate
	Checked     []byte              `json:"checked,omitempty"` // when the authority fetched the vendor's revocation lists and endorsements

	// DevicesChecked is Checked of each device beside the TEE.
	DevicesChecked [][]byte `json:"devices_checked,omitempty"`
}

// ReportSchema is the schema of [Report].
const ReportSchema = "cohort/report/v1"

// HistoryEntry is one step of the history chain: a policy file and the owners' signatures over
// it, or a party's statement and its signature. Adopted is the authority's mark that the step
// took effect. Only an authority with the same root can verify it; with it, a step that was
// lost from a store takes effect again without a second delay.
type HistoryEntry struct {
	Policy     []byte   `json:"policy"`
	Signatures []string `json:"signatures"` // armored SSH signatures
	Adopted    []byte   `json:"adopted,omitempty"`
	// AdoptedAt is when the authority adopted the step, by its own clock. The mark does not
	// cover it, so no other party can verify it.
	AdoptedAt time.Time `json:"adopted_at,omitzero"`
}

// SignedStatement is a party's statement about a group, as signed.
type SignedStatement struct {
	Statement []byte `json:"statement"`
	Signature string `json:"signature"` // armored SSH signature
}

// StatementReceipt acknowledges a party's statement: the statement is in the history, whose head was then
// Head. The authority signs it with its kind-authority key (ECDSA P-256, ASN.1, over
// [StatementReceiptMessage]).
type StatementReceipt struct {
	Statement wire.Digest `json:"statement"` // SHA-256
	Head      wire.Digest `json:"policy_head"`
	Signature []byte      `json:"signature"`
	Chain     [][]byte    `json:"chain"` // DER: the kind-authority leaf, then the authority root
}

// StatementReceiptMessage returns the bytes that the signature of an acknowledgement covers.
func StatementReceiptMessage(h StatementReceipt) []byte {
	return wire.Frame(wire.LabelStatementReceipt, h.Statement[:], h.Head[:])
}

// Group describes a group of the policy in force, or a group that it continues.
type Group struct {
	Name       string            `json:"name"`
	Identity   wire.Digest       `json:"identity"`
	Roster     []byte            `json:"roster"`
	GroupRoot  wire.Digest       `json:"group_root,omitzero"` // group root of the roster; zero if the roster does not name this authority
	Statements []SignedStatement `json:"statements"`          // newest statement of each party
	Approved   []string          `json:"approved"`
	Missing    []string          `json:"missing"`
	Quorum     int               `json:"quorum"`
	Ends       *time.Time        `json:"ends,omitempty"` // end of the approval; absent without a quorum
	Continues  *Group            `json:"continues,omitempty"`
}

// GroupRootRequest requests the root of a group's roster.
type GroupRootRequest struct {
	Nonce []byte `json:"nonce"` // 32 bytes to which the evidence is bound
	// Credential is for an authority whose TPM has introduced itself.
	Credential []byte      `json:"credential,omitempty"`
	Roster     wire.Digest `json:"roster,omitzero"` // the group's identity; zero is the newest
}

// GroupRoot is the root of a roster, and evidence of the authority that has its key, bound by
// the label "cohort group root v1" to (nonce, roster, SHA-256 of the root's
// SubjectPublicKeyInfo). Parties appraise it by the roster's own reference values before they
// approve the root.
type GroupRoot struct {
	Roster   wire.Digest     `json:"roster"`
	Root     []byte          `json:"group_root"` // self-signed certificate, DER
	Evidence json.RawMessage `json:"evidence"`
}

// History is a range of steps, oldest first. The step at index 0 of the whole history is the
// genesis.
type History struct {
	From    int            `json:"from"` // index of the first entry
	Entries []HistoryEntry `json:"entries"`
	Head    wire.Digest    `json:"head"` // after the last step of the whole history
	// ProvedHead is Head under the authority's signature (docs/spec/head.md): without it the
	// history may contain steps that are not in force. An authority whose clock is refused, or
	// that is behind, leaves it out.
	ProvedHead []byte `json:"proved_head,omitempty"`
}

// LeaveRequest releases the place of a unit that shuts down. It is final: that unit
// receives no further certificates.
type LeaveRequest struct {
	Unit      wire.UnitID `json:"unit"`
	Time      time.Time   `json:"time"`      // of the unit; whole seconds
	Signature []byte      `json:"signature"` // by the unit's signing key: ECDSA P-256, ASN.1, over [LeaveMessage]
}

// LeaveMessage returns the bytes that the signature of a leave request covers.
func LeaveMessage(unit wire.UnitID, at time.Time, root wire.Digest) []byte {
	return wire.Frame(wire.LabelLeave, unit[:], binary.BigEndian.AppendUint64(nil, uint64(at.Unix())), root[:])
}

// LeaveResponse confirms that a unit has left.
type LeaveResponse struct {
	Unit wire.UnitID `json:"unit"`
}

// TrustResponse contains what a client needs to trust a task or one identity. The evidence is
// the authority's own, bound by the label "cohort trust v1" to (nonce, authority root, head), or
// in response to a request without a nonce by "cohort timed trust v1" to (authority root, head,
// time). Statement is the authority's signature over it, for clients that receive the response
// through a relay (docs/spec/trust.md, section 7).
type TrustResponse struct {
	Authority  []byte          `json:"authority"` // authority root certificate, DER
	Identities []TrustIdentity `json:"identities"`
	History    History         `json:"history"`
	Evidence   json.RawMessage `json:"evidence"`
	Statement  []byte          `json:"statement,omitempty"`
}

// TrustIdentity is one identity root.
type TrustIdentity struct {
	Task    string      `json:"task,omitempty"`
	Release string      `json:"release,omitempty"`
	Group   string      `json:"group,omitempty"` // instead of both
	ID      wire.Digest `json:"identity"`
	Root    []byte      `json:"root"`            // self-signed, DER
	Cross   []byte      `json:"cross,omitempty"` // under the authority root, DER; not of groups
}

// Policy is the policy in force.
type Policy struct {
	Sequence uint64      `json:"sequence"`
	Digest   wire.Digest `json:"digest"`
	Head     wire.Digest `json:"head"`
	Policy   []byte      `json:"policy"`
}

// Proposal is a pending policy, which waits for signatures and then for the delay.
type Proposal struct {
	Digest     wire.Digest `json:"digest"`
	Sequence   uint64      `json:"sequence"`
	State      string      `json:"state"` // "pending", "waiting", "ready", "adopted", "cancelled", "expired"
	Proposer   string      `json:"proposer"`
	Signed     []string    `json:"signed"`  // owners
	Missing    []string    `json:"missing"` // owners who have not signed
	Quorum     int         `json:"quorum"`
	Created    time.Time   `json:"created"`
	Expires    time.Time   `json:"expires"`
	Waited     int64       `json:"waited"`               // seconds of the delay that have elapsed while the authority was running
	Delay      int64       `json:"delay"`                // seconds; 0 if the policy only tightens
	Policy     []byte      `json:"policy,omitempty"`     // omitted in lists
	Signatures []string    `json:"signatures,omitempty"` // omitted in lists
}

// Proposals lists all stored proposals, newest first.
type Proposals struct {
	Proposals []Proposal `json:"proposals"`
	Damaged   []string   `json:"damaged,omitempty"` // rows of the store that were skipped
}

// ProposeRequest proposes a policy; the first signature is the proposer's.
type ProposeRequest struct {
	Policy     []byte   `json:"policy"`
	Signatures []string `json:"signatures"`
}

// SignatureRequest adds an owner's signature to a proposal.
type SignatureRequest struct {
	Signature string `json:"signature"`
}

// CancelRequest carries a cancel statement and its signature by the proposer.
type CancelRequest struct {
	Statement []byte `json:"statement"`
	Signature string `json:"signature"`
}

// BackupRequest requests shares of the root secret: a backup statement and an owner's
// signature over it.
type BackupRequest struct {
	Statement []byte `json:"statement"`
	Signature string `json:"signature"`
}

// BackupShares are the files of a backup, one for each owner, sealed to that owner. The backup
// counts once the files were stored and one of them was presented again.
type BackupShares struct {
	Shares [][]byte `json:"shares"`
}

// BackupKept presents a share of a backup that was stored.
type BackupKept struct {
	Share []byte `json:"share"`
}

// States of a [Backup].
const (
	BackupNone    = "none"    // no backup was ever confirmed
	BackupStale   = "stale"   // for owners, keys or a quorum that have since changed
	BackupCurrent = "current" // a quorum of the current owners can restore it
)

// Backup is the record of the newest confirmed backup.
type Backup struct {
	State   string      `json:"state"`
	ID      string      `json:"backup,omitempty"`
	Created *time.Time  `json:"created,omitempty"`
	Head    wire.Digest `json:"policy_head,omitzero"`
}

// LogEntry is one recorded issuance or refusal.
type LogEntry struct {
	Sequence int64       `json:"sequence"`
	Time     time.Time   `json:"time"`
	Kind     string      `json:"kind"` // "issued", "refused"
	Task     string      `json:"task"`
	Group    string      `json:"group,omitempty"`
	Role     string      `json:"role,omitempty"`
	Release  string      `json:"release,omitempty"`
	Identity wire.Digest `json:"identity,omitzero"`
	Unit     string      `json:"unit,omitempty"` // unit id
	Platform string      `json:"platform,omitempty"`
	Chip     string      `json:"chip,omitempty"`
	Devices  []LogDevice `json:"devices,omitempty"`  // beside the TEE
	Serial   string      `json:"serial,omitempty"`   // of the unit certificate
	NotAfter time.Time   `json:"not_after,omitzero"` // of the unit certificate
	Head     wire.Digest `json:"policy_head,omitzero"`
	Reason   wire.Reason `json:"reason,omitempty"`
	Detail   string      `json:"detail,omitempty"`
}

// LogDevice is a device beside the TEE of an issuance.
type LogDevice struct {
	Platform string   `json:"platform"`
	Chip     string   `json:"chip"`
	Unjudged []string `json:"not_verified,omitempty"` // parts of its evidence that were not verified
}

// Log is a page of the log, newest first.
type Log struct {
	Entries []LogEntry `json:"entries"`
	Next    int64      `json:"next,omitempty"`    // pass as before= for the next page
	Damaged []int64    `json:"damaged,omitempty"` // sequence numbers of rows that were skipped
}

// Health is the response of the probes. An authority with warnings continues to issue.
type Health struct {
	Status         string          `json:"status"`
	Warnings       []string        `json:"warnings,omitempty"`
	Contradictions []Contradiction `json:"contradictions,omitempty"`
}

// Contradiction is a pair of policy heads that both took effect under one root, neither of
// which extends the other.
type Contradiction struct {
	Kept  wire.Digest `json:"kept"`  // of the history in force
	Other wire.Digest `json:"other"` // in the same place
	Seen  time.Time   `json:"seen"`
}

// Problem is an error response, RFC 9457, content type application/problem+json. It contains
// rule, got and want of the refusal, and no secret.
type Problem struct {
	Type   string      `json:"type"` // "urn:cohort:problem:" and the reason
	Title  string      `json:"title"`
	Status int         `json:"status"`
	Reason wire.Reason `json:"reason"`
	Rule   string      `json:"rule,omitempty"`
	Got    string      `json:"got,omitempty"`
	Want   string      `json:"want,omitempty"`
}
