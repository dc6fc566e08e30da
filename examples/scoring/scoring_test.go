package main

import (
	"bytes"
	"context"
	"encoding/json"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/loopback"
)

const good = `{"applicants":[{"id":"a-1","features":{"income":48,"debt_ratio":0.31,"utilisation":0.38,"late_payments":0.7,"history":96,"inquiries":1.1}}]}`

func testModel(t *testing.T) *model {
	t.Helper()
	m, err := parseModel(embedded)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestScoreOfTheAverageApplicantIsTheIntercept(t *testing.T) {
	m := testModel(t)
	features := map[string]float64{}
	for _, f := range m.Features {
		features[f.Name] = f.Mean
	}
	got := m.score(applicant{ID: "mean", Features: features})
	want := 1 / (1 + math.Exp(-m.Intercept))
	if math.Abs(got.Probability-want) > 1e-12 || got.Decision != "accept" || len(got.Reasons) != 0 {
		t.Errorf("got %+v, want probability %v, accept, no reasons", got, want)
	}
}

func TestScoreGrowsWithRisk(t *testing.T) {
	m := testModel(t)
	for _, f := range m.Features {
		features := map[string]float64{}
		for _, g := range m.Features {
			features[g.Name] = g.Mean
		}
		before := m.score(applicant{ID: "a", Features: features}).Probability
		features[f.Name] = f.Mean + math.Copysign(f.Scale, f.Weight)
		after := m.score(applicant{ID: "a", Features: features})
		if after.Probability <= before || len(after.Reasons) != 1 || after.Reasons[0] != f.Reason {
			t.Errorf("%s: got %+v after %v, want more risk and its reason", f.Name, after, before)
		}
	}
}

func TestRequests(t *testing.T) {
	srv := httptest.NewServer(handler(testModel(t)))
	defer srv.Close()
	tests := []struct {
		name, method, path, kind, body string
		status                         int
		want                           string
	}{
		{"describe", "GET", "/", "", "", 200, `"model":"credit-default"`},
		{"health", "GET", "/healthz", "", "", 200, "ok"},
		{"score", "POST", "/score", "application/json", good, 200, `"decision":"accept"`},
		{"charset", "POST", "/score", "application/json; charset=utf-8", good, 200, `"id":"a-1"`},
		{"no such path", "GET", "/other", "", "", 404, ""},
		{"wrong method", "GET", "/score", "", "", 405, ""},
		{"wrong type", "POST", "/score", "text/plain", good, 415, "application/json"},
		{"not json", "POST", "/score", "application/json", "{", 400, "reading body"},
		{"trailing", "POST", "/score", "application/json", good + "{}", 400, "follows"},
		{"unknown field", "POST", "/score", "application/json", strings.Replace(good, `"id"`, `"idd"`, 1), 400, "idd"},
		{"none", "POST", "/score", "application/json", `{"applicants":[]}`, 422, "got 0"},
		{"no id", "POST", "/score", "application/json", strings.Replace(good, "a-1", "", 1), 422, "id"},
		{"out of range", "POST", "/score", "application/json", strings.Replace(good, ":96", ":-1", 1), 422, "history"},
		{"missing", "POST", "/score", "application/json", strings.Replace(good, `"history":96,`, "", 1), 422, "missing"},
		{"extra", "POST", "/score", "application/json", strings.Replace(good, `"history"`, `"more":1,"history"`, 1), 422, "7 features"},
		{"too large", "POST", "/score", "application/json", good + strings.Repeat(" ", maxBody), 413, "at most"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, _ := http.NewRequestWithContext(t.Context(), tt.method, srv.URL+tt.path, strings.NewReader(tt.body))
			r.Header.Set("Content-Type", tt.kind)
			resp, err := srv.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			var body bytes.Buffer
			if _, err := body.ReadFrom(resp.Body); err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != tt.status || !strings.Contains(body.String(), tt.want) {
				t.Errorf("got %d %s, want %d with %q", resp.StatusCode, body.String(), tt.status, tt.want)
			}
		})
	}
}

func TestParseModelRefuses(t *testing.T) {
	tests := []struct{ name, from, to string }{
		{"unknown field", `"intercept"`, `"intercpt"`},
		{"no version", `"2026.11"`, `""`},
		{"zero scale", `"scale": 22`, `"scale": 0`},
		{"empty range", `"max": 10000`, `"max": 0`},
		{"feature twice", `"debt_ratio"`, `"income"`},
	}
	for _, tt := range tests {
		file := strings.Replace(string(embedded), tt.from, tt.to, 1)
		if _, err := parseModel([]byte(file)); err == nil {
			t.Errorf("%s: got a model, want an error", tt.name)
		}
	}
}

func TestRunServesUntilToldToStop(t *testing.T) {
	_, port, _ := net.SplitHostPort(loopback.FreeAddress(t))
	path := filepath.Join(t.TempDir(), "model.json")
	if err := os.WriteFile(path, embedded, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- run(ctx, path, port) }()
	var body struct{ Digest string }
	for body.Digest == "" {
		resp, err := http.Get("http://127.0.0.1:" + port + "/")
		if err != nil {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("got %v, want a clean end", err)
	}
	if want := "sha256:" + testModel(t).digest; body.Digest != want {
		t.Errorf("got digest %s, want %s", body.Digest, want)
	}
}

func FuzzReadApplicants(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte(`{"applicants":[{"id":"","features":null}]}`))
	m, err := parseModel(embedded)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		r := httptest.NewRequest("POST", "/score", bytes.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		handler(m).ServeHTTP(w, r)
		if w.Code == http.StatusOK && strings.Contains(w.Body.String(), "NaN") {
			t.Errorf("a score that is not a number: %s", w.Body)
		}
	})
}
