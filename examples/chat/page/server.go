package main

import (
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"regexp"
)

//go:embed static
var embedded embed.FS

// settings are what the page proposes to its user, who may change them.
type settings struct {
	Gateway string `json:"gateway"`
	Genesis string `json:"genesis"`
	Task    string `json:"task"`
}

var genesisForm = regexp.MustCompile(`^([0-9a-f]{64})?$`)

// validate refuses a gateway that is no URL of a host, and a genesis that is no digest.
func (s settings) validate() error {
	u, err := url.Parse(s.Gateway)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "" {
		return fmt.Errorf("--gateway: got %q, want https://HOST or, on this machine, http://HOST", s.Gateway)
	}
	if !genesisForm.MatchString(s.Genesis) {
		return fmt.Errorf("--genesis: got %q, want 64 hexadecimal digits", s.Genesis)
	}
	return nil
}

// policy is the page's Content-Security-Policy: its own files, and requests to the gateway.
func (s settings) policy() string {
	u, err := url.Parse(s.Gateway)
	if err != nil {
		panic("page: settings that were not validated")
	}
	return "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self' " + u.Scheme + "://" + u.Host +
		"; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
}

// handler serves the files and the settings.
func handler(s settings) (http.Handler, error) {
	if err := s.validate(); err != nil {
		return nil, err
	}
	static, err := fs.Sub(embedded, "static")
	if err != nil {
		return nil, err
	}
	proposed, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /", http.FileServerFS(static))
	mux.HandleFunc("GET /settings.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		// An error means that the browser has disconnected.
		_, _ = w.Write(proposed)
	})
	csp := s.policy()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", csp)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Permissions-Policy", "camera=(), microphone=(), geolocation=()")
		h.Set("Cache-Control", "no-cache")
		mux.ServeHTTP(w, r)
	}), nil
}
