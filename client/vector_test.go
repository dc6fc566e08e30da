package client_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"flag"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

var update = flag.Bool("update", false, "write testdata/vectors anew")

// trustVector is testdata/vectors/trust.json: everything that a client fetches before it trusts a
// task, what it concludes, and changes for which it refuses.
type trustVector struct {
	Description string         `json:"description"`
	Input       map[string]any `json:"input"`
	Accepted    trustAccepted  `json:"accepted"`
	// AlsoAccepted are changes of the input that are accepted with the same conclusions.
	AlsoAccepted []trustRefused `json:"also_accepted,omitempty"`
	Refused      []trustRefused `json:"refused"`
}

// trustInput is what a client has and fetches.
type trustInput struct {
	At          time.Time         `json:"at"` // the client's time
	Genesis     attest.Digest     `json:"genesis"`
	Task        string            `json:"task"`
	MinSequence uint64            `json:"min_sequence"`
	Nonce       string            `json:"nonce"`           // of the client, hexadecimal; empty if it sent none
	Pages       []api.History     `json:"pages"`           // of the history, in the order of the requests
	Chain       [][]byte          `json:"chain,omitempty"` // of the TLS server: leaf, authority root; none of a gateway
	ChainKey    []byte            `json:"chain_key,omitempty"`
	Trust       api.TrustResponse `json:"trust"`
}

type trustAccepted struct {
	Sequence   uint64                   `json:"sequence"`
	PolicyHead attest.Digest            `json:"policy_head"`
	Root       attest.Digest            `json:"authority_root"`
	Identities map[string]attest.Digest `json:"identities"` // by release
}

// trustRefused is a change of the input. Paths are JSON Pointers (RFC 6901).
type trustRefused struct {
	Name   string           `json:"name"`
	Set    []map[string]any `json:"set"` // path and value; a missing value removes the member
	Reason wire.Reason      `json:"reason,omitempty"`
}

// addChange adds a change of pairs of path and value.
func addChange(list *[]trustRefused, name string, reason wire.Reason, pairs ...any) {
	c := trustRefused{Name: name, Reason: reason}
	for i := 0; i < len(pairs); i += 2 {
		set := map[string]any{"path": pairs[i]}
		if pairs[i+1] != nil {
			set["value"] = pairs[i+1]
		}
		c.Set = append(c.Set, set)
	}
	*list = append(*list, c)
}

// TestTrustVector: the recorded responses are accepted with the recorded conclusions, and each
// change is refused with its reason.
func TestTrustVector(t *testing.T) { runTrustVector(t, "trust.json", newTrustVector) }

// TestTrustStatementVector is the same for responses that a gateway passed on.
func TestTrustStatementVector(t *testing.T) {
	runTrustVector(t, "trust-statement.json", newTrustStatementVector)
}

func runTrustVector(t *testing.T, name string, record func(*testing.T) trustVector) {
	path := filepath.Join("testdata", "vectors", name)
	if *update {
		text := testworld.Must(json.MarshalIndent(record(t), "", "  "))
		if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var v trustVector
	if err := json.Unmarshal(testworld.Must(os.ReadFile(path)), &v); err != nil {
		t.Fatal(err)
	}
	for _, c := range append([]trustRefused{{Name: "as recorded"}}, v.AlsoAccepted...) {
		t.Run(c.Name, func(t *testing.T) {
			trust, err := judgeTrust(t, c.apply(t, v.Input))
			if err != nil {
				t.Fatal(err)
			}
			if got, want := conclusions(trust), v.Accepted; string(testworld.Must(json.Marshal(got))) != string(testworld.Must(json.Marshal(want))) {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
	for _, c := range v.Refused {
		t.Run(c.Name, func(t *testing.T) {
			if _, err := judgeTrust(t, c.apply(t, v.Input)); wire.ReasonOf(err) != c.Reason {
				t.Errorf("got %v, want reason %q", err, c.Reason)
			}
		})
	}
}

// apply returns a changed copy of an input.
func (c trustRefused) apply(t *testing.T, in map[string]any) (changed map[string]any) {
	t.Helper()
	testworld.Must(0, json.Unmarshal(testworld.Must(json.Marshal(in)), &changed))
	for _, set := range c.Set {
		setPointer(t, changed, set["path"].(string), set["value"])
	}
	return changed
}

func conclusions(trust *client.Trust) trustAccepted {
	a := trustAccepted{
		Sequence: trust.Policy().Document().Sequence, PolicyHead: trust.Policy().PolicyHead(),
		Root: wire.Sum(trust.AuthorityRoot().RawSubjectPublicKeyInfo), Identities: map[string]attest.Digest{},
	}
	for _, i := range trust.Identities() {
		a.Identities[i.Release] = i.ID
	}
	return a
}

// setPointer sets or removes the value that a JSON Pointer names.
func setPointer(t *testing.T, in any, path string, value any) {
	t.Helper()
	steps := strings.Split(strings.TrimPrefix(path, "/"), "/")
	for i, step := range steps {
		last := i == len(steps)-1
		switch at := in.(type) {
		case map[string]any:
			if last && value == nil {
				delete(at, step)
			} else if last {
				at[step] = value
			}
			in = at[step]
		case []any:
			n := int(step[0] - '0')
			if last {
				at[n] = value
			}
			in = at[n]
		default:
			t.Fatalf("%s names nothing", path)
		}
	}
}

// judgeTrust serves an input as an authority would and fetches trust from it.
func judgeTrust(t *testing.T, raw map[string]any) (*client.Trust, error) {
	t.Helper()
	var in trustInput
	if err := json.Unmarshal(testworld.Must(json.Marshal(raw)), &in); err != nil {
		t.Fatal(err)
	}
	config := client.TrustConfig{
		Genesis: in.Genesis, Task: in.Task, MinSequence: in.MinSequence, Verifier: attesttest.Verifier(), Clock: func() time.Time { return in.At },
	}
	pages, mux := in.Pages, http.NewServeMux()
	servePage := func(w http.ResponseWriter, _ *http.Request) {
		if len(pages) == 0 {
			http.Error(w, "no further page", http.StatusServiceUnavailable)
			return
		}
		writeJSON(w, pages[0])
		pages = pages[1:]
	}
	serveTrust := func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, in.Trust) }
	for _, path := range []string{api.PathHistory, wire.PathHistory} {
		mux.HandleFunc("GET "+path, servePage)
	}
	for _, path := range []string{api.PathTrust, wire.PathTrust} {
		mux.HandleFunc("GET "+path, serveTrust)
	}
	if len(in.Chain) == 0 {
		server := httptest.NewServer(mux)
		defer server.Close()
		config.Gateways = []string{server.URL}
	} else {
		key := testworld.Must(x509.ParsePKCS8PrivateKey(in.ChainKey))
		l := testworld.Must(net.Listen("tcp", "127.0.0.1:0"))
		server := &http.Server{Handler: mux, ErrorLog: quiet, TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: in.Chain, PrivateKey: key}},
		}}
		go server.ServeTLS(l, "", "")
		defer server.Close()
		config.Authorities = []string{"https://" + l.Addr().String()}
	}
	return client.FetchTrustFor(t.Context(), config, testworld.Must(hex.DecodeString(in.Nonce)))
}

// newTrustVector records the responses of an authority with three policies.
func newTrustVector(t *testing.T) trustVector {
	t.Helper()
	w := newWorld(t, "1")
	w.adopt("1", "2")
	w.adopt("2", "3")
	nonce := wire.Sum([]byte("nonce"))
	get := func(path string) (body []byte) {
		c := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
		response := testworld.Must(c.Get(w.url + path))
		defer response.Body.Close()
		return testworld.Must(io.ReadAll(response.Body))
	}
	var whole api.History
	testworld.Must(0, json.Unmarshal(get(api.PathHistory+"?from=0"), &whole))
	first := api.History{From: 0, Entries: whole.Entries[:2], Head: whole.Head}
	second := api.History{From: 2, Entries: whole.Entries[2:], Head: whole.Head, ProvedHead: whole.ProvedHead}
	var trust api.TrustResponse
	testworld.Must(0, json.Unmarshal(get(api.PathTrust+"?task=scoring&nonce="+hex.EncodeToString(nonce[:])), &trust))
	certificate := testworld.Must(w.certificate())
	in := trustInput{
		At: time.Now().UTC().Truncate(time.Second), Genesis: w.Genesis(), Task: "scoring", Nonce: hex.EncodeToString(nonce[:]),
		Pages: []api.History{first, second}, Chain: certificate.Certificate, ChainKey: testworld.Must(x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)), Trust: trust,
	}
	v := trustVector{
		Description: "what a client of task scoring fetches from an authority on the soft platform, with what it concludes; each change of the input is refused with the reason. chain_key lets a test serve the chain",
		Refused:     trustRefusals(t, w, in, nonce),
	}
	testworld.Must(0, json.Unmarshal(testworld.Must(json.Marshal(in)), &v.Input))
	v.Accepted = conclusions(testworld.Must(judgeTrust(t, v.Input)))
	return v
}

// trustRefusals are changes of an input.
func trustRefusals(t *testing.T, w *world, in trustInput, nonce attest.Digest) (list []trustRefused) {
	t.Helper()
	add := func(name string, reason wire.Reason, pairs ...any) { addChange(&list, name, reason, pairs...) }
	flipped := func(b []byte, at int) string {
		b = append([]byte(nil), b...)
		b[at] ^= 1
		return base64.StdEncoding.EncodeToString(b)
	}
	other := newWorld(t, "2", "3")
	foreign := testworld.Must(other.certificate())
	steps, last := in.Pages[0].Entries, in.Pages[1].Entries
	root, head := w.keys.RootDigest(), in.Trust.History.Head
	attestBy := func(device *attesttest.Device, fields ...[]byte) any {
		var wrapper any
		evidence := testworld.Must(device.Attest(t.Context(), attest.BindReportData(wire.LabelTrust, fields...)))
		testworld.Must(0, json.Unmarshal(testworld.Must(json.Marshal(evidence)), &wrapper))
		return wrapper
	}

	add("another genesis", wire.WrongGenesis, "/genesis", other.Genesis())
	add("a page that begins elsewhere", wire.Malformed, "/pages/1/from", 1)
	add("one byte of a policy", wire.BadSignature, "/pages/0/entries/1/policy", flipped(steps[1].Policy, 40))
	add("no signature", wire.NoQuorum, "/pages/0/entries/1/signatures", []string{})
	add("more signatures than owners", wire.TooLarge, "/pages/0/entries/1/signatures", []string{steps[1].Signatures[0], steps[1].Signatures[0]})
	add("the signature of another step", wire.BadSignature, "/pages/0/entries/1/signatures", steps[0].Signatures)
	add("a step left out", wire.WrongSequence, "/pages/0/entries/1", last[0], "/pages/1/entries", []any{}, "/pages/1/from", 2)
	add("the last page missing", wire.Unavailable, "/pages", []any{in.Pages[0]})
	add("an empty page in place of the last", wire.Behind, "/pages/1/entries", []any{})
	add("a head without its proof", wire.Behind, "/pages/1/proved_head", nil)
	add("a proof that was changed", wire.BadSignature, "/pages/1/proved_head", flipped(in.Pages[1].ProvedHead, len(in.Pages[1].ProvedHead)-1))
	add("the chain of another authority", wire.WrongRoot, "/chain", foreign.Certificate, "/chain_key", testworld.Must(x509.MarshalPKCS8PrivateKey(foreign.PrivateKey)))
	add("a chain without the root", wire.WrongRoot, "/chain", in.Chain[:1])
	add("two hours later", wire.ClockSkew, "/at", in.At.Add(2*time.Hour))
	add("a task that policy does not have", wire.NotFound, "/task", "nosuch")
	add("a policy older than the user accepts", wire.Behind, "/min_sequence", 4)
	add("a trust response of another head", wire.Behind, "/trust/history/head", attest.Digest{1})
	add("another authority root", wire.WrongRoot, "/trust/authority", other.issuer.AuthorityRoot())
	add("evidence for another nonce", wire.BadNonce, "/nonce", strings.Repeat("07", 32))
	add("evidence for another head", wire.BadNonce, "/trust/evidence", attestBy(w.device, nonce[:], root[:], make([]byte, 32)))
	add("evidence for another root", wire.BadNonce, "/trust/evidence", attestBy(w.device, nonce[:], make([]byte, 32), head[:]))
	add("evidence of another program", wire.NotMeasured, "/trust/evidence", attestBy(w.Device("scoring 2"), nonce[:], root[:], head[:]))
	add("no identity", wire.WrongIdentity, "/trust/identities", []any{})
	add("a release left out", wire.WrongIdentity, "/trust/identities", in.Trust.Identities[:1])
	add("another release's identity root", wire.WrongIdentity, "/trust/identities/0/root", in.Trust.Identities[1].Root)
	add("a cross-certificate of another authority", wire.WrongGenesis, "/trust/identities/0/cross", testworld.Must(other.issuer.Identity("scoring", "2")).Cross)
	return list
}
