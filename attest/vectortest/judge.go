package vectortest

import (
	"encoding/hex"
	"encoding/json"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
)

// Subject is an appraiser under test.
type Subject struct {
	// Platform is the platform of its vectors, as vector.json writes it.
	Platform  string
	Appraiser attest.Appraiser
	// Rules says a vector's policy in the rules of the platform. The roots
	// are the vendor's, never ones out of the vector. The vector's files are
	// given, by role, for platforms without a vendor's root.
	Rules func(p Policy, files map[string][]byte) attest.Rules
	// Inputs are claims that are given to appraisal and not read by it.
	Inputs []string
	// Unsigned reports whether bytes of evidence at an offset are in the
	// documented table of bytes that nobody signs; nil means none are.
	Unsigned func(evidence []byte, offset int) bool
}

// Run judges every vector of the subject's platform: the expected verdict with
// reason and claims, the accepting policy, the default policy, both ends of the
// window, and every negative.
func Run(t *testing.T, s Subject) {
	for _, v := range load(t, s.Platform) {
		for _, suffix := range v.evidence() {
			t.Run(strings.TrimSuffix(filepath.Base(v.dir)+"/"+suffix, "/"), func(t *testing.T) {
				judge{Subject: s, vector: v, suffix: suffix}.all(t)
			})
		}
	}
}

// reporter is told what is wrong: a test, or what tests this package.
type reporter interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// judge judges one piece of evidence.
type judge struct {
	Subject
	*vector
	suffix string
}

func (c judge) all(t reporter) {
	c.verdicts(t)
	c.window(t)
	c.negatives(t)
}

// appraise asks a verifier that knows nothing but the subject's platform.
// Captured evidence was bound to other uses than ours, so the report data is
// taken out and judged as a claim.
func (c judge) appraise(p Policy, replace map[string][]byte, at time.Time) (attest.Claims, error) {
	files := c.roles(c.suffix, replace)
	raw := files["evidence"]
	delete(files, "evidence")
	unbound := &unbound{Appraiser: c.Appraiser}
	platform := c.Appraiser.Platform()
	q := attest.Question{
		Evidence:     attest.Evidence{Platform: platform, Raw: raw},
		Endorsements: files,
		ReportData:   attest.ReportData{1},
		Rules:        map[attest.Platform]attest.Rules{platform: c.Subject.Rules(p, c.roles(c.suffix, nil))},
		At:           at,
	}
	var err error
	if v := attest.NewVerifier(unbound); platform.IsDevice() {
		_, err = v.AppraiseDevice(q)
	} else {
		_, err = v.Appraise(q)
	}
	return unbound.claims, err
}

// unbound is an appraiser whose claims are seen before they are bound.
type unbound struct {
	attest.Appraiser
	claims attest.Claims
}

func (u *unbound) Appraise(raw []byte, endorsed attest.Endorsements, rules attest.Rules, at time.Time) (attest.Claims, error) {
	claims, err := u.Appraiser.Appraise(raw, endorsed, rules, at)
	u.claims = claims
	bound := attest.ReportData{1}
	claims.ReportData = bound[:]
	return claims, err
}

func (c judge) verdicts(t reporter) {
	claims, err := c.appraise(c.policy(t, c.Expected.Policy), nil, c.VerifyAt)
	c.Expected.check(t, "expected policy", err)
	if accepts := c.Expected.PolicyAccepts; len(accepts) > 0 && string(accepts) != "null" {
		claims, err = c.appraise(c.good(t), nil, c.VerifyAt)
		outcome{Verdict: "accept"}.check(t, "accepting policy", err)
	}
	if err == nil {
		c.compare(t, claims)
	}
	if under := c.Expected.UnderDefault; under != nil {
		_, err := c.appraise(defaultPolicy(), nil, c.VerifyAt)
		under.check(t, "default policy", err)
	}
}

// window judges one second outside each end, and each end, where the age of
// the evidence itself is permitted.
func (c judge) window(t reporter) {
	if c.Window == nil {
		return
	}
	expired := outcome{Verdict: "refuse", Reason: "expired"}
	_, err := c.appraise(c.good(t), nil, c.Window.From.Add(-time.Second))
	expired.check(t, "one second before the window", err)
	_, err = c.appraise(c.good(t), nil, c.Window.Until.Add(time.Second))
	expired.check(t, "one second after the window", err)

	ageless := c.good(t)
	ageless.MaxAge = int64(100 * 365 * 24 * time.Hour / time.Second)
	_, err = c.appraise(ageless, nil, c.Window.From)
	outcome{Verdict: "accept"}.check(t, "first second of the window", err)
	_, err = c.appraise(ageless, nil, c.Window.Until)
	outcome{Verdict: "accept"}.check(t, "last second of the window", err)
}

func (c judge) negatives(t reporter) {
	for name, n := range c.Neg {
		if _, own, suffixed := strings.Cut(n.Replaces, "."); suffixed && own != c.suffix {
			continue
		}
		if _, ok := c.content[n.Replaces]; !ok {
			t.Errorf("%s replaces role %q, which the folder does not have", name, n.Replaces)
		}
		_, err := c.appraise(c.good(t), map[string][]byte{n.Replaces: c.file(t, name)}, c.VerifyAt)
		n.Verdict = "refuse"
		n.check(t, name, err)
	}
}

// check compares what appraisal said with what it must say.
func (o outcome) check(t reporter, what string, err error) {
	t.Helper()
	if o.Verdict == "accept" {
		if err != nil {
			t.Errorf("%s: refused, want accepted: %v", what, err)
		}
		return
	}
	if err == nil {
		t.Errorf("%s: accepted, want refused: %s", what, o.Reason)
		return
	}
	got := string(reasonOf(err))
	if got != o.Reason && !slices.Contains(o.Also, got) && !o.ReasonAny {
		t.Errorf("%s: refused with %v, want reason %q or one of %q", what, err, o.Reason, o.Also)
	}
}

// compare demands every claim of the vector, by name.
func (c judge) compare(t reporter, claims attest.Claims) {
	t.Helper()
	got := flatten(t, claims)
	for name, want := range c.claims(c.suffix) {
		if slices.Contains(c.Inputs, name) {
			continue
		}
		if have, ok := got[name]; !ok || !reflect.DeepEqual(have, want) {
			t.Errorf("claim %s: got %v, want %v", name, have, want)
		}
	}
}

// flatten gives claims as JSON would hold them: the details, each register by
// its name, the first one as the measurement, report data and debug.
func flatten(t reporter, claims attest.Claims) map[string]any {
	t.Helper()
	flat := make(map[string]any)
	for name, value := range claims.Details {
		flat[name] = value
	}
	for _, r := range claims.Measurement.Registers {
		flat[strings.ReplaceAll(r.Name, "-", "_")] = hex.EncodeToString(r.Value)
	}
	if registers := claims.Measurement.Registers; len(registers) > 0 {
		flat["measurement"] = hex.EncodeToString(registers[0].Value)
	}
	flat["report_data"] = hex.EncodeToString(claims.ReportData)
	flat["debug"] = claims.Debug
	text, err := json.Marshal(flat)
	if err != nil {
		t.Fatalf("claims are not JSON: %v", err)
	}
	var plain map[string]any
	if err := json.Unmarshal(text, &plain); err != nil {
		t.Fatalf("reading claims again: %v", err)
	}
	return plain
}
