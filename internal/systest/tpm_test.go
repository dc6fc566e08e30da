package systest

import (
	"crypto/x509"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/tpm"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/unit"
)

// newMachine returns vendors with a software TPM, on a machine that has booted.
func newMachine(t *testing.T) *vendors {
	t.Helper()
	v := newVendors(t)
	v.host, v.maker = t, attesttest.NewTPMMaker(t)
	v.tpm = v.maker.TPM(t)
	v.pass(time.Minute) // its certificates begin later than the test's clock
	v.boot("quiet")
	return v
}

// boot boots the machine with a kernel command line.
func (v *vendors) boot(commandLine string) {
	v.tpm.Boot(v.host)
	v.tpm.Extend(v.host, 4, "loader")
	v.tpm.Extend(v.host, 8, commandLine)
}

func (v *vendors) machine() tpm.Machine { return tpm.Machine{Path: v.tpm.Path, Log: v.tpm.Log} }

// launchOf is the launch of a program.
func launchOf(program string) tpm.Launch {
	return tpm.Launch{Program: wire.Sum([]byte(program)), Arguments: tpm.Arguments(nil)}
}

// launch launches a program beside the TPM, and returns the measurement that a policy must
// name.
func (v *vendors) launch(program string) (*tpm.Device, attest.Measurement) {
	v.host.Helper()
	m := v.measured(program)
	d, err := tpm.NewDevice(tpm.Config{Machine: v.machine(), CA: v.maker.CA(v.host), Launch: launchOf(program)})
	if err != nil {
		v.host.Fatal(err)
	}
	return d, m
}

// measured returns the measurement that a policy must name for a program, without launching
// it.
func (v *vendors) measured(program string) attest.Measurement {
	v.host.Helper()
	m, err := v.machine().BootMeasurement(launchOf(program))
	if err != nil {
		v.host.Fatal(err)
	}
	return m
}

// tpmReference returns a measurement in policy syntax.
func tpmReference(m attest.Measurement) string {
	var boot []string
	for _, r := range m.Registers {
		if number, is := strings.CutPrefix(r.Name, "pcr"); is {
			boot = append(boot, fmt.Sprintf("%s = \"sha256:%x\"", number, r.Value))
		}
	}
	program := m.Registers[len(m.Registers)-2]
	return fmt.Sprintf("{ platform = \"tpm\", boot = { %s }, program = \"sha256:%x\" }", strings.Join(boot, ", "), program.Value)
}

// TestTPMCutOff: a device that owners cut off gets no further certificate.
func TestTPMCutOff(t *testing.T) {
	v := newMachine(t)
	e := settle(t, v, attest.Nitro, attest.TPM)
	if _, err := e.enrol(attest.TPM, "scoring 1"); err != nil {
		t.Fatal(err)
	}
	device, _ := v.launch("scoring 1")
	endorsement, err := x509.ParseCertificate(device.TPMKeys().Device)
	if err != nil {
		t.Fatal(err)
	}
	const table = "[platform.tpm]\n"
	next := e.NextPolicy(table, fmt.Sprintf("%scut_chips = [%q]\n", table, wire.Sum(endorsement.RawSubjectPublicKeyInfo)))
	wantCut(t, e.Steps[0], next)
	push(t, e.Cluster, next)
	_, err = e.enrol(attest.TPM, "scoring 1")
	testworld.Refused(t, err, wire.NoPlatform)
}

// TestTPM: authority and units on one TPM. Restarts, a second task on the machine and a
// client are served. A program that the policy does not name and a changed kernel command
// line are refused, each with its own reason. A machine that booted differently does not
// get the root secret.
func TestTPM(t *testing.T) {
	v := newMachine(t)
	e := settle(t, v, attest.TPM)
	var u *unit.Unit
	for range 4 { // and three restarts
		var err error
		if u, err = e.enrol(attest.TPM, "scoring 1"); err != nil {
			t.Fatal(err)
		}
	}
	address := serve(t, u, "tpm")
	got, err := get(t, e.dial(address), "https://"+ServerName("scoring")+"/")
	if err != nil || got != "tpm" {
		t.Errorf("got %q, %v", got, err)
	}
	t.Run("fresh evidence in a session", func(t *testing.T) { testTPMSession(t, e.trust(), address) })
	t.Run("the root comes back from its owner's share", func(t *testing.T) { testTPMRestore(t, e) })
	t.Run("a second task, then one that policy does not name", func(t *testing.T) {
		if _, err := e.enrol(attest.TPM, "authority"); wire.ReasonOf(err) != wire.NotMeasured || !strings.Contains(err.Error(), "measurement: program") {
			t.Errorf("the authority's program as a unit: %v", err)
		}
		if _, err := e.enrol(attest.TPM, "scoring 1"); err != nil {
			t.Errorf("after another program of the policy: %v", err)
		}
		v.launch("a stranger")
		_, err := e.enrol(attest.TPM, "scoring 1")
		wantRule(t, err, wire.NotMeasured, "since boot")
	})
	t.Run("another kernel command line", func(t *testing.T) {
		v.boot("quiet init=/bin/sh")
		_, err := e.enrol(attest.TPM, "scoring 1")
		wantRule(t, err, wire.NotMeasured, "measurement: pcr8")
		_, err = e.unseal("authority")
		wantRule(t, err, wire.NotMeasured, "measurement: pcr8")
	})
	t.Run("the machine as it was", func(t *testing.T) {
		v.boot("quiet")
		if _, err := e.enrol(attest.TPM, "scoring 1"); err != nil {
			t.Error(err)
		}
		if _, err := e.unseal("authority"); err != nil {
			t.Error(err)
		}
		_, err := e.unseal("scoring 1")
		wantRule(t, err, wire.NotMeasured, "measurement: program")
	})
}

// unseal unseals the root secret as a new start of a program.
func (e *estate) unseal(program string) ([]byte, error) {
	e.t.Helper()
	row, err := e.db.RootRow(e.t.Context())
	if err != nil {
		e.t.Fatal(err)
	}
	tee, _ := e.launch(program)
	return tee.Unseal(e.t.Context(), row.Content)
}

func wantRule(t *testing.T, err error, reason wire.Reason, rule string) {
	t.Helper()
	if wire.ReasonOf(err) != reason || !strings.Contains(fmt.Sprint(err), rule) {
		t.Errorf("got %v, want %s: … %s", err, reason, rule)
	}
}
