package cli

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/tpm"
	"github.com/cohort-tee/cohort/internal/cli/clitest"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestEvidenceOfATPM: whether a TPM keeps the key that signed its evidence shows in a
// credential, of which a file holds no secret. So such evidence does not hold with the
// right report data; with other report data it is refused.
func TestEvidenceOfATPM(t *testing.T) {
	maker := attesttest.NewTPMMaker(t)
	made := maker.TPM(t)
	machine := tpm.Machine{Path: made.Path, Log: made.Log}
	launch := tpm.Launch{Program: wire.Sum([]byte("scoring")), Arguments: tpm.Arguments(nil)}
	device, err := tpm.NewDevice(tpm.Config{Machine: machine, CA: maker.CA(t), Launch: launch})
	if err != nil {
		t.Fatal(err)
	}
	reference, err := localtee.TPMReference(machine, localtee.Measurement{Program: launch.Program.String()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	data, in, secret := attest.BindReportData(wire.LabelIssue, []byte("nonce")), device.TPMKeys(), make([]byte, attest.SecretSize)
	credential, err := attest.NewVerifier(tpm.Platform().Appraiser()).Credential(attest.TPM, in, secret)
	if err != nil {
		t.Fatal(err)
	}
	e, err := device.AttestFor(t.Context(), data, credential)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	file := clitest.Write(t, "evidence.json", string(text))
	rules := clitest.Policy[:strings.Index(clitest.Policy, "[platform.")]
	rules += fmt.Sprintf("[platform.tpm]\nroots = [%q]\n[authority]\nroot = %q\nmachines = \"any\"\nreference = [ %s ]\n", maker.Root(t), wire.Sum([]byte("root")), strings.Replace(reference, launch.Program.String(), wire.Sum([]byte("authority")).String(), 1))
	rules += fmt.Sprintf("[task.scoring]\nkey_mode = \"unit\"\n[task.scoring.release.1]\nreference = [ %s ]\n", reference)
	policy := clitest.Write(t, "policy.toml", rules)
	for name, row := range map[string]struct {
		data string
		says []string
	}{
		"its own use":   {hex.EncodeToString(data[:]), []string{"verdict      not bound", "[not-bound]", "a credential", "task scoring, release 1"}},
		"another's use": {strings.Repeat("01", 64), []string{"[nonce]"}},
	} {
		got := run(t, nil, "evidence", "appraise", file, "--policy", policy, "--at", time.Now().UTC().Format(time.RFC3339), "--report-data", row.data)
		for _, says := range row.says {
			if got.exit != frame.ExitRefused || !strings.Contains(got.out+got.talk, says) {
				t.Errorf("%s: got exit %d, want it to say %q\n%s%s", name, got.exit, says, got.out, got.talk)
			}
		}
	}
}
