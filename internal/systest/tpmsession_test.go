package systest

import (
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/wire"
)

// testTPMSession opens sessions with fresh evidence of a unit on a TPM. A client accepts
// that evidence only if it has challenged the TPM.
func testTPMSession(t *testing.T, trust *client.Trust, unit string) {
	rows := []struct {
		name         string
		request      func(*http.Request)
		introduction func([]byte) []byte
		want         wire.Reason // empty: a session opens
	}{
		{"as it is", nil, nil, ""},
		{"without the introduction", nil, func([]byte) []byte { return nil }, wire.WrongChip},
		{"without the credential", func(r *http.Request) { r.Header.Del(wire.FieldCredential) }, nil, wire.WrongChip},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			ch, err := client.Open(t.Context(), client.OpenConfig{Trust: trust, Gateway: between(t, unit, r.request, r.introduction), FreshEvidence: true})
			if r.want != "" {
				if wire.ReasonOf(err) != r.want {
					t.Errorf("got %v, want %q", err, r.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer ch.Close(t.Context())
			s, err := ch.Session(t.Context())
			if err != nil || !s.Evidence.Appraised() || s.Evidence.Measurement().Platform != attest.TPM {
				t.Errorf("got evidence of %v, %v, want a TPM's", s.Evidence.Measurement(), err)
			}
		})
	}
}

// between is a gateway in front of one unit that changes requests and the unit's
// introductions.
func between(t *testing.T, unit string, request func(*http.Request), introduction func([]byte) []byte) string {
	t.Helper()
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "https", Host: unit})
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}}
	proxy.Transport = transport
	proxy.ModifyResponse = func(answer *http.Response) error {
		if introduction == nil || answer.StatusCode != http.StatusPreconditionRequired {
			return nil
		}
		var p map[string]any
		if err := json.NewDecoder(answer.Body).Decode(&p); err != nil {
			return err
		}
		var before []byte
		text, _ := json.Marshal(p["introduction"])
		if err := json.Unmarshal(text, &before); err != nil {
			return err
		}
		if p["introduction"] = introduction(before); p["introduction"] == nil {
			delete(p, "introduction")
		}
		changed, err := json.Marshal(p)
		answer.Body, answer.ContentLength = io.NopCloser(strings.NewReader(string(changed))), int64(len(changed))
		answer.Header.Del("Content-Length")
		return err
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if request != nil {
			request(r)
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(func() { server.Close(); transport.CloseIdleConnections() })
	return server.URL
}
