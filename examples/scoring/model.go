package main

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
)

//go:embed model.json
var embedded []byte

// reasonsGiven is how many reasons a score carries at most.
const reasonsGiven = 3

// model is a logistic regression over standardised features.
type model struct {
	Name      string    `json:"name"`
	Version   string    `json:"version"`
	Intercept float64   `json:"intercept"`
	Threshold float64   `json:"threshold"` // at or above it an applicant is referred
	Features  []feature `json:"features"`
	digest    string    // SHA-256 of the file, hexadecimal
}

// feature is one number of an applicant: its range, how it is standardised and
// what it weighs.
type feature struct {
	Name   string  `json:"name"`
	Unit   string  `json:"unit"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	Mean   float64 `json:"mean"`
	Scale  float64 `json:"scale"`
	Weight float64 `json:"weight"`
	Reason string  `json:"reason"`
}

// applicant is what is asked for.
type applicant struct {
	ID       string             `json:"id"`
	Features map[string]float64 `json:"features"`
}

// score is the answer for one applicant.
type score struct {
	ID          string   `json:"id"`
	Probability float64  `json:"probability"` // of default within a year
	Decision    string   `json:"decision"`    // "accept" or "refer"
	Reasons     []string `json:"reasons"`     // what raised the risk most, first first
}

// parseModel reads a model file strictly.
func parseModel(b []byte) (*model, error) {
	m := &model{}
	if err := strictJSON(bytes.NewReader(b), m); err != nil {
		return nil, fmt.Errorf("reading model: %w", err)
	}
	if m.Name == "" || m.Version == "" || len(m.Features) == 0 {
		return nil, errors.New("reading model: name, version and features are required")
	}
	seen := map[string]bool{}
	for _, f := range m.Features {
		if f.Name == "" || seen[f.Name] || f.Scale <= 0 || f.Min >= f.Max {
			return nil, fmt.Errorf("reading model: feature %q: want a new name, scale > 0 and min < max", f.Name)
		}
		seen[f.Name] = true
	}
	sum := sha256.Sum256(b)
	m.digest = hex.EncodeToString(sum[:])
	return m, nil
}

// check tells the first thing that is wrong with an applicant.
func (m *model) check(a applicant) error {
	if a.ID == "" || len(a.ID) > 64 {
		return fmt.Errorf("id %.64q: want 1 to 64 bytes", a.ID)
	}
	for _, f := range m.Features {
		v, given := a.Features[f.Name]
		if !given {
			return fmt.Errorf("applicant %q: feature %q is missing", a.ID, f.Name)
		}
		if v < f.Min || v > f.Max {
			return fmt.Errorf("applicant %q: feature %q: got %g, want %g to %g", a.ID, f.Name, v, f.Min, f.Max)
		}
	}
	if len(a.Features) != len(m.Features) {
		return fmt.Errorf("applicant %q: got %d features, want %d", a.ID, len(a.Features), len(m.Features))
	}
	return nil
}

// score computes the probability of default and its reasons for an applicant
// that check accepted.
func (m *model) score(a applicant) score {
	type part struct {
		reason string
		adds   float64
	}
	parts := make([]part, 0, len(m.Features))
	z := m.Intercept
	for _, f := range m.Features {
		adds := f.Weight * (a.Features[f.Name] - f.Mean) / f.Scale
		z += adds
		parts = append(parts, part{f.Reason, adds})
	}
	s := score{ID: a.ID, Probability: 1 / (1 + math.Exp(-z)), Decision: "accept", Reasons: []string{}}
	if s.Probability >= m.Threshold {
		s.Decision = "refer"
	}
	slices.SortStableFunc(parts, func(x, y part) int { return cmp.Compare(y.adds, x.adds) })
	for _, p := range parts[:min(reasonsGiven, len(parts))] {
		if p.adds > 0 {
			s.Reasons = append(s.Reasons, p.reason)
		}
	}
	return s
}

// strictJSON reads exactly one JSON value: no unknown field, nothing after it.
func strictJSON(r io.Reader, into any) error {
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	switch _, err := d.Token(); {
	case err == io.EOF:
		return nil
	case err != nil:
		return fmt.Errorf("reading what follows the JSON value: %w", err)
	}
	return errors.New("something follows the JSON value")
}
