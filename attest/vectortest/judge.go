package vectortest

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Subject is an appraiser under test.
type Subject struct {
	// Platform is the name of the platform in vector.json.
	Platform  string
	Appraiser attest.Appraiser
	// Rules returns the platform's rules for a vector's policy. The roots are the vendor's,
	// never taken from the vector; they must include the vector's own root, which Run
	// replaces where a negative replaces it. files are the vector's files by role, for
	// platforms without a vendor's root.
	Rules func(p Policy, files map[string][]byte) attest.Rules
	// Unsigned reports whether the byte of evidence at an offset is in the documented table
	// of bytes that no signature covers; nil means that none is.
	Unsigned func(evidence []byte, offset int) bool
}

// Run appraises every vector of the subject's platform: the expected verdict with reason
// and claims, the accepting policy, the default policy, both ends of the window, and every
// negative.
func Run(t *testing.T, s Subject) {
	for _, v := range load(t, s.Platform) {
		for _, suffix := range v.evidence() {
			t.Run(strings.TrimSuffix(filepath.Base(v.dir)+"/"+suffix, "/"), func(t *testing.T) {
				judge{Subject: s, vector: v, suffix: suffix}.all(t)
			})
		}
	}
}

// reporter receives the faults: a test, or a test double of this package's tests.
type reporter interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// judge checks an appraiser with one piece of evidence. It takes the expected policy and
// reasons from vector.json alone.
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

// appraise appraises with a verifier of the subject's platform alone. Captured evidence was
// bound to other uses than ours, so it is inspected, and then compared with the vector's
// nonce if it has one.
func (c judge) appraise(p Policy, replace map[string][]byte, at time.Time) (attest.Claims, error) {
	files := c.roles(c.suffix, replace)
	raw := files["evidence"]
	delete(files, "evidence")
	platform := c.Appraiser.Platform()
	all, err := attest.NewVerifier(c.Appraiser).Inspect(attest.Question{
		Evidence:     attest.Evidence{Platform: platform, Raw: raw},
		Endorsements: files,
		Rules:        map[attest.Platform]attest.Rules{platform: c.rules(p, replace)},
		At:           at,
	})
	if err != nil {
		return attest.Claims{}, err
	}
	return all[0], c.bound(all[0], files)
}

// rules returns the subject's rules, with a replaced root in place of the vector's root.
func (c judge) rules(p Policy, replace map[string][]byte) attest.Rules {
	rules := c.Subject.Rules(p, c.roles(c.suffix, nil))
	other, replaced := replace["root"]
	if !replaced {
		return rules
	}
	own, theirs := rootOf(c.content["root"]), rootOf(other)
	for i, root := range rules.Roots {
		if root == own {
			rules.Roots = slices.Clone(rules.Roots)
			rules.Roots[i] = theirs
		}
	}
	return rules
}

// bound refuses evidence that was not made for the vector's nonce. That nonce is the file
// of role "nonce", else the claim of that name, if any. Evidence contains it as a claim of
// that name where its platform has one, else as report data, padded with zeros.
func (c judge) bound(claims attest.Claims, files map[string][]byte) error {
	want, given := files["nonce"]
	if !given {
		text, ok := c.claims(c.suffix)["nonce"].(string)
		nonce, err := hex.DecodeString(text)
		if !ok || err != nil {
			return nil // compare checks it by name
		}
		want = nonce
	}
	got := claims.ReportData
	if text, ok := claims.Details["nonce"].(string); ok {
		if named, err := hex.DecodeString(text); err == nil {
			got = named
		}
	} else if len(want) < len(got) && len(bytes.Trim(got[len(want):], "\x00")) == 0 {
		got = got[:len(want)]
	}
	if !bytes.Equal(got, want) {
		return wire.Refuse(wire.BadNonce, "vector: nonce", hex.EncodeToString(got), hex.EncodeToString(want))
	}
	return nil
}

func (c judge) verdicts(t reporter) {
	claims, err := c.appraise(c.policy(t, c.Expected.Policy), nil, c.VerifyAt)
	c.Expected.check(t, "expected policy", err)
	if err != nil && c.accepted() {
		claims, err = c.appraise(c.good(t), nil, c.VerifyAt)
		outcome{Verdict: "accept"}.check(t, "accepting policy", err)
	}
	if err == nil {
		c.compare(t, claims)
	}
	if c.never() {
		_, err := c.appraise(c.mildest(), nil, c.VerifyAt)
		c.Expected.check(t, "the mildest policy", err)
	}
	if under := c.Expected.UnderDefault; under != nil {
		_, err := c.appraise(defaultPolicy(), nil, c.VerifyAt)
		under.check(t, "default policy", err)
	}
	if root, ok := c.content["root"]; ok && !slices.Contains(c.rules(c.good(t), nil).Roots, rootOf(root)) {
		t.Errorf("the folder's root %s is none of the vendor's", rootOf(root))
	}
}

// window appraises just outside each end of the window, and at each end with the age of the
// evidence permitted. Evidence that no policy accepts is refused at both ends.
func (c judge) window(t reporter) {
	if c.Window == nil {
		return
	}
	expired := outcome{Verdict: "refuse", Reason: "expired"}
	inside := outcome{Verdict: "accept"}
	if !c.accepted() {
		inside = c.Expected.outcome
		expired.Also = append([]string{inside.Reason}, inside.Also...) // the appraiser chooses which it finds first
	}
	// Documents are valid from a little before their issue, because clocks differ.
	_, err := c.appraise(c.good(t), nil, c.Window.From.Add(-wire.MaxClockJump-time.Second))
	expired.check(t, "before the window", err)
	_, err = c.appraise(c.good(t), nil, c.Window.Until.Add(time.Second))
	expired.check(t, "one second after the window", err)

	ageless := c.good(t)
	ageless.MaxAge = int64(100 * 365 * 24 * time.Hour / time.Second)
	_, err = c.appraise(ageless, nil, c.Window.From)
	inside.check(t, "first second of the window", err)
	_, err = c.appraise(ageless, nil, c.Window.Until)
	inside.check(t, "last second of the window", err)
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

// check compares the result of appraisal with the expected outcome.
func (o outcome) check(t reporter, what string, err error) {
	t.Helper()
	switch o.Verdict {
	case "accept":
		if err != nil {
			t.Errorf("%s: refused, want accepted: %v", what, err)
		}
		return
	case "refuse":
	default:
		t.Errorf("%s: got verdict %q in vector.json, want accept or refuse", what, o.Verdict)
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

// compare requires every claim of the vector, by name.
func (c judge) compare(t reporter, claims attest.Claims) {
	t.Helper()
	got := flatten(t, claims)
	if c.claims(c.suffix) == nil {
		t.Errorf("the folder has no claims of evidence %q", c.suffix)
	}
	for name, want := range c.claims(c.suffix) {
		if _, ok := got[name]; name == "nonce" && !ok {
			continue // bound has compared it
		}
		if have, ok := got[name]; !ok || !reflect.DeepEqual(have, want) {
			t.Errorf("claim %s: got %v, want %v", name, have, want)
		}
	}
}

// flatten returns claims as decoded JSON: the details, each register by its name, the first
// register as the measurement, report data and debug.
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
