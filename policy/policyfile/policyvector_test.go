package policyfile

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policytest"
	"github.com/cohort-tee/cohort/policy/policytoml"
)

// TestPolicyVectors parses policy files whose first line states the expected result.
func TestPolicyVectors(t *testing.T) {
	if *policytest.Update {
		writePolicyVectors(t)
	}
	for _, path := range policytest.Files(t, "policy/*.toml") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			text := policytest.ReadVector(t, "policy", filepath.Base(path))
			first, _, _ := strings.Cut(text, "\n")
			d, err := Parse([]byte(text))
			if got := "# expect: " + parseVerdict(d, err); got != first {
				t.Errorf("got %s\nwant %s", got, first)
			}
		})
	}
}

func parseVerdict(d *Document, err error) string {
	var faults policytoml.Faults
	if errors.As(err, &faults) {
		return fmt.Sprintf("policy, %s: %s", faults[0].Path, faults[0].Rule)
	}
	text := "accepted"
	for _, ref := range d.references() {
		text += fmt.Sprintf(", %s %s", ref.Path, wire.Sum(ref.Bytes()))
	}
	return text
}

func writePolicyVectors(t *testing.T) {
	h := policytest.NewHouse()
	write := func(name string, raw []byte) {
		// The comment is part of the file. It changes line numbers, but not the result.
		d, err := Parse(append([]byte("#\n"), raw...))
		policytest.WriteVector(t, "# expect: "+parseVerdict(d, err)+"\n"+string(raw), "policy", strings.ReplaceAll(name, " ", "-")+".toml")
	}
	write("good", h.Text(t))
	for _, r := range parseRefusals {
		switch r.name {
		case "schema", "genesis with previous", "later policy without previous", "quorum over the owners", "key twice", "soft without development",
			"reference value with value and any", "equal measurements in two tasks", "task without key mode", "life too long", "name of two tasks",
			"name of the authority", "continues itself", "unknown key", "override of direction", "owner with a key of small order":
			write(r.name, h.Text(t, r.old, r.new))
		}
	}
	write("hardware", policytest.IronText(t))
	for _, r := range ironRefusals {
		switch r.name {
		case "soft beside hardware", "floor without a component", "Revoked accepted", "pcr0 of zeros, as in debug", "chip id in capitals":
			write(strings.ReplaceAll(r.name, ",", ""), policytest.IronText(t, r.old, r.new))
		}
	}
	write("devices", policytest.GPUText(t))
	for _, r := range gpuRefusals {
		switch r.name {
		case "gpu without measurements", "a reference value of a device", "a device without its table":
			write(r.name, policytest.GPUText(t, r.old, r.new))
		}
	}
}
