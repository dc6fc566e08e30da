package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// answerWait bounds the wait for an answer's header where the caller's context
// has no nearer deadline.
const answerWait = MaxPoll + 15*time.Second

// MaxPoll is the longest time that a poll of the history waits for the next step.
const MaxPoll = 30 * time.Second

// Authority speaks to one authority. It believes nothing it reads; a refusal of
// the authority comes back as a [wire.Refusal], an unreachable one as the
// network's error. It is safe for concurrent use.
type Authority struct {
	base string
	http *http.Client
}

// NewAuthority makes a client for the authority at an https URL. Whom it
// accepts as the authority is what config says; there is no default for it.
func NewAuthority(address string, config *tls.Config) (*Authority, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || (u.Path != "" && u.Path != "/") {
		return nil, wire.Refuse(wire.BadRequest, "authority: URL", address, "https://HOST:PORT")
	}
	if config == nil {
		return nil, wire.Refuse(wire.BadRequest, "authority: TLS configuration", "none", "one that says who is accepted")
	}
	return &Authority{base: "https://" + u.Host, http: &http.Client{
		Transport: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			TLSClientConfig:       config,
			TLSHandshakeTimeout:   10 * time.Second,
			ResponseHeaderTimeout: answerWait,
			IdleConnTimeout:       time.Minute,
			MaxIdleConnsPerHost:   16,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Close closes idle connections.
func (a *Authority) Close() { a.http.CloseIdleConnections() }

// Challenge asks for a nonce.
func (a *Authority) Challenge(ctx context.Context) (Challenge, error) {
	return a.ChallengeFor(ctx, ChallengeRequest{})
}

// ChallengeFor asks for a nonce and, for a TPM, a credential.
func (a *Authority) ChallengeFor(ctx context.Context, r ChallengeRequest) (Challenge, error) {
	return post[Challenge](ctx, a, PathChallenge, r)
}

// Certify asks for a certificate report.
func (a *Authority) Certify(ctx context.Context, r CertificateRequest) (SealedReport, error) {
	return post[SealedReport](ctx, a, PathCertificates, r)
}

// TrustQuery names a task, a group or one identity, and the nonce that the
// authority's evidence is to carry.
type TrustQuery struct {
	Task  string
	Group string      // where Task is empty
	ID    wire.Digest // where both are empty
	Nonce [32]byte
	// Credential is for an authority whose TPM has introduced itself.
	Credential []byte
}

// Trust asks for what is needed to trust a task or one identity.
func (a *Authority) Trust(ctx context.Context, q TrustQuery) (TrustAnswer, error) {
	values := url.Values{"nonce": {hex.EncodeToString(q.Nonce[:])}}
	switch {
	case q.Task != "":
		values.Set("task", q.Task)
	case q.Group != "":
		values.Set("group", q.Group)
	default:
		values.Set("id", q.ID.String())
	}
	if len(q.Credential) > 0 {
		values.Set("credential", hex.EncodeToString(q.Credential))
	}
	return get[TrustAnswer](ctx, a, PathTrust+"?"+values.Encode())
}

// Leave gives the place of a unit back.
func (a *Authority) Leave(ctx context.Context, r LeaveRequest) (Left, error) {
	return post[Left](ctx, a, PathLeave, r)
}

// Ready asks whether the authority issues, and what it warns of.
func (a *Authority) Ready(ctx context.Context) (Health, error) {
	return get[Health](ctx, a, PathReady)
}

// Policy asks for the policy in force.
func (a *Authority) Policy(ctx context.Context) (Policy, error) {
	return get[Policy](ctx, a, PathPolicy)
}

// History asks for the policy history from a step on.
func (a *Authority) History(ctx context.Context, from int) (History, error) {
	return get[History](ctx, a, PathHistory+"?from="+strconv.Itoa(from))
}

// Poll waits for the step after a head, for at most wait, which is no more than
// [MaxPoll]. It returns the steps after that head, none where none came. An authority that
// does not know the head refuses with "behind", one with no place for another poll with
// "overload".
func (a *Authority) Poll(ctx context.Context, head wire.Digest, wait time.Duration) (History, error) {
	return get[History](ctx, a, PathHistory+"?"+pollQuery(head, wait))
}

// pollQuery is the query of a poll.
func pollQuery(head wire.Digest, wait time.Duration) string {
	return "from=" + head.Hex() + "&wait=" + strconv.FormatInt(wait.Milliseconds(), 10) + "ms"
}

// Push shows the authority a history; it adopts what is newer than its own and
// answers the policy in force. A long history is sent in several pieces, each of
// them a request that is small enough.
func (a *Authority) Push(ctx context.Context, h History) (Policy, error) {
	var inForce Policy
	for first := true; first || len(h.Entries) > 0; first = false {
		n := pieceOf(h.Entries)
		var err error
		inForce, err = post[Policy](ctx, a, PathHistory, History{From: h.From, Entries: h.Entries[:n], Head: h.Head})
		if err != nil {
			return Policy{}, err
		}
		h.From, h.Entries = h.From+n, h.Entries[n:]
	}
	return inForce, nil
}

// pieceOf is how many entries go into one request: as many as stay below half
// its limit before base64, and always one.
func pieceOf(entries []HistoryEntry) int {
	size := 0
	for i, e := range entries {
		size += len(e.Policy) + len(e.Adopted)
		for _, s := range e.Signatures {
			size += len(s)
		}
		if i > 0 && size > wire.MaxRequest/2 {
			return i
		}
	}
	return len(entries)
}

// Proposals asks for all proposals.
func (a *Authority) Proposals(ctx context.Context) (Proposals, error) {
	return get[Proposals](ctx, a, PathProposals)
}

// Proposal asks for the proposal of the policy with a digest.
func (a *Authority) Proposal(ctx context.Context, digest wire.Digest) (Proposal, error) {
	return get[Proposal](ctx, a, PathProposals+"/"+digest.Hex())
}

// Propose proposes a policy.
func (a *Authority) Propose(ctx context.Context, r ProposeRequest) (Proposal, error) {
	return post[Proposal](ctx, a, PathProposals, r)
}

// Sign adds an owner's signature to a proposal.
func (a *Authority) Sign(ctx context.Context, digest wire.Digest, r SignatureRequest) (Proposal, error) {
	return post[Proposal](ctx, a, PathProposals+"/"+digest.Hex()+"/signatures", r)
}

// Cancel withdraws a proposal.
func (a *Authority) Cancel(ctx context.Context, digest wire.Digest, r CancelRequest) (Proposal, error) {
	return post[Proposal](ctx, a, PathProposals+"/"+digest.Hex()+"/cancel", r)
}

// Backup asks what backup of the root secret there is.
func (a *Authority) Backup(ctx context.Context) (Backup, error) {
	return get[Backup](ctx, a, PathBackup)
}

// MakeBackup asks for new shares of the root secret.
func (a *Authority) MakeBackup(ctx context.Context, r BackupRequest) (BackupShares, error) {
	return post[BackupShares](ctx, a, PathBackup, r)
}

// BackupKept tells that the shares of a backup were written down.
func (a *Authority) BackupKept(ctx context.Context, r BackupKept) (Backup, error) {
	return post[Backup](ctx, a, PathBackupKept, r)
}

// Group asks for a group of the policy in force.
func (a *Authority) Group(ctx context.Context, name string) (Group, error) {
	return get[Group](ctx, a, PathGroups+"/"+url.PathEscape(name))
}

// GroupRoot asks for the root of a group's roster.
func (a *Authority) GroupRoot(ctx context.Context, group string, r GroupRootRequest) (GroupRoot, error) {
	return post[GroupRoot](ctx, a, PathGroups+"/"+url.PathEscape(group)+"/root", r)
}

// Say tells the authority what a party says of a group. When it answers, the
// statement is in the history.
func (a *Authority) Say(ctx context.Context, group string, s Said) (Heard, error) {
	return post[Heard](ctx, a, PathGroups+"/"+url.PathEscape(group)+"/approvals", s)
}

// LogQuery selects a page of the log. Zero fields select everything, and the
// authority's own page length.
type LogQuery struct {
	Before     int64
	Limit      int
	Task, Unit string
}

// Log asks for a page of the log, newest first.
func (a *Authority) Log(ctx context.Context, q LogQuery) (Log, error) {
	values := url.Values{}
	for name, value := range map[string]string{"task": q.Task, "unit": q.Unit, "before": number(q.Before), "limit": number(int64(q.Limit))} {
		if value != "" {
			values.Set(name, value)
		}
	}
	return get[Log](ctx, a, PathLog+"?"+values.Encode())
}

func number(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

func get[T any](ctx context.Context, a *Authority, path string) (T, error) {
	var none T
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, a.base+path, nil)
	if err != nil {
		return none, err
	}
	return do[T](a, r)
}

func post[T any](ctx context.Context, a *Authority, path string, body any) (T, error) {
	var none T
	b, err := json.Marshal(body)
	if err != nil {
		return none, fmt.Errorf("encoding request: %w", err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, a.base+path, bytes.NewReader(b))
	if err != nil {
		return none, err
	}
	r.Header.Set("Content-Type", "application/json")
	return do[T](a, r)
}

// do sends a request and reads its one answer. Fields that a newer authority
// may have added are passed over.
func do[T any](a *Authority, r *http.Request) (T, error) {
	var none, v T
	answer, err := a.http.Do(r)
	if err != nil {
		return none, fmt.Errorf("asking the authority: %w", err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return none, refusal(answer)
	}
	body, err := io.ReadAll(io.LimitReader(answer.Body, wire.MaxAnswer+1))
	if err != nil {
		return none, fmt.Errorf("reading the authority's answer: %w", err)
	}
	if len(body) > wire.MaxAnswer {
		return none, wire.Refuse(wire.TooLarge, "answer: size in bytes", "more", wire.MaxAnswer)
	}
	if err := json.Unmarshal(body, &v); err != nil {
		return none, wire.Refuse(wire.Malformed, "answer: JSON", err, "an answer of a Cohort authority")
	}
	return v, nil
}
