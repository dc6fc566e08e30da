package cli

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/spf13/cobra"
)

// evidenceFlags are the flags of `cohort evidence`.
type evidenceFlags struct {
	policy, at, reportData string
	endorsements           []string
}

func (f *evidenceFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.policy, "policy", "", "policy file whose rules and reference values judge")
	flags.StringVar(&f.at, "at", "", "time to judge for, as 2026-11-22T09:00:00Z (inspect: default now)")
	flags.StringVar(&f.reportData, "report-data", "", "128 hexadecimal digits that the evidence must be bound to (default: not judged)")
	flags.StringArrayVar(&f.endorsements, "endorsement", nil, "ROLE=FILE of a vendor's document, beside those in the evidence; repeat")
}

func (a *app) evidenceCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "evidence", Short: "Read and judge evidence in a file"}
	var inspect, appraise evidenceFlags
	read := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Print every field of evidence, and with --policy the verdict on it",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			v, err := a.viewEvidence(args[0], inspect)
			if err != nil {
				return err
			}
			return a.emit("evidence", v, v.tree())
		},
	}
	inspect.register(read)
	judge := &cobra.Command{
		Use:   "appraise FILE --policy P --at T",
		Short: "Judge evidence by a policy: exit code 0 when it holds, 1 when it is refused",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			v, err := a.viewEvidence(args[0], appraise)
			if err == nil {
				err = v.refused
			}
			if err != nil {
				return err
			}
			return a.emit("appraisal", v.Verdict, v.Verdict.text(v.Platform))
		},
	}
	appraise.register(judge)
	for _, name := range []string{"policy", "at"} {
		_ = judge.MarkFlagRequired(name)
	}
	cmd.AddCommand(read, judge)
	return cmd
}

// evidenceView is evidence for people. Its fields are unverified unless the
// verdict is "holds".
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
	Fields       map[string]any    `json:"fields"`
	Verdict      verdictView       `json:"verdict"`

	refused error
}

// verdictView is what a policy says of evidence.
type verdictView struct {
	Verdict string   `json:"verdict"` // "holds", "refused", or "not judged"
	Reason  string   `json:"reason,omitempty"`
	Detail  string   `json:"detail,omitempty"`
	At      string   `json:"at,omitempty"`
	Is      []string `json:"is,omitempty"` // what the policy calls the program
	Bound   bool     `json:"bound"`        // the report data was judged
}

// viewEvidence reads evidence and judges it when there is a policy.
func (a *app) viewEvidence(path string, f evidenceFlags) (evidenceView, error) {
	e, err := readEvidence(path)
	if err != nil {
		return evidenceView{}, err
	}
	if e, err = f.endorse(e); err != nil {
		return evidenceView{}, err
	}
	claims, err := verifier().UnverifiedClaims(e)
	if err != nil {
		return evidenceView{}, fmt.Errorf("reading %s: %w", path, err)
	}
	v := evidenceView{Platform: e.Platform, Size: len(e.Raw), Endorsements: map[string]int{}, Verdict: verdictView{Verdict: "not judged", Detail: "no --policy"}}
	for role, content := range e.Endorsed {
		v.Endorsements[role] = len(content)
	}
	if v.Checked, err = e.Endorsed.Checked(); err != nil {
		return evidenceView{}, fmt.Errorf("reading %s: %w", path, err)
	}
	if f.policy != "" {
		var proven attest.Claims
		proven, v.Verdict, v.refused, err = f.judge(e, a.now())
		if err != nil {
			return evidenceView{}, err
		}
		if v.refused == nil {
			claims = proven
		}
	}
	v.fill(claims)
	return v, nil
}

func (v *evidenceView) fill(c attest.Claims) {
	v.Registers, v.Fields = map[string]string{}, c.Details
	for _, r := range c.Measurement.Registers {
		v.Registers[r.Name] = hex.EncodeToString(r.Value)
	}
	v.ReportData, v.Debug, v.Dynamic, v.Chip = hex.EncodeToString(c.ReportData), c.Debug, c.Dynamic, c.Chip
}

// readEvidence reads a wrapper, or evidence as a device gives it.
func readEvidence(path string) (attest.Evidence, error) {
	content, err := readFile(path, 2*wire.MaxEvidence)
	if err != nil {
		return attest.Evidence{}, err
	}
	var e attest.Evidence
	if text := bytes.TrimSpace(content); len(text) > 0 && (text[0] == '[' || text[0] == '{') {
		return e, e.UnmarshalJSON(text)
	}
	e = attest.Evidence{Platform: platformOf(content), Raw: content}
	if e.Platform == "" {
		return e, wire.Refuse(wire.NoPlatform, "evidence: form", "another", "a wrapper (RFC 9999), SNP report, DCAP quote or Nitro document")
	}
	return e, nil
}

// platformOf tells bare evidence by its form; which it is appraisal checks.
func platformOf(raw []byte) attest.Platform {
	switch {
	case len(raw) == 1184 && raw[0] >= 2 && raw[0] <= 5:
		return attest.SNP
	case bytes.HasPrefix(raw, []byte{0x84, 0x44}): // CBOR: array of 4, bytes of 4
		return attest.Nitro
	case len(raw) > 48 && raw[0] >= 3 && raw[0] <= 5 && raw[1] == 0:
		if binary.LittleEndian.Uint32(raw[4:]) == 0x81 {
			return attest.TDX
		}
		return attest.SGX
	}
	return ""
}

func (f evidenceFlags) endorse(e attest.Evidence) (attest.Evidence, error) {
	more := attest.Endorsements{}
	for _, pair := range f.endorsements {
		role, path, ok := strings.Cut(pair, "=")
		if !ok {
			return e, usage("--endorsement: got %q, want ROLE=FILE", pair)
		}
		content, err := readFile(path, 2*wire.MaxEvidence)
		if err != nil {
			return e, err
		}
		more[role] = content
	}
	return e.With(more), nil
}

// judge appraises evidence by the policy, and looks for the program in it. A
// refusal is a verdict; err is a fault of the question.
func (f evidenceFlags) judge(e attest.Evidence, now time.Time) (proven attest.Claims, v verdictView, refused, err error) {
	file, err := readFile(f.policy, wire.MaxPolicy)
	if err != nil {
		return proven, v, nil, err
	}
	doc, err := policy.Parse(file)
	if err != nil {
		return proven, v, nil, err
	}
	if f.at != "" {
		if now, err = time.Parse(time.RFC3339, f.at); err != nil {
			return proven, v, nil, usage("--at: %w", err)
		}
	}
	q := attest.Question{Evidence: e, ReportData: attest.ReportData{1}, Rules: doc.Platforms, At: now}
	watched := &witness{Appraiser: platforms[e.Platform].appraiser(), bound: f.reportData != ""}
	if watched.bound {
		data, err := hex.DecodeString(f.reportData)
		if err != nil || len(data) != len(q.ReportData) {
			return proven, v, nil, usage("--report-data: got %q, want %d hexadecimal digits", f.reportData, 2*len(q.ReportData))
		}
		q.ReportData = attest.ReportData(data)
	}
	result, refused := attest.NewVerifier(watched).Appraise(q)
	v = verdictView{Verdict: "holds", At: now.UTC().Format(time.RFC3339), Bound: watched.bound}
	if refused == nil {
		v.Is, refused = programs(doc, result.Measurement())
	}
	if refused != nil {
		v.Verdict, v.Detail, v.Reason = "refused", oneLine(refused.Error()), classify(refused).code
	}
	return watched.claims, v, refused, nil
}

// witness is an appraiser whose claims are seen. Evidence in a file was bound to a
// nonce that is gone, so without a wish its binding is not judged, and a TPM's
// credential, which only its verifier can judge, never; the result goes to people
// only.
type witness struct {
	attest.Appraiser
	bound  bool
	claims attest.Claims
}

func (w *witness) Appraise(raw []byte, endorsed attest.Endorsements, rules attest.Rules, at time.Time) (attest.Claims, error) {
	claims, err := w.Appraiser.Appraise(raw, endorsed, rules, at)
	w.claims, claims.Activation = claims, nil
	if !w.bound {
		stand := attest.ReportData{1}
		claims.ReportData = stand[:]
	}
	return claims, err
}

// programs are the names that a policy has for a measurement; none is refused.
func programs(doc *policy.Document, m attest.Measurement) ([]string, error) {
	var names []string
	refused := wire.Refuse(wire.NotMeasured, "measurement", m, "a program of the policy")
	find := func(name string, references []attest.ReferenceValue) {
		for _, reference := range references {
			if attest.Match(reference, m) == nil {
				names = append(names, name)
			}
		}
	}
	find("the authority", doc.Authority.References)
	for _, task := range doc.TaskNames() {
		for _, release := range doc.Tasks[task].ReleaseNames() {
			find("task "+task+", release "+release, doc.Tasks[task].Releases[release].References)
		}
	}
	if len(names) == 0 {
		return nil, refused
	}
	return names, nil
}

func (v verdictView) text(of attest.Platform) string {
	var b strings.Builder
	fmt.Fprintf(&b, "verdict      %s", v.Verdict)
	if v.At != "" {
		fmt.Fprintf(&b, " at %s", v.At)
	}
	if v.Detail != "" {
		fmt.Fprintf(&b, ": %s", v.Detail)
	}
	b.WriteString("\n")
	for _, name := range v.Is {
		fmt.Fprintf(&b, "  is         %s\n", name)
	}
	if v.At != "" && !v.Bound {
		b.WriteString("  note       whether it was made for this use is not judged: no --report-data\n")
	}
	if v.At != "" && of == attest.TPM {
		b.WriteString("  note       whether the key lives in that TPM is not judged: only the authority that asked for the evidence can\n")
	}
	return b.String()
}

// tree is the view as text, every field on a line of its own.
func (v evidenceView) tree() string {
	var b strings.Builder
	fmt.Fprintf(&b, "evidence     %s, %d bytes\n", platforms[v.Platform].name, v.Size)
	for _, role := range slices.Sorted(maps.Keys(v.Endorsements)) {
		fmt.Fprintf(&b, "  beside     %s, %d bytes\n", role, v.Endorsements[role])
	}
	for _, c := range v.Checked {
		fmt.Fprintf(&b, "  checked    %s at %s, valid until %s\n", c.Role, rfc3339(c.At), rfc3339(c.Until))
	}
	b.WriteString("measurement\n")
	for _, name := range attest.Registers[v.Platform] {
		fmt.Fprintf(&b, "  %-26s %s\n", name, v.Registers[name])
	}
	fmt.Fprintf(&b, "state\n  %-26s %s\n  %-26s %v\n  %-26s %v\n", "report_data", v.ReportData, "debug", v.Debug, "dynamic", v.Dynamic)
	if v.Chip != "" {
		fmt.Fprintf(&b, "  %-26s %s\n", "chip", v.Chip)
	}
	if len(v.Fields) > 0 {
		b.WriteString("fields\n")
	}
	for _, name := range slices.Sorted(maps.Keys(v.Fields)) {
		fmt.Fprintf(&b, "  %-26s %v\n", name, v.Fields[name])
	}
	if v.Verdict.Verdict != "holds" {
		b.WriteString("note         nothing above is proven\n")
	}
	b.WriteString(v.Verdict.text(v.Platform))
	return b.String()
}
