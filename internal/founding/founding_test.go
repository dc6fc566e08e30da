package founding

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/soft"
	"github.com/cohort-tee/cohort/attest/tpm"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policydraft"
)

// noEndorsements is a vendor that says nothing beside evidence.
func noEndorsements(context.Context, attest.Evidence) (attest.Endorsements, error) { return nil, nil }

// draftOf is a draft of one platform, with the rest of its table, and the machines
// and the program of its authority.
func draftOf(t *testing.T, platform, rules, machines, reference string) policydraft.Draft {
	t.Helper()
	edits := []string{"[platform.soft]\nroots = [\"VENDOR\"]\n", fmt.Sprintf("[platform.%s]\n%s\n", platform, rules),
		`machines = "any"`, "machines = " + machines, `{ platform = "soft", program = "authority" }`, reference}
	if platform != string(attest.Soft) {
		edits = append(edits, "development  = true\n", "")
	}
	return testworld.Must(policydraft.Parse([]byte(testworld.New(t).PolicyText("", "", edits...))))
}

// site is a machine of the development TEE that made a root, and a founder.
type site struct {
	t       *testing.T
	vendor  *attesttest.Vendor
	chip    *attesttest.Chip
	draft   policydraft.Draft
	root    wire.Digest
	founder Founder
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, vendor: attesttest.NewVendor(), root: wire.Sum([]byte("root"))}
	s.chip = s.vendor.Chip()
	s.draft = s.softDraft(soft.ChipOf(s.vendor.Root()), "authority")
	s.founder = Founder{Verifier: attesttest.Verifier(tpm.Platform().Appraiser()), Key: bytes.Repeat([]byte{7}, KeySize), At: time.Now()}
	return s
}

func (s *site) softDraft(chip, program string) policydraft.Draft {
	s.t.Helper()
	return draftOf(s.t, "soft", fmt.Sprintf("roots = [%q]", s.vendor.Root()), fmt.Sprintf("[\"chip:%s\"]", chip),
		fmt.Sprintf("{ platform = \"soft\", program = %q }", wire.Sum([]byte(program))))
}

// made is what init prints: a program's evidence over root and draft.
func (s *site) made(program string, root, draft wire.Digest, faults attesttest.Faults) Root {
	s.t.Helper()
	tee := s.chip.Attester(attesttest.Measure(program))
	tee.Faults = faults
	return testworld.Must(MakeRoot(s.t.Context(), tee, tee, root, draft, noEndorsements))
}

func (s *site) good() Root {
	return s.made("authority", s.root, s.draft.Digest(), attesttest.Faults{})
}

// TestCheck fills the root into the founder's own draft, also into one that another
// founder has filled, and changes nothing else.
func TestCheck(t *testing.T) {
	s := newSite(t)
	r := testworld.Must(ParseRoot(s.good().Bytes()))
	genesis, challenge, err := s.founder.Check(s.draft, r, nil)
	if err != nil || challenge != nil || !bytes.Equal(genesis, testworld.Must(s.draft.WithRoot(s.root))) {
		t.Fatalf("got\n%s\nchallenge %v, %v", genesis, challenge, err)
	}
	again, _, err := s.founder.Check(testworld.Must(policydraft.Parse(genesis)), r, nil)
	if err != nil || !bytes.Equal(again, genesis) {
		t.Errorf("the genesis itself: %v", err)
	}
}

// TestCheckRefusals changes one thing of what init printed, or of the draft.
func TestCheckRefusals(t *testing.T) {
	s := newSite(t)
	other := wire.Sum([]byte("other"))
	rows := []struct {
		name string
		made func() (policydraft.Draft, Root)
		want wire.Reason
	}{
		{"made for another draft", func() (policydraft.Draft, Root) {
			return s.draft, s.made("authority", s.root, other, attesttest.Faults{})
		}, wire.WrongDraft},
		{"another root put in", func() (policydraft.Draft, Root) { r := s.good(); r.Root = other; return s.draft, r }, wire.BadNonce},
		{"evidence for another draft, and the draft's digest put in", func() (policydraft.Draft, Root) {
			r := s.made("authority", s.root, other, attesttest.Faults{})
			r.Draft = s.draft.Digest()
			return s.draft, r
		}, wire.BadNonce},
		{"a program that the draft does not name", func() (policydraft.Draft, Root) {
			return s.draft, s.made("evil", s.root, s.draft.Digest(), attesttest.Faults{})
		}, wire.NotMeasured},
		{"a machine that the draft does not name", func() (policydraft.Draft, Root) {
			d := s.softDraft("0123456789abcdef", "authority")
			return d, s.made("authority", s.root, d.Digest(), attesttest.Faults{})
		}, wire.WrongChip},
		{"a platform root that the draft does not name", func() (policydraft.Draft, Root) {
			return s.draft, s.made("authority", s.root, s.draft.Digest(), attesttest.Faults{OtherRoot: true})
		}, wire.UnknownRoot},
		{"a TEE that its host can read", func() (policydraft.Draft, Root) {
			return s.draft, s.made("authority", s.root, s.draft.Digest(), attesttest.Faults{Debug: true})
		}, wire.Debug},
		{"a file that names another root", func() (policydraft.Draft, Root) {
			return testworld.Must(policydraft.Parse(testworld.Must(s.draft.WithRoot(other)))), s.good()
		}, wire.WrongRoot},
		{"no draft", func() (policydraft.Draft, Root) { return policydraft.Draft{}, s.good() }, wire.WrongDraft},
		{"evidence of a restore request", func() (policydraft.Draft, Root) {
			tee, r := s.chip.Attester(attesttest.Measure("authority")), s.good()
			draft := s.draft.Digest()
			r.Evidence = testworld.Must(testworld.Must(tee.Attest(t.Context(), attest.BindReportData(wire.LabelRestore, s.root[:], draft[:]))).MarshalJSON())
			return s.draft, r
		}, wire.BadNonce},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			d, r := row.made()
			genesis, challenge, err := s.founder.Check(d, r, nil)
			testworld.Refused(t, err, row.want)
			if genesis != nil || challenge != nil {
				t.Error("got something to sign, or a challenge, with an error")
			}
		})
	}
}

// machine is a computer with a TPM.
type machine struct {
	t     *testing.T
	maker *attesttest.TPMMaker
	tpm   *attesttest.TPM
}

func newMachine(t *testing.T, maker *attesttest.TPMMaker) machine {
	t.Helper()
	m := machine{t, maker, maker.TPM(t)}
	m.tpm.Extend(t, 4, "loader")
	return m
}

// launch starts the authority's program, and says what policy has to name.
func (m machine) launch() (*tpm.Device, attest.Measurement) {
	m.t.Helper()
	at := tpm.Machine{Path: m.tpm.Path, Log: m.tpm.Log}
	l := tpm.Launch{Program: wire.Sum([]byte("authority")), Arguments: tpm.Arguments(nil)}
	measured := testworld.Must(at.BootMeasurement(l))
	return testworld.Must(tpm.NewDevice(tpm.Config{Machine: at, CA: m.maker.CA(m.t), Launch: l})), measured
}

// draft names the program beside TPMs of a maker.
func (m machine) draft(measured attest.Measurement, machines string) policydraft.Draft {
	m.t.Helper()
	var boot []string
	for _, r := range measured.Registers {
		if number, is := strings.CutPrefix(r.Name, "pcr"); is {
			boot = append(boot, fmt.Sprintf("%s = \"sha256:%x\"", number, r.Value))
		}
	}
	program := measured.Registers[len(measured.Registers)-2]
	return draftOf(m.t, "tpm", fmt.Sprintf("roots = [%q]", m.maker.Root(m.t)), machines,
		fmt.Sprintf("{ platform = \"tpm\", boot = { %s }, program = \"sha256:%x\" }", strings.Join(boot, ", "), program.Value))
}

// TestChallenged: beside a TPM a founder signs when the TPM of the evidence opened
// the founder's own challenge, in another start of the program, and not before.
func TestChallenged(t *testing.T) {
	maker := attesttest.NewTPMMaker(t)
	m, elsewhere := newMachine(t, maker), newMachine(t, maker)
	first, measured := m.launch()
	draft := m.draft(measured, `"any"`)
	s := newSite(t)
	s.founder.At = time.Now().Add(time.Minute) // the maker's certificates begin now
	r := testworld.Must(ParseRoot(testworld.Must(MakeRoot(t.Context(), first, first, s.root, draft.Digest(), noEndorsements)).Bytes()))

	genesis, challenge, err := s.founder.Check(draft, r, nil)
	if err != nil || genesis != nil || challenge == nil {
		t.Fatalf("got genesis %q, challenge %v, %v, want a challenge alone", genesis, challenge, err)
	}
	asked := testworld.Must(ParseChallenge(challenge.Bytes()))
	later, _ := m.launch()
	proof := testworld.Must(ParseProof(testworld.Must(OpenChallenge(t.Context(), later, later, asked)).Bytes()))
	genesis, _, err = s.founder.Check(draft, r, &proof)
	if err != nil || !bytes.Equal(genesis, testworld.Must(draft.WithRoot(s.root))) {
		t.Fatalf("after the answer: %v", err)
	}

	t.Run("refusals", func(t *testing.T) {
		guessed := proof
		guessed.Secret = make([]byte, attest.SecretSize)
		empty := proof
		empty.Secret = nil
		another := s.founder
		another.Key = bytes.Repeat([]byte{8}, KeySize)
		nobody := s.founder
		nobody.Key = nil
		for name, row := range map[string]struct {
			founder Founder
			proof   Proof
			want    wire.Reason
		}{
			"a guess":                     {s.founder, guessed, wire.WrongChip},
			"no secret":                   {s.founder, empty, wire.WrongChip},
			"the proof for somebody else": {another, proof, wire.WrongChip},
			"a founder without a key":     {nobody, Proof{}, wire.BadRequest},
		} {
			genesis, _, err := row.founder.Check(draft, r, &row.proof)
			if genesis != nil {
				t.Errorf("%s: got something to sign", name)
			}
			testworld.Refused(t, err, row.want)
		}
		stranger, _ := elsewhere.launch()
		_, err := OpenChallenge(t.Context(), stranger, stranger, asked)
		if err == nil {
			t.Error("another TPM opened the challenge")
		}
	})
	t.Run("named machine", func(t *testing.T) {
		chip := wire.Sum(testworld.Must(x509.ParseCertificate(first.TPMKeys().Device)).RawSubjectPublicKeyInfo)
		for machines, want := range map[string]wire.Reason{fmt.Sprintf("[\"chip:%s\"]", chip.Hex()): "", fmt.Sprintf("[\"chip:%s\"]", strings.Repeat("0", 64)): wire.WrongChip} {
			d := m.draft(measured, machines)
			device, _ := m.launch()
			r := testworld.Must(MakeRoot(t.Context(), device, device, s.root, d.Digest(), noEndorsements))
			_, challenge, err := s.founder.Check(d, r, nil)
			if want == "" && (err != nil || challenge == nil) || want != "" && wire.ReasonOf(err) != want {
				t.Errorf("machines = %s: got challenge %v, %v, want reason %q", machines, challenge != nil, err, want)
			}
		}
	})
}

// TestNotChallenged: a TEE whose keys are bound otherwise opens nothing.
func TestNotChallenged(t *testing.T) {
	s := newSite(t)
	tee := s.chip.Attester(attesttest.Measure("authority"))
	_, err := OpenChallenge(t.Context(), tee, tee, Challenge{Schema: SchemaChallenge})
	testworld.Refused(t, err, wire.NoPlatform)
}

// FuzzParse reads the three files: what is read is written and read as the same.
func FuzzParse(f *testing.F) {
	digest := wire.Sum([]byte("x"))
	f.Add(Root{Schema: SchemaRoot, Root: digest, Draft: digest, Evidence: []byte(`["a","b"]`), SealedKey: []byte{1}}.Bytes())
	f.Add(Challenge{Schema: SchemaChallenge, Root: digest, Draft: digest, Credential: []byte{1}, SealedKey: []byte{2}}.Bytes())
	f.Add(Proof{Schema: SchemaProof, Root: digest, Draft: digest, Secret: []byte{1}}.Bytes())
	f.Add([]byte(`{"schema":"cohort/init-proof/v1"}{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := ParseRoot(b); err == nil {
			if again, err := ParseRoot(r.Bytes()); err != nil || !bytes.Equal(again.Bytes(), r.Bytes()) {
				t.Errorf("root: %v", err)
			}
		}
		if c, err := ParseChallenge(b); err == nil {
			if again, err := ParseChallenge(c.Bytes()); err != nil || !bytes.Equal(again.Bytes(), c.Bytes()) {
				t.Errorf("challenge: %v", err)
			}
		}
		if p, err := ParseProof(b); err == nil {
			if again, err := ParseProof(p.Bytes()); err != nil || !bytes.Equal(again.Bytes(), p.Bytes()) {
				t.Errorf("proof: %v", err)
			}
		}
	})
}
