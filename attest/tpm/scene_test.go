package tpm

import (
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// scene is a booted machine with a software TPM, and a verifier that accepts its manufacturer.
type scene struct {
	*attesttest.TPM
	t     testing.TB
	maker *attesttest.TPMMaker
	rules attest.Rules
	at    time.Time
}

var data = attest.BindReportData(wire.LabelIssue, []byte("a use"))

func newScene(t testing.TB) *scene {
	maker := attesttest.NewTPMMaker(t)
	s := &scene{TPM: maker.TPM(t), t: t, maker: maker, at: time.Now()}
	s.boot("quiet")
	s.rules = attest.Rules{Roots: []attest.Digest{maker.Root(t)}, TPM: attest.TPMRules{Launches: []attest.ReferenceValue{s.reference("agent", "one"), s.reference("agent", "two")}}}
	return s
}

// boot boots the machine with a kernel command line.
func (s *scene) boot(commandLine string) {
	s.Boot(s.t)
	s.Extend(s.t, 0, "firmware")
	s.Extend(s.t, 4, "loader")
	s.Extend(s.t, 8, commandLine)
	s.Extend(s.t, 9, "kernel")
}

func (s *scene) machine() Machine { return Machine{Path: s.Path, Log: s.Log} }

func program(agent, name string) Launch {
	return Launch{Agent: wire.Sum([]byte(agent)), Program: wire.Sum([]byte(name)), Arguments: Arguments(nil)}
}

// reference returns the reference value of a program on the machine as it is booted now.
func (s *scene) reference(agent, name string) attest.ReferenceValue {
	s.t.Helper()
	m, err := s.machine().BootMeasurement(program(agent, name))
	if err != nil {
		s.t.Fatal(err)
	}
	return m
}

// launch starts a program.
func (s *scene) launch(agent, name string) *Device {
	s.t.Helper()
	d, err := NewDevice(Config{Machine: s.machine(), CA: s.maker.CA(s.t), Launch: program(agent, name)})
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

// secret returns the secret that the verifier puts into a credential.
func secret(in attest.TPMKeys) []byte {
	d := wire.Hash(wire.LabelActivate, in.Device, in.Key)
	return d[:]
}

// evidence returns a device's evidence, with the secret of a credential made for it.
func (s *scene) evidence(d *Device) attest.Evidence {
	s.t.Helper()
	in := d.TPMKeys()
	credential, err := new(quoteAppraiser).Credential(in, secret(in))
	if err != nil {
		s.t.Fatal(err)
	}
	e, err := d.AttestFor(s.t.Context(), data, credential)
	if err != nil {
		s.t.Fatal(err)
	}
	return e
}

// appraise appraises evidence with the real verifier.
func (s *scene) appraise(e attest.Evidence) (attest.Result, error) {
	return attest.NewVerifier(new(quoteAppraiser)).Appraise(attest.Question{
		Evidence: e, ReportData: data, Rules: map[attest.Platform]attest.Rules{attest.TPM: s.rules}, At: s.at, Secret: secret,
	})
}

func TestAdmitted(t *testing.T) {
	s := newScene(t)
	for _, name := range []string{"one", "one", "one", "two"} {
		r, err := s.appraise(s.evidence(s.launch("agent", name)))
		if err != nil {
			t.Fatal(err)
		}
		if err := attest.Match(s.reference("agent", name), r.Measurement()); err != nil {
			t.Error(err)
		}
	}
}
