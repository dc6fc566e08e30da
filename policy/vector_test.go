package policy

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policytest"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// TestHistoryVectors replays vectors that name the files of each step.
func TestHistoryVectors(t *testing.T) {
	if *policytest.Update {
		writeHistoryVectors(t)
	}
	for _, path := range policytest.Files(t, "history/*.txt") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			fields := policytest.Header(t, policytest.ReadVector(t, "history", filepath.Base(path)))
			pin, steps := readHistory(t, fields)
			a, err := Replay(pin, steps)
			if got, want := policytest.Verdict(err), fields["expect"][0]; got != want {
				t.Fatalf("got %s (%v), want %s", got, err, want)
			}
			if err == nil && a.PolicyHead().String() != fields["head"][0] {
				t.Errorf("got head %s, want %s", a.PolicyHead(), fields["head"][0])
			}
		})
	}
}

func readHistory(t testing.TB, fields map[string][]string) (attest.Digest, []Step) {
	t.Helper()
	pin, err := wire.ParseDigest(fields["pin"][0])
	if err != nil {
		t.Fatal(err)
	}
	var steps []Step
	for _, line := range fields["step"] {
		names := strings.Fields(line)
		step := Step{Policy: []byte(policytest.ReadVector(t, "history", names[0]))}
		for _, sig := range names[1:] {
			step.Signatures = append(step.Signatures, policytest.ReadVector(t, "history", sig))
		}
		steps = append(steps, step)
	}
	return pin, steps
}

func writeHistoryVectors(t *testing.T) {
	h := newHouse()
	genesis := h.found(t)
	second := h.next(t, genesis, `lifetime = "30m"`, `lifetime = "20m"`)
	texts := map[string][]byte{"1": genesis.Document().Source(), "2": second}
	for n, raw := range texts {
		policytest.WriteVector(t, string(raw), "history", n+".toml")
		for _, name := range []string{"ana", "ben", "eva"} {
			policytest.WriteVector(t, h.sign(t, sshsig.ForPolicy, raw, name)[0], "history", n+"."+name+".sig")
		}
	}
	pin := genesis.Genesis().String()
	for _, v := range []struct{ name, note, pin, steps string }{
		{"one-step", "the genesis alone", pin, "1.toml 1.ana.sig 1.ben.sig"},
		{"two-steps", "another pair of owners each time", pin, "1.toml 1.ana.sig 1.ben.sig|2.toml 2.ben.sig 2.eva.sig"},
		{"other-pin", "the history of somebody else", wire.Sum(second).String(), "1.toml 1.ana.sig 1.ben.sig"},
		{"too-few", "one owner of two", pin, "1.toml 1.ana.sig 1.ben.sig|2.toml 2.ana.sig"},
		{"one-twice", "one owner, twice", pin, "1.toml 1.ana.sig 1.ben.sig|2.toml 2.ana.sig 2.ana.sig"},
		{"other-version", "a signature over another version", pin, "1.toml 1.ana.sig 1.ben.sig|2.toml 2.ana.sig 1.ben.sig"},
		{"again", "the same step again", pin, "1.toml 1.ana.sig 1.ben.sig|2.toml 2.ana.sig 2.ben.sig|2.toml 2.ana.sig 2.ben.sig"},
	} {
		text := fmt.Sprintf("note: %s\npin: %s\nstep: %s\n", v.note, v.pin, strings.ReplaceAll(v.steps, "|", "\nstep: "))
		a, err := Replay(readHistory(t, policytest.Header(t, text)))
		text = "expect: " + policytest.Verdict(err) + "\n" + text
		if err == nil {
			text += "head: " + a.PolicyHead().String() + "\n"
		}
		policytest.WriteVector(t, text, "history", v.name+".txt")
	}
}
