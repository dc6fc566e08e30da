package main

import (
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
)

var good = settings{Gateway: "https://gateway.clinic.example:8443", Genesis: strings.Repeat("0a", 32), Task: "chat"}

// TestSettings: what cannot be right is refused at the start.
func TestSettings(t *testing.T) {
	if err := good.validate(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*settings){
		"no gateway":                  func(s *settings) { s.Gateway = "" },
		"a gateway of another scheme": func(s *settings) { s.Gateway = "ftp://a" },
		"a gateway with a path":       func(s *settings) { s.Gateway = "https://a/b" },
		"a gateway with a query":      func(s *settings) { s.Gateway = "https://a?b" },
		"a genesis too short":         func(s *settings) { s.Genesis = "0a" },
		"a genesis in capitals":       func(s *settings) { s.Genesis = strings.Repeat("0A", 32) },
	} {
		s := good
		change(&s)
		if _, err := handler(s); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestPolicyOfThePage: every response has the page's Content-Security-Policy, which lets it reach
// its gateway and no other host, and no file of the page needs more than it allows.
func TestPolicyOfThePage(t *testing.T) {
	h, err := handler(good)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/", "/app.js", "/style.css", "/icon.svg", "/settings.json", "/nosuch"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		csp := w.Header().Get("Content-Security-Policy")
		if !strings.Contains(csp, "connect-src 'self' https://gateway.clinic.example:8443;") || !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s: got policy %q", path, csp)
		}
		if got, want := w.Code, http.StatusOK; got != want && path != "/nosuch" {
			t.Errorf("%s: got %d, want %d", path, got, want)
		}
	}
	inline := regexp.MustCompile(`(?i)<script[^>]*>[^<]|<style|\sstyle=|\son[a-z]+=|https?://`)
	html, err := fs.ReadFile(embedded, "static/index.html")
	if err != nil {
		t.Fatal(err)
	}
	if found := inline.FindString(string(html)); found != "" {
		t.Errorf("index.html contains %q, which the policy does not allow", found)
	}
}

// TestMethods: the page is read and nothing else.
func TestMethods(t *testing.T) {
	h, err := handler(good)
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("POST", "/settings.json", nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("got %d, want 405", w.Code)
	}
	w = httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/settings.json", nil))
	if body, _ := io.ReadAll(w.Body); !strings.Contains(string(body), good.Genesis) {
		t.Errorf("got %q, want the genesis", body)
	}
}
