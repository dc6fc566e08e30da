package policy

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policydraft"
	"github.com/cohort-tee/cohort/policy/policytest"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

func TestZeroApproved(t *testing.T) {
	var a Approved
	h := newHouse()
	if a.Genuine() || a.Document() != nil || !a.PolicyHead().IsZero() || a.Knows(attest.Digest{}) || a.Rules() != nil || len(a.Steps()) > 0 {
		t.Error("the zero Approved says something")
	}
	raw := h.Text(t)
	_, err := a.Next(h.step(t, raw, "ana", "ben"))
	policytest.Refused(t, err, wire.BadPolicy)
	_, err = a.Admit("scoring", result(t, attest.Measurement{Platform: attest.Soft}))
	policytest.Refused(t, err, wire.BadPolicy)
	policytest.Refused(t, a.AdmitAuthority(result(t, attest.Measurement{Platform: attest.Soft})), wire.BadPolicy)
	_, err = Propose(a, h.step(t, raw, "ana"), policytest.Start)
	policytest.Refused(t, err, wire.BadPolicy)
}

func TestGenesisRefusals(t *testing.T) {
	h, other := newHouse(), newHouse()
	other.Owners["ana"] = policytest.Fixed("mallory")
	raw := h.Text(t)
	pin := wire.Sum(raw)
	second := h.Text(t, "sequence     = 1", "sequence     = 2", `previous     = ""`, `previous = "`+pin.String()+`"`)
	broken := h.Text(t, "quorum = 2", "quorum = 0")
	for _, row := range []struct {
		name string
		pin  attest.Digest
		step Step
		want attest.Reason
	}{
		{"another pin", policytest.Digest("a"), h.step(t, raw, "ana", "ben"), wire.WrongGenesis},
		{"no pin", attest.Digest{}, h.step(t, raw, "ana", "ben"), wire.WrongGenesis},
		{"sequence 2", wire.Sum(second), h.step(t, second, "ana", "ben"), wire.WrongSequence},
		{"quorum 0", wire.Sum(broken), h.step(t, broken, "ana", "ben"), wire.BadPolicy},
		{"no signature", pin, h.step(t, raw), wire.NoQuorum},
		{"one signature", pin, h.step(t, raw, "ana"), wire.NoQuorum},
		{"one signature twice", pin, h.step(t, raw, "ana", "ana"), wire.NoQuorum},
		{"a stranger among the owners", pin, Step{raw, append(h.sign(t, sshsig.ForPolicy, raw, "ben", "eva"), other.sign(t, sshsig.ForPolicy, raw, "ana")...)}, wire.NotOwner},
		{"signed as a cancel statement", pin, Step{raw, h.sign(t, sshsig.ForCancel, raw, "ana", "ben")}, wire.BadSignature},
		{"more signatures than owners", pin, h.step(t, raw, "ana", "ben", "eva", "ana"), wire.TooLarge},
	} {
		t.Run(row.name, func(t *testing.T) {
			a, err := Genesis(row.pin, row.step)
			policytest.Refused(t, err, row.want)
			if a.Genuine() {
				t.Error("got an approved policy beside the error")
			}
		})
	}
}

// TestOwnerActions is case 23 of the threat model, without the expired window, which the tests of
// proposals cover.
func TestOwnerActions(t *testing.T) {
	h := newHouse()
	a := h.found(t)
	raw := h.next(t, a)
	comment := append(bytes.Clone(raw), "# reformatted\n"...)

	_, err := a.Next(h.step(t, raw, "eva"))
	policytest.Refused(t, err, wire.NoQuorum)
	var r *attest.Refusal
	if !errors.As(err, &r) || r.Got != "1 of 2 (eva)" || r.Want != "1 more of ana, ben" {
		t.Errorf("got %v, want who signed and who is missing", err)
	}
	_, err = a.Next(h.step(t, raw, "eva", "eva"))
	policytest.Refused(t, err, wire.NoQuorum)
	_, err = a.Next(Step{comment, h.sign(t, sshsig.ForPolicy, raw, "ana", "ben")})
	policytest.Refused(t, err, wire.BadSignature)
	if _, err = a.Next(h.step(t, raw, "eva", "eva", "ben")); err != nil {
		t.Errorf("a quorum and one of it twice: %v", err)
	}
}

func TestNextRefusals(t *testing.T) {
	h := newHouse()
	a := h.found(t)
	previous := `previous     = "` + a.Document().Digest().String() + `"`
	for _, row := range []struct {
		name  string
		edits []string
		want  attest.Reason
	}{
		{"another trust domain", []string{`trust_domain = "clinic.example"`, `trust_domain = "bank.example"`}, wire.WrongDomain},
		{"a sequence left out", []string{"sequence     = 2", "sequence     = 3"}, wire.WrongSequence},
		{"the genesis again", []string{"sequence     = 2", "sequence     = 1", previous, `previous = ""`}, wire.WrongSequence},
		{"another previous", []string{previous, `previous = "` + policytest.Digest("a").String() + `"`}, wire.WrongSequence},
		{"created before", []string{"2026-11-22T09:00:00Z", "2026-11-22T08:59:59Z"}, wire.BadPolicy},
		{"no policy", []string{"quorum = 2", "quorum = 4"}, wire.BadPolicy},
	} {
		t.Run(row.name, func(t *testing.T) {
			raw := h.next(t, a)
			for i := 0; i < len(row.edits); i += 2 {
				if !bytes.Contains(raw, []byte(row.edits[i])) {
					t.Fatalf("the next policy has no %q", row.edits[i])
				}
				raw = bytes.Replace(raw, []byte(row.edits[i]), []byte(row.edits[i+1]), 1)
			}
			_, err := a.Next(h.step(t, raw, "ana", "ben"))
			policytest.Refused(t, err, row.want)
		})
	}
}

func TestDevelopmentStays(t *testing.T) {
	a := newHouse().found(t)
	a.doc.Development = false // a development policy can name no other platform
	h := newHouse()
	raw := h.next(t, a)
	_, err := a.successor(raw)
	policytest.Refused(t, err, wire.BadPolicy)
}

// TestQuorumOfTheOwnersBefore: signatures of the new policy's owners are refused, those of the
// old policy's owners count.
func TestQuorumOfTheOwnersBefore(t *testing.T) {
	h := newHouse()
	a := h.found(t)
	h.Owners["new"] = policytest.Fixed("new")
	newKey := policytest.KeyLine(h.Owners["new"].PublicKey())
	raw := h.next(t, a, `name = "ana", ssh = "ANA"`, `name = "new", ssh = "`+newKey+`"`)

	_, err := a.Next(h.step(t, raw, "new", "ben"))
	policytest.Refused(t, err, wire.NotOwner)
	b, err := a.Next(h.step(t, raw, "ana", "ben"))
	if err != nil {
		t.Fatal(err)
	}
	raw = bytes.Replace(raw, []byte("sequence     = 2"), []byte("sequence = 3"), 1)
	raw = bytes.Replace(raw, []byte(a.Document().Digest().String()), []byte(b.Document().Digest().String()), 1)
	_, err = b.Next(h.step(t, raw, "ana", "ben"))
	policytest.Refused(t, err, wire.NotOwner)
	if _, err = b.Next(h.step(t, raw, "new", "ben")); err != nil {
		t.Error(err)
	}
}

func TestHistory(t *testing.T) {
	h := newHouse()
	a := h.found(t)
	raw := h.next(t, a)
	b, err := a.Next(h.step(t, raw, "ana", "eva"))
	if err != nil {
		t.Fatal(err)
	}
	fork, err := a.Next(h.step(t, append(bytes.Clone(raw), "# fork\n"...), "ana", "eva"))
	if err != nil {
		t.Fatal(err)
	}

	zero, genesis, second := attest.Digest{}, a.Genesis(), wire.Sum(raw)
	first := wire.Hash(wire.LabelHistory, zero[:], genesis[:])
	if got := a.PolicyHead(); got != first {
		t.Errorf("got head %v after the genesis, want %v", got, first)
	}
	if got, want := b.PolicyHead(), wire.Hash(wire.LabelHistory, first[:], second[:]); got != want {
		t.Errorf("got head %v after step 2, want %v", got, want)
	}
	for _, row := range []struct {
		name string
		a    Approved
		head attest.Digest
		want bool
	}{
		{"nothing seen", a, zero, true},
		{"own head", b, b.PolicyHead(), true},
		{"older head", b, a.PolicyHead(), true},
		{"newer head", a, b.PolicyHead(), false},
		{"fork", b, fork.PolicyHead(), false},
		{"fork, asked there", fork, b.PolicyHead(), false},
	} {
		if got := row.a.Knows(row.head); got != row.want {
			t.Errorf("%s: got %v, want %v", row.name, got, row.want)
		}
	}
	if !b.Founded().Equal(policytest.Start) || b.Genesis() != a.Genesis() {
		t.Error("a later policy has another genesis")
	}

	again, err := Replay(a.Genesis(), b.Steps())
	if err != nil {
		t.Fatal(err)
	}
	if again.PolicyHead() != b.PolicyHead() || !bytes.Equal(again.Document().Source(), raw) {
		t.Error("replaying the steps gives another history")
	}
	_, err = Replay(a.Genesis(), b.Steps()[1:])
	policytest.Refused(t, err, wire.WrongGenesis)
	_, err = Replay(a.Genesis(), append(b.Steps(), fork.Steps()[1]))
	policytest.Refused(t, err, wire.WrongSequence)
	_, err = Replay(a.Genesis(), nil)
	policytest.Refused(t, err, wire.TooLarge)
	_, err = Replay(a.Genesis(), make([]Step, wire.MaxHistory+1))
	policytest.Refused(t, err, wire.TooLarge)
}

// TestThen: AtHead and Since return the history as it was approved at each step.
func TestThen(t *testing.T) {
	h := newHouse()
	first := h.found(t)
	second, err := first.Next(h.step(t, h.next(t, first), "ana", "eva"))
	if err != nil {
		t.Fatal(err)
	}
	third, err := second.Next(h.step(t, h.next(t, second), "ana", "eva"))
	if err != nil {
		t.Fatal(err)
	}
	replayed, err := Replay(first.Genesis(), third.Steps())
	if err != nil {
		t.Fatal(err)
	}
	for name, a := range map[string]Approved{"step by step": third, "replayed": replayed} {
		for i, want := range []Approved{first, second, third} {
			then, known := a.AtHead(want.PolicyHead())
			if !known || then.PolicyHead() != want.PolicyHead() || then.Document().Sequence != want.Document().Sequence || len(then.Steps()) != i+1 {
				t.Errorf("%s: step %d: got head %v of sequence %d, known %v", name, i+1, then.PolicyHead(), i+1, known)
			}
			later, known := a.Since(want.PolicyHead())
			if !known || len(later) != 2-i || len(later) > 0 && (later[0].Document().Sequence != uint64(i)+2 || later[len(later)-1].PolicyHead() != third.PolicyHead()) {
				t.Errorf("%s: got %d steps since step %d, known %v, want %d", name, len(later), i+1, known, 2-i)
			}
		}
	}
	for _, head := range []attest.Digest{{}, policytest.Digest("a"), third.PolicyHead()} {
		if then, known := second.AtHead(head); known || then.Genuine() {
			t.Errorf("got what was in force at %v, want none", head)
		}
		if later, known := second.Since(head); known || len(later) > 0 {
			t.Errorf("got steps since %v, want none", head)
		}
	}
	if then, known := (Approved{}).AtHead(attest.Digest{}); known || then.Genuine() {
		t.Error("the zero Approved looks back on something")
	}
}

// TestSuccessorsShareNothing makes two successors of one policy when the slice of steps has spare
// capacity. They share no memory.
func TestSuccessorsShareNothing(t *testing.T) {
	h := newHouse()
	a := h.found(t)
	grow := func(comment string) Approved {
		raw := h.Text(t, "# Policy of a clinic.", comment, "sequence     = 1", fmt.Sprintf("sequence = %d", a.Document().Sequence+1),
			`previous     = ""`, fmt.Sprintf("previous = %q", a.Document().Digest()))
		b, err := a.Next(h.step(t, raw, "ana", "ben"))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for range 6 {
		x := grow("# one")
		head := x.PolicyHead()
		if y := grow("# two"); y.PolicyHead() == head || x.PolicyHead() != head || !bytes.Contains(x.Steps()[len(x.Steps())-1].Policy, []byte("# one")) {
			t.Fatalf("step %d: two successors share memory", x.Document().Sequence)
		}
		a = x
	}
}

func result(t testing.TB, m attest.Measurement) attest.Result {
	return appraised(t, attest.Claims{Measurement: m})
}

func appraised(t testing.TB, c attest.Claims) attest.Result {
	t.Helper()
	data := attest.BindReportData(wire.LabelIssue)
	c.ReportData = data[:]
	r, err := attest.NewVerifier(attesttest.Vouch(c)).Appraise(attest.Question{
		Evidence: attest.Evidence{Platform: attest.Soft}, ReportData: data, Rules: map[attest.Platform]attest.Rules{attest.Soft: {}}, At: policytest.Start,
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// measured returns a soft measurement.
func measured(agent, program attest.Digest, args ...string) attest.Measurement {
	var fields [][]byte
	for _, a := range args {
		fields = append(fields, []byte(a))
	}
	list := wire.Hash(wire.LabelArguments, fields...)
	m := attest.Measurement{Platform: attest.Soft, Registers: []attest.Register{{Name: "agent"}, {Name: "program", Value: program[:]}, {Name: "args", Value: list[:]}}}
	if !agent.IsZero() {
		m.Registers[0].Value = agent[:]
	}
	return m
}

func TestAdmit(t *testing.T) {
	a := newHouse().found(t)
	agent, none := policytest.Digest("2"), attest.Digest{}
	for _, row := range []struct {
		name    string
		task    string
		claims  attest.Claims
		release string
		want    attest.Reason
		say     string // part of the refusal's text
	}{
		{name: "first release", task: "scoring", claims: attest.Claims{Measurement: measured(agent, policytest.Digest("5"))}, release: "2026.10"},
		{name: "second release", task: "scoring", claims: attest.Claims{Measurement: measured(agent, policytest.Digest("6"), "--model", "m.json")}, release: "2026.11"},
		{name: "second reference value", task: "scoring", claims: attest.Claims{Measurement: measured(agent, policytest.Digest("7"))}, release: "2026.11"},
		{name: "open registers", task: "keys", claims: attest.Claims{Measurement: measured(policytest.Digest("9"), policytest.Digest("4"), "-v")}, release: "1.4"},
		{name: "dynamic where policy says so", task: "scoring", claims: attest.Claims{Measurement: measured(agent, policytest.Digest("7")), Dynamic: true}, release: "2026.11"},
		{name: "dynamic elsewhere", task: "scoring", claims: attest.Claims{Measurement: measured(agent, policytest.Digest("5")), Dynamic: true}, want: wire.NotMeasured, say: "dynamic = true in release 2026.10"},
		{name: "unknown task", task: "score", claims: attest.Claims{Measurement: measured(agent, policytest.Digest("5"))}, want: wire.NotFound},
		{name: "code of another task", task: "keys", claims: attest.Claims{Measurement: measured(agent, policytest.Digest("5"))}, want: wire.NotMeasured, say: "program"},
		{name: "other arguments", task: "scoring", claims: attest.Claims{Measurement: measured(agent, policytest.Digest("6"), "--model", "n.json")}, want: wire.NotMeasured, say: "args"},
		{name: "arguments joined", task: "scoring", claims: attest.Claims{Measurement: measured(agent, policytest.Digest("6"), "--model m.json")}, want: wire.NotMeasured, say: "args"},
		{name: "no agent", task: "scoring", claims: attest.Claims{Measurement: measured(none, policytest.Digest("7"))}, want: wire.NotMeasured, say: `agent: got "none"`},
		{name: "code of the authority", task: "scoring", claims: attest.Claims{Measurement: measured(none, agent)}, want: wire.NotMeasured},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := appraised(t, row.claims)
			grant, err := a.Admit(row.task, r)
			// CouldAdmit agrees with Admit, except for dynamic code, which needs an appraisal.
			if could := a.CouldAdmit(row.task, row.claims.Measurement); (could == nil) != (err == nil) && !row.claims.Dynamic {
				t.Errorf("before appraisal: got %v, want as after it: %v", could, err)
			} else if could != nil {
				policytest.Refused(t, could, row.want)
			}
			if row.want != "" {
				policytest.Refused(t, err, row.want)
				if !strings.Contains(err.Error(), row.say) || grant.Task != nil {
					t.Errorf("got %v with grant %v, want %q and none", err, grant, row.say)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if grant.Task.Name != row.task || grant.Release.Name != row.release || !grant.Result.Appraised() {
				t.Errorf("got %s release %s, want %s release %s", grant.Task.Name, grant.Release.Name, row.task, row.release)
			}
		})
	}
	policytest.Refused(t, Approved{}.CouldAdmit("scoring", measured(agent, policytest.Digest("5"))), wire.BadPolicy)
	policytest.Refused(t, Approved{}.CouldAdmitMember("trial", "scorer", measured(agent, policytest.Digest("5"))), wire.BadPolicy)
	_, err := a.Admit("scoring", attest.Result{})
	var r *attest.Refusal
	if !errors.As(err, &r) || r.Rule != "admission: attestation result" {
		t.Errorf("got %v, want the zero result refused as such", err)
	}
}

func TestAdmitAuthority(t *testing.T) {
	h := newHouse()
	a := h.found(t)
	draft, err := policydraft.Parse(h.Text(t))
	if err != nil {
		t.Fatal(err)
	}
	own := measured(attest.Digest{}, policytest.Digest("2"))
	on := func(chip string, m attest.Measurement) attest.Result {
		return appraised(t, attest.Claims{Measurement: m, Chip: chip})
	}
	const named = "0123456789abcdef"
	for _, admit := range []func(attest.Result) error{a.AdmitAuthority, draft.AdmitAuthority} {
		if err := admit(on(named, own)); err != nil {
			t.Error(err)
		}
		policytest.Refused(t, admit(on(named, measured(policytest.Digest("2"), policytest.Digest("5")))), wire.NotMeasured)
		policytest.Refused(t, admit(on(named, measured(attest.Digest{}, policytest.Digest("2"), "-v"))), wire.NotMeasured)
		policytest.Refused(t, admit(appraised(t, attest.Claims{Measurement: own, Dynamic: true, Chip: named})), wire.NotMeasured)
		policytest.Refused(t, admit(attest.Result{}), wire.NotMeasured)
		for _, other := range []string{"", "0123456789abcde", "0123456789abcdee", "chip:" + named, "vlek:aws"} {
			policytest.Refused(t, admit(on(other, own)), wire.WrongChip)
		}
	}
	anywhere := mustParse(t, h.Text(t, `["chip:0123456789abcdef"]`, `"any"`))
	if err := anywhere.Authority.Admit(on("fedcba9876543210", own)); err != nil {
		t.Error(err)
	}
	policytest.Refused(t, policydraft.Draft{}.AdmitAuthority(on(named, own)), wire.BadPolicy)
	policytest.Refused(t, Approved{}.AdmitAuthority(on(named, own)), wire.BadPolicy)
}

// TestNearestReference: the refusal names the register that differs from the nearest reference
// value.
func TestNearestReference(t *testing.T) {
	a := newHouse().found(t)
	_, err := a.Admit("scoring", result(t, measured(policytest.Digest("2"), policytest.Digest("8"), "--model", "m.json")))
	var r *attest.Refusal
	if !errors.As(err, &r) || r.Rule != "measurement: program" || r.Got != policytest.Digest("8").String() || r.Want != policytest.Digest("6").String() {
		t.Errorf("got %v, want the program of the reference value with the same arguments", err)
	}
}

func TestRulesAreACopy(t *testing.T) {
	a := newHouse().found(t)
	delete(a.Rules(), attest.Soft)
	if rules, ok := a.Rules()[attest.Soft]; !ok || len(rules.Roots) != 1 || !rules.Debug {
		t.Errorf("got rules %+v, want the policy's", rules)
	}
}
