package clientcmd

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/clitest"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

func FuzzReadReceipt(f *testing.F) {
	f.Add([]byte(`{"schema":"cohort/receipt/v1","at":"2026-11-22T09:00:00Z","request":"","response":"","receipt":"","authority_root":"","policy_history":{}}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		_, trust, err := readReceipt(content)
		if err == nil && (!trust.Policy.Genuine() || trust.Root == nil) {
			t.Error("a receipt without history and root was accepted")
		}
	})
}

// remembered writes a history as a client's state.
func remembered(t *testing.T, p policy.Approved) string {
	t.Helper()
	state := struct {
		Schema   string             `json:"schema"`
		Genesis  wire.Digest        `json:"genesis"`
		Head     wire.Digest        `json:"head"`
		Sequence uint64             `json:"sequence"`
		Steps    []api.HistoryEntry `json:"steps"`
	}{client.StateSchema, p.Genesis(), p.PolicyHead(), p.Document().Sequence, nil}
	for _, step := range p.Steps() {
		state.Steps = append(state.Steps, api.HistoryEntry{Policy: step.Policy, Signatures: step.Signatures})
	}
	b, err := json.Marshal(state)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "seen.json")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestReceiptByTheNewestPolicy: a receipt is verified by the newer one of the history that
// its file brings and the one that was seen here.
func TestReceiptByTheNewestPolicy(t *testing.T) {
	first, second, fork := clitest.ApprovedForks(t)
	other, _ := clitest.ApprovedTwice(t)
	for _, row := range []struct {
		name          string
		seen, brought policy.Approved
		want          policy.Approved
		no            wire.Reason // or this
	}{
		{"nothing seen", policy.Approved{}, first, first, ""},
		{"older seen", first, second, second, ""},
		{"newer seen", second, first, second, ""},
		{"of another genesis", second, other, policy.Approved{}, wire.WrongGenesis},
		{"a fork", second, fork, policy.Approved{}, wire.Behind},
	} {
		t.Run(row.name, func(t *testing.T) {
			pins := authorityclient.Pins{State: filepath.Join(t.TempDir(), "none")}
			if row.seen.Genuine() {
				pins.State = remembered(t, row.seen)
			}
			got, err := newestPolicy((&frame.App{}), pins, unitauth.Pin{Genesis: first.Genesis()}, row.brought)
			if row.no != "" {
				if err == nil || wire.ReasonOf(err) != row.no {
					t.Errorf("got %v, want a refusal [%s]", err, row.no)
				}
				return
			}
			if err != nil || got.PolicyHead() != row.want.PolicyHead() {
				t.Errorf("got head %v, %v, want %v", got.PolicyHead(), err, row.want.PolicyHead())
			}
		})
	}
}

// TestLaterText: the step that cut the unit of a receipt off later is in the output.
func TestLaterText(t *testing.T) {
	created := frame.RFC3339(time.Date(2026, 11, 22, 13, 0, 0, 0, time.UTC))
	for want, later := range map[string]*laterView{
		"": nil,
		"since then   refused by policy 7 of " + created + ": cut-off: unit\n":                        {7, created, false, "cut-off", "cut-off: unit"},
		"since then   refused by a party's statement after policy 7: withdrawn: statement of north\n": {7, created, true, "withdrawn", "withdrawn: statement of north"},
	} {
		if got := later.String(); got != want || strings.Contains(got, "%") {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
