package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// responseWait bounds the wait for the header of a response if the caller's context has no
// earlier deadline.
const responseWait = MaxPoll + 15*time.Second

// MaxPoll is the maximum wait of a poll for the next step of the history.
const MaxPoll = 30 * time.Second

// Authority is a client of one authority. It verifies nothing it reads; a refusal by the
// authority is returned as a [wire.Refusal], a failed connection as the network's error. It is
// safe for concurrent use.
type Authority struct {
	base string
	http *http.Client
}

// NewAuthority makes a client for the authority at an https URL. The required config decides
// which server is accepted as the authority.
func NewAuthority(address string, config *tls.Config) (*Authority, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || (u.Path != "" && u.Path != "/") {
		return nil, wire.Refuse(wire.BadRequest, "authority: URL", address, "https://HOST:PORT")
	}
	if config == nil {
		return nil, wire.Refuse(wire.BadRequest, "authority: TLS configuration", "no configuration", "a configuration that verifies the authority")
	}
	return &Authority{base: "https://" + u.Host, http: &http.Client{
		Transport: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			TLSClientConfig:       config,
			TLSHandshakeTimeout:   10 * time.Second,
			ResponseHeaderTimeout: responseWait,
			IdleConnTimeout:       time.Minute,
			MaxIdleConnsPerHost:   16,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Close closes idle connections.
func (a *Authority) Close() { a.http.CloseIdleConnections() }

// Challenge requests a nonce.
func (a *Authority) Challenge(ctx context.Context) (Challenge, error) {
	return a.ChallengeFor(ctx, ChallengeRequest{})
}

// ChallengeFor requests a nonce and, for a TPM, a credential.
func (a *Authority) ChallengeFor(ctx context.Context, r ChallengeRequest) (Challenge, error) {
	return postJSON[Challenge](ctx, a, PathChallenge, r)
}

// Certify requests a certificate report.
func (a *Authority) Certify(ctx context.Context, r CertificateRequest) (SealedReport, error) {
	return postJSON[SealedReport](ctx, a, PathCertificates, r)
}

// Trust requests what is needed to trust a task, a group or one identity.
func (a *Authority) Trust(ctx context.Context, q TrustQuery) (TrustResponse, error) {
	return getJSON[TrustResponse](ctx, a, PathTrust+"?"+q.encode())
}

// ReleasePlace releases the place of a unit.
func (a *Authority) ReleasePlace(ctx context.Context, r LeaveRequest) (LeaveResponse, error) {
	return postJSON[LeaveResponse](ctx, a, PathLeave, r)
}

// Ready requests the state of the authority and its warnings.
func (a *Authority) Ready(ctx context.Context) (Health, error) {
	return getJSON[Health](ctx, a, PathReady)
}

// Policy requests the policy in force.
func (a *Authority) Policy(ctx context.Context) (Policy, error) {
	return getJSON[Policy](ctx, a, PathPolicy)
}

// History requests the policy history from a step on.
func (a *Authority) History(ctx context.Context, from int) (History, error) {
	return getJSON[History](ctx, a, PathHistory+"?from="+strconv.Itoa(from))
}

// PollHistory waits for the step after a head, for at most wait, which is no more than [MaxPoll]. It
// returns the steps after that head, none if there are none. An authority that does not know
// the head refuses with "behind", one without a place for another poll with "overload".
func (a *Authority) PollHistory(ctx context.Context, head wire.Digest, wait time.Duration) (History, error) {
	return getJSON[History](ctx, a, PathHistory+"?"+pollQuery(head, wait))
}

// pollQuery returns the query of a poll.
func pollQuery(head wire.Digest, wait time.Duration) string {
	return "from=" + head.Hex() + "&wait=" + strconv.FormatInt(wait.Milliseconds(), 10) + "ms"
}

// PushHistory sends a history to the authority, which adopts the steps that are newer than its own
// and returns the policy in force. A long history is sent in several requests.
func (a *Authority) PushHistory(ctx context.Context, h History) (Policy, error) {
	var inForce Policy
	for first := true; first || len(h.Entries) > 0; first = false {
		n := pieceLength(h.Entries)
		var err error
		inForce, err = postJSON[Policy](ctx, a, PathHistory, History{From: h.From, Entries: h.Entries[:n], Head: h.Head})
		if err != nil {
			return Policy{}, err
		}
		h.From, h.Entries = h.From+n, h.Entries[n:]
	}
	return inForce, nil
}

// pieceLength returns the number of entries for one request: as many as stay below half its limit
// before base64, and at least one.
func pieceLength(entries []HistoryEntry) int {
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

// Proposals requests all proposals.
func (a *Authority) Proposals(ctx context.Context) (Proposals, error) {
	return getJSON[Proposals](ctx, a, PathProposals)
}

// Proposal requests the proposal of the policy with a digest.
func (a *Authority) Proposal(ctx context.Context, digest wire.Digest) (Proposal, error) {
	return getJSON[Proposal](ctx, a, PathProposals+"/"+digest.Hex())
}

// Propose proposes a policy.
func (a *Authority) Propose(ctx context.Context, r ProposeRequest) (Proposal, error) {
	return postJSON[Proposal](ctx, a, PathProposals, r)
}

// AddSignature adds an owner's signature to a proposal.
func (a *Authority) AddSignature(ctx context.Context, digest wire.Digest, r SignatureRequest) (Proposal, error) {
	return postJSON[Proposal](ctx, a, PathProposals+"/"+digest.Hex()+"/signatures", r)
}

// Cancel withdraws a proposal.
func (a *Authority) Cancel(ctx context.Context, digest wire.Digest, r CancelRequest) (Proposal, error) {
	return postJSON[Proposal](ctx, a, PathProposals+"/"+digest.Hex()+"/cancel", r)
}

// Backup requests the record of the newest backup of the root secret.
func (a *Authority) Backup(ctx context.Context) (Backup, error) {
	return getJSON[Backup](ctx, a, PathBackup)
}

// MakeBackup requests new shares of the root secret.
func (a *Authority) MakeBackup(ctx context.Context, r BackupRequest) (BackupShares, error) {
	return postJSON[BackupShares](ctx, a, PathBackup, r)
}

// ConfirmBackup reports that the shares of a backup were stored.
func (a *Authority) ConfirmBackup(ctx context.Context, r BackupKept) (Backup, error) {
	return postJSON[Backup](ctx, a, PathBackupKept, r)
}

// Group requests a group of the policy in force.
func (a *Authority) Group(ctx context.Context, name string) (Group, error) {
	return getJSON[Group](ctx, a, PathGroups+"/"+url.PathEscape(name))
}

// GroupRoot requests the root of a group's roster.
func (a *Authority) GroupRoot(ctx context.Context, group string, r GroupRootRequest) (GroupRoot, error) {
	return postJSON[GroupRoot](ctx, a, PathGroups+"/"+url.PathEscape(group)+"/root", r)
}

// SubmitStatement sends a party's statement about a group. When it returns without error the statement is
// in the history.
func (a *Authority) SubmitStatement(ctx context.Context, group string, s SignedStatement) (StatementReceipt, error) {
	return postJSON[StatementReceipt](ctx, a, PathGroups+"/"+url.PathEscape(group)+"/approvals", s)
}

// LogQuery selects a page of the log. Zero fields select everything, and the
// authority's own page length.
type LogQuery struct {
	Before     int64
	Limit      int
	Task, Unit string
}

// IssuanceLog requests a page of the log, newest first.
func (a *Authority) IssuanceLog(ctx context.Context, q LogQuery) (Log, error) {
	values := url.Values{}
	for name, value := range map[string]string{"task": q.Task, "unit": q.Unit, "before": formatNumber(q.Before), "limit": formatNumber(int64(q.Limit))} {
		if value != "" {
			values.Set(name, value)
		}
	}
	return getJSON[Log](ctx, a, PathLog+"?"+values.Encode())
}

func formatNumber(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

func getJSON[T any](ctx context.Context, a *Authority, path string) (T, error) {
	var none T
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, a.base+path, nil)
	if err != nil {
		return none, err
	}
	return doJSON[T](a, r)
}

func postJSON[T any](ctx context.Context, a *Authority, path string, body any) (T, error) {
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
	return doJSON[T](a, r)
}

// doJSON sends a request and parses the response. Unknown fields, which a newer authority may have
// added, are ignored.
func doJSON[T any](a *Authority, r *http.Request) (T, error) {
	var none, v T
	response, err := a.http.Do(r)
	if err != nil {
		return none, fmt.Errorf("sending a request to the authority: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return none, readProblem(response)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, wire.MaxResponse+1))
	if err != nil {
		return none, fmt.Errorf("reading the authority's response: %w", err)
	}
	if len(body) > wire.MaxResponse {
		return none, wire.Refuse(wire.TooLarge, "response: size in bytes", fmt.Sprint("more than ", wire.MaxResponse), wire.MaxResponse)
	}
	if err := json.Unmarshal(body, &v); err != nil {
		return none, wire.Refuse(wire.Malformed, "response: JSON", err, "a response of a Cohort authority")
	}
	return v, nil
}
