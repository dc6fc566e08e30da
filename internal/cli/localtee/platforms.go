// Package localtee is the trusted execution environments (TEEs) of this build: the table of
// platforms, the TEE that this process runs in, the verifier of all platforms, and how a
// program is measured and launched in the development TEE.
//
// It opens devices only when a caller names their platform, and decides nothing about trust:
// what [Measure] returns is what the TEE will report, and policy decides whether that is
// accepted. TEEs are opened and programs measured on linux alone, where all TEEs are.
//
// Files, each using those before it: unmeasured.go, launch.go, measure.go, open.go,
// platforms.go, reference.go, tpm.go.
package localtee

import (
	"os"
	"slices"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/platforms"
)

// CommandSetting is the command line, a JSON array of strings, of a cohort
// that was started inside a TEE, where it has no measured arguments.
const CommandSetting = "COHORT_COMMAND"

// Device is the TEE that a process runs in.
type Device interface {
	attest.Attester
	attest.Sealer
	// Program is the measured program that an agent runs.
	Program() (*os.File, error)
	// Arguments are the measured arguments.
	Arguments() []string
}

// Names are the TEEs of this build.
func Names() []string {
	var names []string
	for _, p := range platforms.Supported() {
		if !p.Platform.IsDevice() {
			names = append(names, string(p.Platform))
		}
	}
	slices.Sort(names)
	return names
}

// TEE is the TEE a process runs in.
type TEE struct {
	Device
	Platform attest.Platform
}

// Inside reports whether there is one.
func (t TEE) Inside() bool { return t.Device != nil }

// Development reports whether it protects nothing from its host.
func (t TEE) Development() bool {
	p, known := platforms.Supported().Lookup(t.Platform)
	return known && p.Development
}

// Verifier appraises the evidence of every platform.
func Verifier() *attest.Verifier { return platforms.Supported().Verifier() }

// Measurement is what the development TEE will report of a program, and the line
// of policy that accepts it.
type Measurement struct {
	Platform  string `json:"platform"`
	Reference string `json:"reference"`
	Agent     string `json:"agent,omitempty"`
	Program   string `json:"program"`
	Dynamic   bool   `json:"dynamic"`
	// Unmeasured is what no measurement covers, as far as can be seen.
	Unmeasured []string `json:"unmeasured,omitempty"`
}
