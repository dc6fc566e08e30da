package evidencecmd

import (
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/platforms"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/tree"
)

// evidenceView is evidence for people.
type evidenceView struct {
	Platform     attest.Platform   `json:"platform"`
	Size         int               `json:"size"`
	Endorsements map[string]int    `json:"endorsements"` // sizes by role
	Checked      []attest.Fetched  `json:"checked,omitempty"`
	Registers    map[string]string `json:"measurement"`
	ReportData   string            `json:"report_data"`
	Debug        bool              `json:"debug"`
	Dynamic      bool              `json:"dynamic"`
	Chip         string            `json:"chip,omitempty"`
	NotVerified  []string          `json:"not_verified,omitempty"` // what is not compared
	Fields       map[string]any    `json:"fields"`
	Devices      []evidenceView    `json:"devices,omitempty"`
	// Verified reports that all fields are verified at a time, of the devices too, but for the
	// report data: what the evidence was made for was not checked.
	Verified bool   `json:"verified,omitempty"`
	At       string `json:"at,omitempty"`
}

// verdictView is the verdict on evidence that is not refused.
type verdictView struct {
	Verdict     string   `json:"verdict"` // "holds" or "not bound"
	Reason      string   `json:"reason,omitempty"`
	Detail      string   `json:"detail,omitempty"`
	At          string   `json:"at"`
	Is          []string `json:"is,omitempty"`           // what the policy calls the program
	NotVerified []string `json:"not_verified,omitempty"` // what was not compared, with its part
	Bound       bool     `json:"bound"`                  // it was made for the use that the question names

	unbound error // why it is not bound
}

func (v *evidenceView) setClaims(c attest.Claims) {
	v.Registers, v.Fields = map[string]string{}, c.Details
	for _, r := range c.Measurement.Registers {
		v.Registers[r.Name] = hex.EncodeToString(r.Value)
	}
	v.NotVerified = c.NotVerified
	v.ReportData, v.Debug, v.Dynamic, v.Chip = hex.EncodeToString(c.ReportData), c.Debug, c.Dynamic, c.Chip
}

func (v verdictView) format(of attest.Platform) string {
	var b strings.Builder
	fmt.Fprintf(&b, "verdict      %s at %s", v.Verdict, v.At)
	if v.Detail != "" {
		fmt.Fprintf(&b, ": %s", v.Detail)
	}
	b.WriteString("\n")
	for _, name := range v.Is {
		fmt.Fprintf(&b, "  is         %s\n", name)
	}
	for _, what := range v.NotVerified {
		fmt.Fprintf(&b, "  not verified %s\n", what)
	}
	if of.IsDevice() {
		b.WriteString("  note       a device: it counts beside a TEE only\n")
	}
	if v.Verdict == "not bound" {
		b.WriteString("  note       its vendor vouches for it, and it may be a copy of another TEE's\n")
	}
	return b.String()
}

// drawTree is the view as text, every field on a line of its own.
func (v evidenceView) drawTree() string {
	root := tree.New("")
	v.addTo(root, "evidence")
	for i, d := range v.Devices {
		d.addTo(root, fmt.Sprintf("device %d", i))
	}
	if v.Verified {
		root.Add("note         verified at %s, but for what it was made for", v.At)
	} else {
		root.Add("note         nothing above is verified")
	}
	return root.Indented()
}

// addTo adds one part of the evidence.
func (v evidenceView) addTo(root *tree.Node, name string) {
	platform, _ := platforms.Supported().Lookup(v.Platform)
	part := root.Add("%-12s %s, %d bytes", name, platform.Title, v.Size)
	for _, role := range slices.Sorted(maps.Keys(v.Endorsements)) {
		part.Add("beside     %s, %d bytes", role, v.Endorsements[role])
	}
	for _, c := range v.Checked {
		part.Add("checked    %s at %s, valid until %s", c.Role, frame.RFC3339(c.At), frame.RFC3339(c.Until))
	}
	if registers := platform.RegisterNames(); len(registers) > 0 {
		measurement := root.Add("measurement")
		for _, name := range registers {
			measurement.Add("%-26s %s", name, v.Registers[name])
		}
	}
	state := root.Add("state")
	state.Add("%-26s %s", "report_data", v.ReportData)
	state.Add("%-26s %v", "debug", v.Debug)
	state.Add("%-26s %v", "dynamic", v.Dynamic)
	if v.Chip != "" {
		state.Add("%-26s %s", "chip", v.Chip)
	}
	for _, what := range v.NotVerified {
		state.Add("%-26s %s", "not verified", what)
	}
	if len(v.Fields) == 0 {
		return
	}
	fields := root.Add("fields")
	for _, name := range slices.Sorted(maps.Keys(v.Fields)) {
		fields.Add("%-26s %v", name, v.Fields[name])
	}
}
