package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/wire"
)

// TestProblems sends each kind of error through HTTP and reads it back.
func TestProblems(t *testing.T) {
	rows := []struct {
		name   string
		err    error
		status int
		want   *wire.Refusal
	}{
		{"a refusal", wire.Refuse(wire.NotMeasured, "measurement: program", "a", "b"), 403, &wire.Refusal{Reason: wire.NotMeasured, Rule: "measurement: program", Got: "a", Want: "b"}},
		{"a wrapped refusal", fmt.Errorf("reading: %w", wire.Refuse(wire.Behind, "head", "a", "b")), 409, &wire.Refusal{Reason: wire.Behind, Rule: "head", Got: "a", Want: "b"}},
		{"a full disk", wire.Refuse(wire.StoreFailed, "store: writing", "/secret/path", ""), 503, &wire.Refusal{Reason: wire.StoreFailed}},
		{"no refusal", errors.New("secret"), 500, &wire.Refusal{Reason: wire.Internal}},
		{"a reason of another part", wire.Refuse(wire.NotEnrolled, "unit", "secret", ""), 500, &wire.Refusal{Reason: wire.Internal}},
		{"a terminal escape", wire.Refuse(wire.NotFound, "task", "\x1b[2Jx\n", ""), 404, &wire.Refusal{Reason: wire.NotFound, Rule: "task", Got: "[2Jx"}},
		{"a long value", wire.Refuse(wire.NotFound, "task", strings.Repeat("x", 5000), ""), 404, &wire.Refusal{Reason: wire.NotFound, Rule: "task", Got: strings.Repeat("x", 1000)}},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			w := httptest.NewRecorder()
			ProblemOf(row.err).Write(w)
			if strings.Contains(w.Body.String(), "secret") {
				t.Errorf("got %s, which tells what belongs in the log", w.Body)
			}
			response := w.Result()
			if response.StatusCode != row.status {
				t.Errorf("got status %d, want %d", response.StatusCode, row.status)
			}
			var got *wire.Refusal
			if err := readProblem(response); !errors.As(err, &got) || *got != *row.want {
				t.Errorf("got %+v, want %+v", got, row.want)
			}
		})
	}
}

// TestForeignProblems reads what no authority of ours says.
func TestForeignProblems(t *testing.T) {
	rows := []struct {
		name, kind, body string
		want             wire.Reason
	}{
		{"a proxy's page", "text/html", "<html>", wire.Unavailable},
		{"no content type", "", "", wire.Unavailable},
		{"not JSON", TypeProblem, "x", wire.Malformed},
		{"cut off by its size", TypeProblem, `{"rule":"` + strings.Repeat("x", maxProblem) + `"}`, wire.Malformed},
		{"an unknown reason", TypeProblem, `{"reason":"trust-me"}`, wire.Internal},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			response := &http.Response{Header: http.Header{"Content-Type": {row.kind}}, Body: io.NopCloser(strings.NewReader(row.body))}
			if got := wire.ReasonOf(readProblem(response)); got != row.want {
				t.Errorf("got reason %q, want %q", got, row.want)
			}
		})
	}
}

func FuzzProblem(f *testing.F) {
	w := httptest.NewRecorder()
	ProblemOf(wire.Refuse(wire.NotFound, "task", "x", "y")).Write(w)
	f.Add(w.Body.String())
	f.Fuzz(func(t *testing.T, body string) {
		response := &http.Response{Header: http.Header{"Content-Type": {TypeProblem}}, Body: io.NopCloser(strings.NewReader(body))}
		var r *wire.Refusal
		if err := readProblem(response); !errors.As(err, &r) {
			t.Fatalf("got %v, want a refusal", err)
		}
		if statuses[r.Reason].authority == 0 {
			t.Errorf("got reason %q, which is not in the list", r.Reason)
		}
	})
}

func TestDecode(t *testing.T) {
	rows := []struct {
		name, body string
		want       wire.Reason // empty for none
	}{
		{"whole", `{"task":"a","nonce":"AA=="}`, ""},
		{"space around", " {} \n", ""},
		{"empty", ``, wire.BadRequest},
		{"cut", `{"task":`, wire.BadRequest},
		{"unknown field", `{"tusk":"a"}`, wire.BadRequest},
		{"wrong type", `{"task":1}`, wire.BadRequest},
		{"two values", `{} {}`, wire.BadRequest},
		{"rest", `{}]`, wire.BadRequest},
		{"broken digest", `{"authority_root":"abc"}`, wire.Malformed},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			err := Decode([]byte(row.body), new(CertificateRequest))
			if (err == nil) != (row.want == "") || err != nil && wire.ReasonOf(err) != row.want {
				t.Errorf("got %v, want reason %q", err, row.want)
			}
		})
	}
}

// FuzzDecode reads request bodies; what is accepted means the same when it is
// written and read again.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"task":"a","nonce":"AA==","hpke_key":"","signing_key":"","authority_root":"","policy_head":"","evidence":["a","b"]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var one, two CertificateRequest
		if Decode(body, &one) != nil {
			return
		}
		again, err := json.Marshal(one)
		if err != nil {
			t.Fatal(err)
		}
		if err := Decode(again, &two); err != nil {
			t.Fatalf("reading %s: %v", again, err)
		}
		one.Evidence, two.Evidence = nil, nil // spaces in it are its sender's
		if one.Digest() != two.Digest() {
			t.Errorf("%s and %s mean two requests", body, again)
		}
	})
}

// TestNewAuthority refuses what is no https address and a missing answer to the
// question whom to accept.
func TestNewAuthority(t *testing.T) {
	for _, address := range []string{"http://a", "a:1", "", "https://", "https://u:p@a", "https://a/x", "https://a?b", "https://a#b", "HTTP://a"} {
		if _, err := NewAuthority(address, new(tls.Config)); !errors.Is(err, wire.BadRequest) {
			t.Errorf("%q: got %v, want reason %q", address, err, wire.BadRequest)
		}
	}
	if _, err := NewAuthority("https://a", nil); !errors.Is(err, wire.BadRequest) {
		t.Errorf("without configuration: got %v, want reason %q", err, wire.BadRequest)
	}
}

// serve runs a handler as an authority and gives a client of it.
func serve(t *testing.T, handler http.HandlerFunc) *Authority {
	t.Helper()
	server := httptest.NewTLSServer(handler)
	t.Cleanup(server.Close)
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	a, err := NewAuthority(server.URL, &tls.Config{RootCAs: roots})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

// TestClientRefuses lets an authority answer what a client must not take.
func TestClientRefuses(t *testing.T) {
	rows := []struct {
		name   string
		answer http.HandlerFunc
		want   wire.Reason
	}{
		{"too much", func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, wire.MaxResponse+1)) }, wire.TooLarge},
		{"not JSON", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "x") }, wire.Malformed},
		{"two values", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "{}{}") }, wire.Malformed},
		{"a redirect", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/v1/policy", http.StatusFound) }, wire.Unavailable},
		{"a problem", func(w http.ResponseWriter, _ *http.Request) {
			ProblemOf(wire.Refuse(wire.ClockSkew, "a", "b", "c")).Write(w)
		}, wire.ClockSkew},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			if _, err := serve(t, row.answer).Policy(t.Context()); wire.ReasonOf(err) != row.want || err == nil {
				t.Errorf("got %v, want reason %q", err, row.want)
			}
		})
	}
	if _, err := serve(t, nil).http.Get("http://127.0.0.1:1"); err == nil {
		t.Error("got an answer from nowhere")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := serve(t, nil).Policy(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

// TestPush sends a history that is too long for one request.
func TestPush(t *testing.T) {
	const steps = 5
	next, requests := 0, 0
	a := serve(t, func(w http.ResponseWriter, r *http.Request) {
		var h History
		if err := ReadBody(w, r, wire.MaxRequest, &h); err != nil {
			ProblemOf(err).Write(w)
			return
		}
		if h.From != next {
			t.Errorf("got from %d, want %d", h.From, next)
		}
		next += len(h.Entries)
		requests++
		fmt.Fprintf(w, `{"sequence":%d}`, next)
	})
	h := History{}
	for range steps {
		h.Entries = append(h.Entries, HistoryEntry{Policy: make([]byte, wire.MaxPolicy), Signatures: []string{strings.Repeat("s", wire.MaxSignature)}})
	}
	p, err := a.PushHistory(t.Context(), h)
	if err != nil || p.Sequence != steps || requests < 2 {
		t.Errorf("got sequence %d after %d requests, %v, want %d after several", p.Sequence, requests, err, steps)
	}
	if _, err := a.PushHistory(t.Context(), History{From: steps}); err != nil {
		t.Errorf("pushing nothing: %v", err)
	}
}

// TestPaths asks for everything once and looks at what was asked for.
func TestPaths(t *testing.T) {
	var asked string
	a := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked = r.Method + " " + r.URL.String()
		io.WriteString(w, "{}")
	})
	ctx, d := t.Context(), wire.Digest{1}
	rows := []struct {
		want string
		err  func() error
	}{
		{"POST /v1/challenge", func() error { _, err := a.Challenge(ctx); return err }},
		{"POST /v1/certificates", func() error { _, err := a.Certify(ctx, CertificateRequest{Evidence: []byte("{}")}); return err }},
		{"GET /v1/trust?nonce=" + strings.Repeat("00", 32) + "&task=a", func() error { _, err := a.Trust(ctx, TrustQuery{Task: "a", Nonce: make([]byte, 32)}); return err }},
		{"GET /v1/trust?id=sha256%3A" + d.Hex(), func() error { _, err := a.Trust(ctx, TrustQuery{ID: d}); return err }},
		{"POST /v1/leave", func() error { _, err := a.ReleasePlace(ctx, LeaveRequest{}); return err }},
		{"GET /readyz", func() error { _, err := a.Ready(ctx); return err }},
		{"GET /v1/policy", func() error { _, err := a.Policy(ctx); return err }},
		{"GET /v1/policy/history?from=7", func() error { _, err := a.History(ctx, 7); return err }},
		{"GET /v1/policy/proposals", func() error { _, err := a.Proposals(ctx); return err }},
		{"GET /v1/policy/proposals/" + d.Hex(), func() error { _, err := a.Proposal(ctx, d); return err }},
		{"POST /v1/policy/proposals", func() error { _, err := a.Propose(ctx, ProposeRequest{}); return err }},
		{"POST /v1/policy/proposals/" + d.Hex() + "/signatures", func() error { _, err := a.AddSignature(ctx, d, SignatureRequest{}); return err }},
		{"POST /v1/policy/proposals/" + d.Hex() + "/cancel", func() error { _, err := a.Cancel(ctx, d, CancelRequest{}); return err }},
		{"GET /v1/log?before=3&limit=2&unit=u", func() error { _, err := a.IssuanceLog(ctx, LogQuery{Before: 3, Limit: 2, Unit: "u"}); return err }},
	}
	for _, row := range rows {
		if err := row.err(); err != nil || asked != row.want {
			t.Errorf("got %q, %v, want %q", asked, err, row.want)
		}
	}
}

func ExampleProblemOf() {
	p := ProblemOf(wire.Refuse(wire.NonceUsed, "issuance: nonce", "a challenge that was used before", "a fresh one"))
	fmt.Println(p.Status, p.Type)
	// Output: 409 urn:cohort:problem:nonce-used
}

// TestOpenAPI holds the description against the code: paths and reasons.
func TestOpenAPI(t *testing.T) {
	b, err := os.ReadFile("../../docs/api/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for _, path := range []string{
		PathChallenge, PathCertificates, PathLeave, PathTrust, PathPolicy, PathHistory, PathBackup, PathBackupKept, PathLog, PathLive, PathReady, PathMetrics,
		PathProposals, PathProposals + "/{digest}", PathProposals + "/{digest}/signatures", PathProposals + "/{digest}/cancel",
		PathGroups + "/{group}", PathGroups + "/{group}/approvals",
	} {
		if !strings.Contains(text, "\n  "+path+":\n") {
			t.Errorf("openapi.yaml has no path %s", path)
		}
	}
	_, list, _ := strings.Cut(text, "    Reason:\n      enum:\n")
	described := strings.Fields(strings.ReplaceAll(list, "- ", ""))
	sent := 0
	for reason, status := range statuses {
		if status.authority == 0 {
			continue
		}
		if sent++; !slices.Contains(described, string(reason)) {
			t.Errorf("openapi.yaml has no reason %s", reason)
		}
	}
	if len(described) != sent {
		t.Errorf("got %d reasons in openapi.yaml, want %d", len(described), sent)
	}
}
