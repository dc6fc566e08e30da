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
)

// evidenceView is evidence for people.
type evidenceView struct {
	Platform     attest.Platform   `json:"platform"`
	Size         int               `json:"size"`
	Endorsements map[string]int    `json:"endorsements"` // sizes by role
	Checked      []attest.Checked  `json:"checked,omitempty"`
	Registers    map[string]string `json:"measurement"`
	ReportData   string            `json:"report_data"`
	Debug        bool              `json:"debug"`
	Dynamic      bool              `json:"dynamic"`
	Chip         string            `json:"chip,omitempty"`
	Unjudged     []string          `json:"unjudged,omitempty"` // what nobody compares
	Fields       map[string]any    `json:"fields"`
	Devices      []evidenceView    `json:"devices,omitempty"`
	// Verified says that all fields hold at a time, of the devices too, but for the
	// report data: what the evidence was made for was not checked.
	Verified bool   `json:"verified,omitempty"`
	At       string `json:"at,omitempty"`
}

// verdictView is the verdict on evidence that is not refused.
type verdictView struct {
	Verdict  string   `json:"verdict"` // "holds" or "not bound"
	Reason   string   `json:"reason,omitempty"`
	Detail   string   `json:"detail,omitempty"`
	At       string   `json:"at"`
	Is       []string `json:"is,omitempty"`       // what the policy calls the program
	Unjudged []string `json:"unjudged,omitempty"` // what nobody compared, with its part
	Bound    bool     `json:"bound"`              // it was made for the use that the question names

	unbound error // why it is not bound
}

func (v *evidenceView) fill(c attest.Claims) {
	v.Registers, v.Fields = map[string]string{}, c.Details
	for _, r := range c.Measurement.Registers {
		v.Registers[r.Name] = hex.EncodeToString(r.Value)
	}
	v.Unjudged = c.Unjudged
	v.ReportData, v.Debug, v.Dynamic, v.Chip = hex.EncodeToString(c.ReportData), c.Debug, c.Dynamic, c.Chip
}

func (v verdictView) text(of attest.Platform) string {
	var b strings.Builder
	fmt.Fprintf(&b, "verdict      %s at %s", v.Verdict, v.At)
	if v.Detail != "" {
		fmt.Fprintf(&b, ": %s", v.Detail)
	}
	b.WriteString("\n")
	for _, name := range v.Is {
		fmt.Fprintf(&b, "  is         %s\n", name)
	}
	for _, what := range v.Unjudged {
		fmt.Fprintf(&b, "  not judged %s\n", what)
	}
	if of.IsDevice() {
		b.WriteString("  note       a device: it counts beside a TEE only\n")
	}
	if v.Verdict == "not bound" {
		b.WriteString("  note       its vendor vouches for it, and it may be a copy of another TEE's\n")
	}
	return b.String()
}

// tree is the view as text, every field on a line of its own.
func (v evidenceView) tree() string {
	var b strings.Builder
	b.WriteString(v.part("evidence"))
	for i, d := range v.Devices {
		b.WriteString(d.part(fmt.Sprintf("device %d", i)))
	}
	if v.Verified {
		fmt.Fprintf(&b, "note         verified at %s, but for what it was made for\n", v.At)
	} else {
		b.WriteString("note         nothing above is verified\n")
	}
	return b.String()
}

// part is one part as text.
func (v evidenceView) part(name string) string {
	var b strings.Builder
	platform, _ := platforms.All().Lookup(v.Platform)
	fmt.Fprintf(&b, "%-12s %s, %d bytes\n", name, platform.Title, v.Size)
	for _, role := range slices.Sorted(maps.Keys(v.Endorsements)) {
		fmt.Fprintf(&b, "  beside     %s, %d bytes\n", role, v.Endorsements[role])
	}
	for _, c := range v.Checked {
		fmt.Fprintf(&b, "  checked    %s at %s, valid until %s\n", c.Role, frame.RFC3339(c.At), frame.RFC3339(c.Until))
	}
	if registers := platform.RegisterNames(); len(registers) > 0 {
		b.WriteString("measurement\n")
		for _, name := range registers {
			fmt.Fprintf(&b, "  %-26s %s\n", name, v.Registers[name])
		}
	}
	fmt.Fprintf(&b, "state\n  %-26s %s\n  %-26s %v\n  %-26s %v\n", "report_data", v.ReportData, "debug", v.Debug, "dynamic", v.Dynamic)
	if v.Chip != "" {
		fmt.Fprintf(&b, "  %-26s %s\n", "chip", v.Chip)
	}
	for _, what := range v.Unjudged {
		fmt.Fprintf(&b, "  %-26s %s\n", "not judged", what)
	}
	if len(v.Fields) > 0 {
		b.WriteString("fields\n")
	}
	for _, name := range slices.Sorted(maps.Keys(v.Fields)) {
		fmt.Fprintf(&b, "  %-26s %v\n", name, v.Fields[name])
	}
	return b.String()
}
