// Package evidencecmd is `cohort evidence` and `cohort measure`: read and appraise evidence in
// a file, and print the reference values of programs and images.
//
// Files, each using those before it: measuretee.go, view.go, evidencecmd.go,
// measure.go, measure_other.go.
package evidencecmd

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/platforms"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/spf13/cobra"
)

// evidenceFlags are the flags of `cohort evidence`; inspect has no report data.
type evidenceFlags struct {
	policy, at, reportData string
	endorsements           []string
}

func (f *evidenceFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.policy, "policy", "", "policy file whose rules the evidence must meet")
	flags.StringVar(&f.at, "at", "", "time to appraise for, as 2026-11-22T09:00:00Z (inspect: default now)")
	flags.StringArrayVar(&f.endorsements, "endorsement", nil, "ROLE=FILE of a vendor's document, beside those in the evidence; repeat")
}

// Evidence is `cohort evidence`.
func Evidence(a *frame.App) *cobra.Command {
	cmd := &cobra.Command{Use: "evidence", Short: "Read and appraise evidence in a file"}
	cmd.AddCommand(inspectCommand(a), appraiseCommand(a))
	return cmd
}

func inspectCommand(a *frame.App) *cobra.Command {
	var f evidenceFlags
	cmd := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Print every field of evidence, without a verdict",
		Long: "Print every field of evidence, without a verdict. With --policy the fields are verified: the evidence\n" +
			"must be genuine and meet the policy's rules for its platform, or it is refused. What the evidence was\n" +
			"made for is not verified: it may be a copy of another TEE's.",
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			v, err := viewEvidence(a, args[0], f)
			if err != nil {
				return err
			}
			return a.PrintResult("evidence", v, v.drawTree())
		},
	}
	f.register(cmd)
	return cmd
}

func appraiseCommand(a *frame.App) *cobra.Command {
	var f evidenceFlags
	cmd := &cobra.Command{
		Use:   "appraise FILE --policy P --at T --report-data R",
		Short: "Appraise evidence by a policy: exit code 0 when it holds, 1 when it is refused or not bound",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			e, err := f.evidence(args[0])
			if err != nil {
				return err
			}
			q, doc, err := f.question(e, a.Now())
			if err != nil {
				return err
			}
			v, err := appraise(q, doc)
			if err != nil {
				return err
			}
			if err := a.PrintResult("appraisal", v, v.format(e.Platform)); err != nil {
				return err
			}
			return v.unbound
		},
	}
	f.register(cmd)
	cmd.Flags().StringVar(&f.reportData, "report-data", "", "128 hexadecimal digits that the evidence must be bound to")
	for _, name := range []string{"policy", "at", "report-data"} {
		_ = cmd.MarkFlagRequired(name)
	}
	return cmd
}

// evidence is the evidence in a file, with the endorsements of the flags.
func (f evidenceFlags) evidence(path string) (attest.Evidence, error) {
	e, err := readEvidence(path)
	if err != nil {
		return attest.Evidence{}, err
	}
	return f.endorse(e)
}

// viewEvidence reads evidence, and verifies its fields where there is a policy.
func viewEvidence(a *frame.App, path string, f evidenceFlags) (evidenceView, error) {
	e, err := f.evidence(path)
	if err != nil {
		return evidenceView{}, err
	}
	v, err := viewPart(e)
	if err != nil {
		return evidenceView{}, fmt.Errorf("reading %s: %w", path, err)
	}
	for i, d := range e.Devices {
		part, err := viewPart(d)
		if err != nil {
			return evidenceView{}, fmt.Errorf("reading device %d of %s: %w", i, path, err)
		}
		v.Devices = append(v.Devices, part)
	}
	if f.policy == "" {
		return v, nil
	}
	q, _, err := f.question(e, a.Now())
	if err != nil {
		return evidenceView{}, err
	}
	claims, err := localtee.Verifier().Inspect(q)
	if err != nil {
		return evidenceView{}, err
	}
	v.verify(claims, q.At)
	return v, nil
}

// viewPart is the unverified claims of one part.
func viewPart(e attest.Evidence) (evidenceView, error) {
	claims, err := localtee.Verifier().UnverifiedClaims(e)
	if err != nil {
		return evidenceView{}, err
	}
	v := evidenceView{Platform: e.Platform, Size: len(e.Raw), Endorsements: map[string]int{}}
	for role, content := range e.Endorsed {
		v.Endorsements[role] = len(content)
	}
	v.setClaims(claims)
	v.Checked, err = e.Endorsed.Fetched()
	return v, err
}

// verify replaces the unverified claims of the parts by verified ones: the TEE's, and those of
// each device.
func (v *evidenceView) verify(claims []attest.Claims, at time.Time) {
	v.Verified, v.At = true, frame.RFC3339(at)
	v.setClaims(claims[0])
	for i := range v.Devices {
		v.Devices[i].setClaims(claims[1+i])
	}
}

// readEvidence reads a wrapper, or evidence as a device returns it.
func readEvidence(path string) (attest.Evidence, error) {
	content, err := frame.ReadFile(path, 2*wire.MaxEvidence)
	if err != nil {
		return attest.Evidence{}, err
	}
	return platforms.Supported().ReadEvidence(content)
}

func (f evidenceFlags) endorse(e attest.Evidence) (attest.Evidence, error) {
	more := attest.Endorsements{}
	for _, pair := range f.endorsements {
		role, path, ok := strings.Cut(pair, "=")
		if !ok {
			return e, frame.Usage("--endorsement: got %q, want ROLE=FILE", pair)
		}
		content, err := frame.ReadFile(path, 2*wire.MaxEvidence)
		if err != nil {
			return e, err
		}
		more[role] = content
	}
	return e.WithEndorsements(more), nil
}

// question is what the flags ask of evidence, and the policy that they name.
func (f evidenceFlags) question(e attest.Evidence, now time.Time) (q attest.Question, doc *policyfile.Document, err error) {
	file, err := frame.ReadFile(f.policy, wire.MaxPolicy)
	if err != nil {
		return q, nil, err
	}
	if doc, err = policyfile.Parse(file); err != nil {
		return q, nil, err
	}
	if f.at != "" {
		if now, err = time.Parse(time.RFC3339, f.at); err != nil {
			return q, nil, frame.Usage("--at: %w", err)
		}
	}
	q = attest.Question{Evidence: e, Rules: doc.Platforms, At: now}
	if f.reportData != "" {
		data, err := hex.DecodeString(f.reportData)
		if err != nil || len(data) != len(q.ReportData) {
			return q, nil, frame.Usage("--report-data: got %q, want %d hexadecimal digits", f.reportData, 2*len(q.ReportData))
		}
		q.ReportData = attest.ReportData(data)
	}
	return q, doc, nil
}

// appraise appraises evidence by a policy for the use of the question, and looks for
// the program in it. Devices without a TEE are appraised by themselves, and are no
// program. Only the verifier that asked for the evidence can check a credential in it,
// so evidence that needs one is not bound.
func appraise(q attest.Question, doc *policyfile.Document) (verdictView, error) {
	v := verdictView{Verdict: "holds", At: frame.RFC3339(q.At), Bound: true}
	if q.Evidence.Platform.IsDevice() {
		devices, err := localtee.Verifier().AppraiseDevices(q)
		if err != nil {
			return verdictView{}, err
		}
		v.NotVerified = notVerified(devices[0].NotVerified, devices[1:])
		return v, nil
	}
	result, challenge, err := localtee.Verifier().AppraiseFor(q)
	if err != nil {
		return verdictView{}, err
	}
	if v.Is, err = programs(doc, result); err != nil {
		return verdictView{}, err
	}
	v.NotVerified = notVerified(result.NotVerified(), result.Devices())
	if challenge.Credential != nil {
		v.unbound = &frame.Fault{Code: frame.CodeUnbound, Cause: wire.Refuse(wire.BadNonce, "evidence: binding", "a credential",
			"the secret in it, which only the authority that asked for the evidence knows: it shows that the key lives in that device")}
		v.Verdict, v.Detail, v.Reason, v.Bound = "not bound", frame.OneLine(v.unbound.Error()), frame.CodeUnbound, false
	}
	return v, nil
}

// notVerified is what is not compared of any part, with the device where it is one's.
func notVerified(of []string, devices []attest.Device) []string {
	all := slices.Clone(of)
	for i, d := range devices {
		for _, what := range d.NotVerified {
			all = append(all, fmt.Sprintf("device %d: %s", i, what))
		}
	}
	return all
}

// programs are the names that a policy has for what was appraised; none is refused,
// and so is one alone that lacks a device.
func programs(doc *policyfile.Document, result attest.Result) ([]string, error) {
	var names []string
	m := result.Measurement()
	refused := wire.Refuse(wire.NotMeasured, "measurement", m, "a program of the policy")
	if matches(doc.Authority.References, m) {
		names = append(names, "the authority")
	}
	for _, task := range doc.TaskNames() {
		for _, name := range doc.Tasks[task].ReleaseNames() {
			release := doc.Tasks[task].Releases[name]
			if !matches(release.References, m) {
				continue
			}
			if err := release.Equipped(result.Devices()); err != nil {
				refused = err
				continue
			}
			names = append(names, "task "+task+", release "+name)
		}
	}
	if len(names) == 0 {
		return nil, refused
	}
	return names, nil
}

func matches(references []attest.ReferenceValue, m attest.Measurement) bool {
	return slices.ContainsFunc(references, func(reference attest.ReferenceValue) bool { return attest.Match(reference, m) == nil })
}
