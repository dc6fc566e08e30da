package cli

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/nvidia"
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

// viewEvidence reads evidence and judges it when there is a policy.
func (a *app) viewEvidence(path string, f evidenceFlags) (evidenceView, error) {
	e, err := readEvidence(path)
	if err != nil {
		return evidenceView{}, err
	}
	if e, err = f.endorse(e); err != nil {
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
	v.Verdict = verdictView{Verdict: "not judged", Detail: "no --policy"}
	if f.policy != "" {
		var proven []attest.Claims
		proven, v.Verdict, v.refused, err = f.judge(e, a.now())
		if err != nil {
			return evidenceView{}, err
		}
		if v.refused == nil {
			v.prove(proven)
		}
	}
	v.Verdict.Unjudged = v.unjudged()
	return v, nil
}

// viewPart is what one part says of itself.
func viewPart(e attest.Evidence) (evidenceView, error) {
	claims, err := verifier().UnverifiedClaims(e)
	if err != nil {
		return evidenceView{}, err
	}
	v := evidenceView{Platform: e.Platform, Size: len(e.Raw), Endorsements: map[string]int{}}
	for role, content := range e.Endorsed {
		v.Endorsements[role] = len(content)
	}
	v.fill(claims)
	v.Checked, err = e.Endorsed.Checked()
	return v, err
}

// prove puts claims that hold in place of what the parts say: the TEE's, and those of
// each device.
func (v *evidenceView) prove(claims []attest.Claims) {
	v.fill(claims[0])
	for i := range v.Devices {
		v.Devices[i].fill(claims[1+i])
	}
}

// unjudged is what nobody compares of any part.
func (v *evidenceView) unjudged() []string {
	all := slices.Clone(v.Unjudged)
	for i, d := range v.Devices {
		for _, what := range d.Unjudged {
			all = append(all, fmt.Sprintf("device %d: %s", i, what))
		}
	}
	return all
}

// readEvidence reads a wrapper, or evidence as a device gives it.
func readEvidence(path string) (attest.Evidence, error) {
	content, err := readFile(path, 2*wire.MaxEvidence)
	if err != nil {
		return attest.Evidence{}, err
	}
	if bytes.Contains(content, []byte(`"evidences"`)) { // by NVIDIA's nvattest
		return nvidia.ParseCollection(content)
	}
	var e attest.Evidence
	if text := bytes.TrimSpace(content); len(text) > 0 && (text[0] == '[' || text[0] == '{') {
		return e, e.UnmarshalJSON(text)
	}
	if raw, _, err := nvidia.Decode(bytes.TrimSpace(content)); err == nil && platformOf(raw) == attest.NvidiaGPU {
		content = raw // NVIDIA's tools print reports as text
	}
	e = attest.Evidence{Platform: platformOf(content), Raw: content}
	if e.Platform == "" {
		return e, wire.Refuse(wire.NoPlatform, "evidence: form", "another", "a wrapper (RFC 9999), SNP report, DCAP quote, Nitro document, report of an NVIDIA GPU or what nvattest prints")
	}
	return e, nil
}

// platformOf tells bare evidence by its form; which it is appraisal checks.
func platformOf(raw []byte) attest.Platform {
	switch {
	case len(raw) == 1184 && raw[0] >= 2 && raw[0] <= 5:
		return attest.SNP
	case bytes.HasPrefix(raw, []byte{0x11, 0xe0}): // SPDM 1.1: GET_MEASUREMENTS
		return attest.NvidiaGPU
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

// judge appraises evidence by the policy, and looks for the program in it. Evidence
// of devices alone is judged as such. A refusal is a verdict; err is a fault of the
// question.
func (f evidenceFlags) judge(e attest.Evidence, now time.Time) (proven []attest.Claims, v verdictView, refused, err error) {
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
	seen := &witnesses{bound: f.reportData != ""}
	if seen.bound {
		data, err := hex.DecodeString(f.reportData)
		if err != nil || len(data) != len(q.ReportData) {
			return proven, v, nil, usage("--report-data: got %q, want %d hexadecimal digits", f.reportData, 2*len(q.ReportData))
		}
		q.ReportData = attest.ReportData(data)
	}
	v = verdictView{Verdict: "holds", At: now.UTC().Format(time.RFC3339), Bound: seen.bound}
	if e.Platform.IsDevice() {
		first := e
		first.Devices = nil
		for _, part := range append([]attest.Evidence{first}, e.Devices...) {
			q.Evidence = part
			if _, err := seen.verifier().AppraiseDevice(q); err != nil {
				refused = err
				break
			}
		}
	} else if result, err := seen.verifier().Appraise(q); err != nil {
		refused = err
	} else {
		v.Is, refused = programs(doc, result)
	}
	if refused != nil {
		v.Verdict, v.Detail, v.Reason = "refused", oneLine(refused.Error()), classify(refused).code
	}
	return seen.claims, v, refused, nil
}

// witnesses are appraisers whose claims are seen, in the order of the parts. Evidence
// in a file was bound to a nonce that is gone, so without a wish its binding is not
// judged, and a TPM's credential, which only its verifier can judge, never; the
// result goes to people only.
type witnesses struct {
	bound  bool
	claims []attest.Claims
}

func (w *witnesses) verifier() *attest.Verifier {
	var all []attest.Appraiser
	for _, p := range platforms {
		all = append(all, witness{p.appraiser(), w})
	}
	return attest.NewVerifier(all...)
}

type witness struct {
	attest.Appraiser
	*witnesses
}

func (w witness) Appraise(raw []byte, endorsed attest.Endorsements, rules attest.Rules, at time.Time) (attest.Claims, error) {
	claims, err := w.Appraiser.Appraise(raw, endorsed, rules, at)
	w.claims = append(w.claims, claims)
	claims.Activation = nil
	if !w.bound {
		stand := attest.ReportData{1}
		claims.ReportData = stand[:]
	}
	return claims, err
}

// programs are the names that a policy has for what was appraised; none is refused,
// and so is one alone that lacks a device.
func programs(doc *policy.Document, r attest.Result) ([]string, error) {
	var names []string
	refused := wire.Refuse(wire.NotMeasured, "measurement", r.Measurement(), "a program of the policy")
	if matches(doc.Authority.References, r) {
		names = append(names, "the authority")
	}
	for _, task := range doc.TaskNames() {
		for _, name := range doc.Tasks[task].ReleaseNames() {
			release := doc.Tasks[task].Releases[name]
			if !matches(release.References, r) {
				continue
			}
			if err := release.Equipped(r.Devices()); err != nil {
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

func matches(references []attest.ReferenceValue, r attest.Result) bool {
	return slices.ContainsFunc(references, func(reference attest.ReferenceValue) bool { return attest.Match(reference, r.Measurement()) == nil })
}
