package authority

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/admission"
	"github.com/cohort-tee/cohort/internal/authority/history"
	"github.com/cohort-tee/cohort/internal/authority/records"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// ask sends one request to a handler and returns the response and its body.
func ask(h http.Handler, method, path, kind, body string) (*http.Response, string) {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if kind != "" {
		r.Header.Set("Content-Type", kind)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	response := w.Result()
	text, _ := io.ReadAll(response.Body)
	return response, string(text)
}

// TestBadForm: malformed requests are refused with a problem (RFC 9457).
func TestBadForm(t *testing.T) {
	w := newWorld(t)
	h := w.open().Handler()
	const post, get, plain = http.MethodPost, http.MethodGet, "application/json"
	big := `{"task":"` + strings.Repeat("x", wire.MaxRequest) + `"}`
	rows := []struct {
		name, method, path, kind, body string
		status                         int
		reason                         wire.Reason
	}{
		{"no content type", post, api.PathChallenge, "", `{}`, 400, wire.BadRequest},
		{"another content type", post, api.PathCertificates, "text/plain", `{}`, 400, wire.BadRequest},
		{"no body", post, api.PathChallenge, plain, ``, 400, wire.BadRequest},
		{"not JSON", post, api.PathCertificates, plain, `x`, 400, wire.BadRequest},
		{"an unknown field", post, api.PathChallenge, plain, `{"a":1}`, 400, wire.BadRequest},
		{"two values", post, api.PathChallenge, plain, `{}{}`, 400, wire.BadRequest},
		{"an array", post, api.PathChallenge, plain, `[]`, 400, wire.BadRequest},
		{"a long challenge", post, api.PathChallenge, plain, strings.Repeat(" ", maxChallenge) + `{}`, 413, wire.TooLarge},
		{"a long request", post, api.PathCertificates, plain, big, 413, wire.TooLarge},
		{"a long proposal", post, api.PathProposals, plain, big, 413, wire.TooLarge},
		{"a long history", post, api.PathHistory, plain, big, 413, wire.TooLarge},
		{"a broken digest", post, api.PathCertificates, plain, `{"authority_root":"x"}`, 400, wire.Malformed},
		{"an empty request", post, api.PathCertificates, plain, `{}`, 409, wire.NonceUsed},
		{"another method", get, api.PathChallenge, "", ``, 405, wire.BadRequest},
		{"a deletion", http.MethodDelete, api.PathHistory, "", ``, 405, wire.BadRequest},
		{"another path", get, "/v2/challenge", "", ``, 404, wire.NotFound},
		{"a path below", get, api.PathPolicy + "/x", "", ``, 404, wire.NotFound},
		{"a broken proposal", get, api.PathProposals + "/x", "", ``, 400, wire.Malformed},
		{"a signature for nothing", post, api.PathProposals + "/" + strings.Repeat("1", 64) + "/signatures", plain, `{"signature":""}`, 404, wire.NotFound},
		{"from before the start", get, api.PathHistory + "?from=-1", "", ``, 400, wire.BadRequest},
		{"a log of words", get, api.PathLog + "?limit=x", "", ``, 400, wire.BadRequest},
		{"trust with an empty nonce", get, api.PathTrust + "?task=scoring&nonce=", "", ``, 400, wire.BadRequest},
		{"trust with two nonces", get, api.PathTrust + "?task=scoring&nonce=" + strings.Repeat("0", 64) + "&nonce=" + strings.Repeat("1", 64), "", ``, 400, wire.BadRequest},
		{"trust in one task twice", get, api.PathTrust + "?task=scoring&task=scoring", "", ``, 400, wire.BadRequest},
		{"trust with another parameter", get, api.PathTrust + "?task=scoring&x=1", "", ``, 400, wire.BadRequest},
		{"trust with a credential alone", get, api.PathTrust + "?task=scoring&credential=00", "", ``, 400, wire.BadRequest},
		{"trust with a long credential", get, api.PathTrust + "?task=scoring&nonce=" + strings.Repeat("0", 64) + "&credential=" + strings.Repeat("00", 1025), "", ``, 400, wire.BadRequest},
		{"trust in nothing", get, api.PathTrust + "?nonce=" + strings.Repeat("0", 64), "", ``, 400, wire.BadRequest},
		{"trust in two", get, api.PathTrust + "?task=scoring&id=x&nonce=" + strings.Repeat("0", 64), "", ``, 400, wire.BadRequest},
		{"trust in an unknown task", get, api.PathTrust + "?task=x&nonce=" + strings.Repeat("0", 64), "", ``, 404, wire.NotFound},
		{"trust in an unknown identity", get, api.PathTrust + "?id=" + strings.Repeat("1", 64) + "&nonce=" + strings.Repeat("0", 64), "", ``, 404, wire.NotFound},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			response, body := ask(h, row.method, row.path, row.kind, row.body)
			var p api.Problem
			if err := json.Unmarshal([]byte(body), &p); err != nil {
				t.Fatalf("got body %q: %v", body, err)
			}
			if response.StatusCode != row.status || p.Status != row.status || p.Reason != row.reason {
				t.Errorf("got status %d, problem %+v, want %d %q", response.StatusCode, p, row.status, row.reason)
			}
			if got, want := response.Header.Get("Content-Type"), "application/problem+json"; got != want {
				t.Errorf("got content type %q, want %q", got, want)
			}
		})
	}
	if response, body := ask(h, post, api.PathChallenge, "application/json; charset=utf-8", `{}`); response.StatusCode != 200 {
		t.Errorf("a good challenge after all these: %d %s", response.StatusCode, body)
	}
}

func TestHealth(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	h := a.Handler()
	testworld.Must(w.scoring().enrol(direct{a}))
	for name, row := range map[string]struct {
		handler http.Handler
		paths   map[string]string
	}{
		"clients":  {h, map[string]string{api.PathLive: `"live"`, api.PathReady: `"ready"`, api.PathMetrics: `"not-found"`}},
		"operator": {a.OperatorHandler(), map[string]string{api.PathLive: `"live"`, api.PathReady: `"ready"`, api.PathMetrics: "cohort_authority_policy_sequence 1", api.PathPolicy: "404"}},
	} {
		for path, want := range row.paths {
			if _, body := ask(row.handler, http.MethodGet, path, "", ""); !strings.Contains(body, want) {
				t.Errorf("%s of the handler for %s: got %q, want %q", path, name, body, want)
			}
		}
	}
	w.clock.JumpWall(wire.MaxClockJump * 2)
	if response, _ := ask(h, http.MethodGet, api.PathReady, "", ""); response.StatusCode != 503 {
		t.Errorf("got ready %d after a jump of the clock, want 503", response.StatusCode)
	}
	if response, _ := ask(h, http.MethodGet, api.PathLive, "", ""); response.StatusCode != 200 {
		t.Errorf("got live %d after a jump of the clock, want 200", response.StatusCode)
	}
}

// TestTrust requests trust in a task and in its identity, and appraises the evidence as a client
// does.
func TestTrust(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	client, _ := w.serve(a)
	q := api.TrustQuery{Task: "scoring", Nonce: bytes.Repeat([]byte{1}, 32)}
	byTask := testworld.Must(client.Trust(t.Context(), q))
	if len(byTask.Identities) != 1 || byTask.Identities[0].Release != "2026.11" {
		t.Fatalf("got identities %+v, want that of release 2026.11", byTask.Identities)
	}
	q = api.TrustQuery{ID: byTask.Identities[0].ID, Nonce: q.Nonce}
	byID := testworld.Must(client.Trust(t.Context(), q))
	if !bytes.Equal(byID.Identities[0].Root, byTask.Identities[0].Root) {
		t.Error("task and identity gave two roots")
	}
	if len(byTask.History.Entries) > 0 {
		t.Errorf("got %d steps, which clients have from the history", len(byTask.History.Entries))
	}
	whole := testworld.Must(client.History(t.Context(), 0))
	approved, err := policy.Replay(a.Genesis(), []policy.Step{history.StepOf(whole.Entries[0])})
	if err != nil {
		t.Fatal(err)
	}
	appraiseTrust(t, w, byTask, approved, q.Nonce[:])
}

// TestLog: the log can be paged and filtered, and reports damaged and moved rows.
func TestLog(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	client, _ := w.serve(a)
	unit := w.scoring()
	for range 3 {
		testworld.Must(unit.enrol(client))
	}
	testworld.Must(w.applicant("keys").enrol(client))
	_, err := w.applicant("scoring").enrol(client)
	testworld.Refused(t, err, wire.NotMeasured)

	all := testworld.Must(client.IssuanceLog(t.Context(), api.LogQuery{}))
	if len(all.Entries) != 5 || all.Entries[0].Reason != wire.NotMeasured || all.Next != 0 {
		t.Errorf("got %d entries, newest %+v, next %d, want 5, the refusal, 0", len(all.Entries), all.Entries[0], all.Next)
	}
	if got := all.Entries[4]; got.Kind != records.KindIssued || got.Task != "scoring" || got.Platform != "soft" || got.Serial == "" || got.Head.IsZero() {
		t.Errorf("got %+v, want the first issuance whole", got)
	}
	page := testworld.Must(client.IssuanceLog(t.Context(), api.LogQuery{Limit: 2}))
	rest := testworld.Must(client.IssuanceLog(t.Context(), api.LogQuery{Before: page.Next}))
	if len(page.Entries) != 2 || len(rest.Entries) != 3 {
		t.Errorf("got pages of %d and %d, want 2 and 3", len(page.Entries), len(rest.Entries))
	}
	if got := testworld.Must(client.IssuanceLog(t.Context(), api.LogQuery{Task: "keys"})); len(got.Entries) != 1 {
		t.Errorf("got %d entries of task keys, want 1", len(got.Entries))
	}
	if got := testworld.Must(client.IssuanceLog(t.Context(), api.LogQuery{Unit: rest.Entries[0].Unit})); len(got.Entries) != 3 {
		t.Errorf("got %d entries of one unit, want 3", len(got.Entries))
	}
	exec(t, w.dsn, `UPDATE log SET task = 'keys' WHERE sequence = 1`)
	moved := testworld.Must(client.IssuanceLog(t.Context(), api.LogQuery{Task: "keys"}))
	if len(moved.Entries) != 1 || len(moved.Damaged) != 1 || moved.Damaged[0] != 1 {
		t.Errorf("got %d entries, damaged %v, want 1 and the row that was moved named", len(moved.Entries), moved.Damaged)
	}
	exec(t, w.dsn, `UPDATE log SET mac = zeroblob(32) WHERE sequence = 2`)
	if all := testworld.Must(client.IssuanceLog(t.Context(), api.LogQuery{})); len(all.Entries) != 4 || len(all.Damaged) != 1 || all.Damaged[0] != 2 {
		t.Errorf("got %d entries, damaged %v, want 4 and the changed row named", len(all.Entries), all.Damaged)
	}
}

// TestRates: requests above the rate of one address get status 429 with Retry-After.
func TestRates(t *testing.T) {
	w := newWorld(t)
	c := w.config("authority")
	c.Limits = admission.Limits{PerAddress: 1, Total: 1}
	h := testworld.Must(Open(t.Context(), c)).Handler()
	var last *http.Response
	for range 3 {
		last, _ = ask(h, http.MethodGet, api.PathPolicy, "", "")
	}
	if last.StatusCode != http.StatusTooManyRequests || last.Header.Get("Retry-After") == "" {
		t.Errorf("got %d, want 429 with Retry-After", last.StatusCode)
	}
}

// TestSecrets: neither the log nor the response of any resource contains the root secret or the
// shared key.
func TestSecrets(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	client, _ := w.serve(a)
	report := testworld.Must(w.scoring().enrol(client))
	seen := w.log.String()
	for _, path := range []string{api.PathLog, api.PathPolicy, api.PathHistory, api.PathTrust + "?task=scoring&nonce=" + strings.Repeat("0", 64)} {
		_, body := ask(a.Handler(), http.MethodGet, path, "", "")
		seen += body
	}
	_, metrics := ask(a.OperatorHandler(), http.MethodGet, api.PathMetrics, "", "")
	seen += metrics
	for name, secret := range map[string][]byte{"root secret": a.root.Secret.Expose(), "leaf key": report.LeafKey} {
		for form, text := range map[string]string{"raw": string(secret), "base64": must2(json.Marshal(secret)), "hex": wire.Digest(secret[:32]).Hex()} {
			if strings.Contains(seen, strings.Trim(text, `"`)) {
				t.Errorf("found the %s, %s", name, form)
			}
		}
	}
}

func must2(b []byte, err error) string { return string(testworld.Must(b, err)) }

// TestTLS: the listener refuses TLS 1.2, accepts clients without a certificate, and presents leaf
// and root.
func TestTLS(t *testing.T) {
	w := newWorld(t)
	_, address := w.serve(w.open())
	host := strings.TrimPrefix(address, "https://")
	if _, err := tls.Dial("tcp", host, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}); err == nil {
		t.Error("TLS 1.2 was accepted")
	}
	c, err := tls.Dial("tcp", host, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || response.StatusCode != 200 {
		t.Errorf("got %v, %v, want 200", response, err)
	}
	if n := len(c.ConnectionState().PeerCertificates); n != 2 {
		t.Errorf("got %d certificates, want leaf and root", n)
	}
}

// FuzzCertificates sends fuzzed bodies to the certificates resource. Only the one good request is
// issued for, and no body causes a fault of the authority.
func FuzzCertificates(f *testing.F) {
	w := newWorld(f)
	a := w.open()
	h := a.Handler()
	request := w.scoring().request(testworld.Must(a.challenge(api.ChallengeRequest{})).Nonce, nil)
	good := testworld.Must(json.Marshal(request))
	f.Add(good[:len(good)-1])
	f.Add([]byte(`{"task":"scoring","evidence":["application/vnd.cohort.soft-evidence","AA"]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		response, text := ask(h, http.MethodPost, api.PathCertificates, "application/json", string(body))
		var r api.CertificateRequest
		if response.StatusCode == http.StatusOK && (api.Decode(body, &r) != nil || !slices.EqualFunc(r.Bound(), request.Bound(), bytes.Equal)) {
			t.Errorf("issued for %q", body)
		}
		if response.StatusCode == http.StatusInternalServerError {
			t.Errorf("got %s for %q", text, body)
		}
	})
}

// TestLogOfNobody: a log filter that is not valid text is refused; one without matches is not.
func TestLogOfNobody(t *testing.T) {
	a := newWorld(t).open()
	for _, text := range []string{"a\x00b", "\xff"} {
		_, err := a.logPage(t.Context(), url.Values{"task": {text}})
		testworld.Refused(t, err, wire.BadRequest)
	}
	if _, err := a.logPage(t.Context(), url.Values{"unit": {"nobody"}}); err != nil {
		t.Error(err)
	}
}
