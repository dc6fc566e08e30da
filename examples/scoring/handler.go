package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
)

// Limits of one request.
const (
	maxBody       = 1 << 20
	maxApplicants = 1000
)

// handler serves one model. It keeps no state.
func handler(m *model) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { describe(w, m) })
	mux.HandleFunc("POST /score", func(w http.ResponseWriter, r *http.Request) { serveScore(w, r, m) })
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	return mux
}

// describe says what the model is and what it wants to know.
func describe(w http.ResponseWriter, m *model) {
	type input struct {
		Name string  `json:"name"`
		Unit string  `json:"unit"`
		Min  float64 `json:"min"`
		Max  float64 `json:"max"`
	}
	inputs := make([]input, 0, len(m.Features))
	for _, f := range m.Features {
		inputs = append(inputs, input{f.Name, f.Unit, f.Min, f.Max})
	}
	answer(w, http.StatusOK, map[string]any{
		"service": "scoring", "model": m.Name, "version": m.Version,
		"digest": "sha256:" + m.digest, "features": inputs,
	})
}

// serveScore scores the applicants of one request, all or none.
func serveScore(w http.ResponseWriter, r *http.Request, m *model) {
	applicants, status, err := readApplicants(w, r)
	if err == nil {
		for _, a := range applicants {
			if err = m.check(a); err != nil {
				status = http.StatusUnprocessableEntity
				break
			}
		}
	}
	if err != nil {
		answer(w, status, map[string]string{"error": err.Error()})
		return
	}
	scores := make([]score, 0, len(applicants))
	for _, a := range applicants {
		scores = append(scores, m.score(a))
	}
	answer(w, http.StatusOK, map[string]any{"model": m.Name, "version": m.Version, "scores": scores})
}

// readApplicants reads a bounded, strict body. With an error it gives the
// status to answer.
func readApplicants(w http.ResponseWriter, r *http.Request) ([]applicant, int, error) {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return nil, http.StatusUnsupportedMediaType, errors.New("want Content-Type: application/json")
	}
	var body struct {
		Applicants []applicant `json:"applicants"`
	}
	err := strictJSON(http.MaxBytesReader(w, r.Body, maxBody), &body)
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, http.StatusRequestEntityTooLarge, fmt.Errorf("body: want at most %d bytes", maxBody)
	case err != nil:
		return nil, http.StatusBadRequest, fmt.Errorf("reading body: %w", err)
	case len(body.Applicants) == 0 || len(body.Applicants) > maxApplicants:
		return nil, http.StatusUnprocessableEntity, fmt.Errorf("applicants: got %d, want 1 to %d", len(body.Applicants), maxApplicants)
	}
	return body.Applicants, 0, nil
}

// answer writes JSON. A client that has gone is nobody to tell.
func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}
