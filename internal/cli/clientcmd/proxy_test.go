package clientcmd

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/clitest"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/testworld"
)

// TestProxyFlags: flags that do not go together are refused before anything is fetched.
func TestProxyFlags(t *testing.T) {
	gateway := authorityclient.Gateway{URL: "https://gateway.example"}
	group := authorityclient.Pins{Group: "trial"}
	for name, row := range map[string]struct {
		f    proxyFlags
		isOK bool
	}{
		"a session":                  {proxyFlags{session: sessionFlags{gateway: gateway}, requests: 1}, true},
		"a group's session":          {proxyFlags{pins: group, session: sessionFlags{gateway: gateway, role: "*"}, requests: 1}, true},
		"one-offs":                   {proxyFlags{session: sessionFlags{gateway: gateway}, oneOff: true, requests: 1}, true},
		"direct":                     {proxyFlags{direct: true, addresses: []string{"a:1"}, requests: 1}, true},
		"no gateway":                 {proxyFlags{requests: 1}, false},
		"direct and one-off":         {proxyFlags{direct: true, oneOff: true, requests: 1}, false},
		"direct, trust by a gateway": {proxyFlags{direct: true, session: sessionFlags{gateway: gateway}, requests: 1}, true},
		"direct by a gateway":        {proxyFlags{pins: authorityclient.Pins{Authorities: []string{"https://a"}}, direct: true, session: sessionFlags{gateway: gateway}, requests: 1}, false},
		"addresses of a session":     {proxyFlags{session: sessionFlags{gateway: gateway}, addresses: []string{"a:1"}, requests: 1}, false},
		"receipts of one-offs":       {proxyFlags{session: sessionFlags{gateway: gateway}, oneOff: true, receipts: "d", requests: 1}, false},
		"receipts of direct":         {proxyFlags{direct: true, receipts: "d", requests: 1}, false},
		"a group without a role":     {proxyFlags{pins: group, session: sessionFlags{gateway: gateway}, requests: 1}, false},
		"a role without a group":     {proxyFlags{session: sessionFlags{gateway: gateway, role: "r"}, requests: 1}, false},
		"no requests":                {proxyFlags{session: sessionFlags{gateway: gateway}}, false},
		"an end before it begins":    {proxyFlags{session: sessionFlags{gateway: gateway}, requests: 1, drain: -1}, false},
	} {
		err := row.f.validate()
		var fault *frame.Fault
		if (err == nil) != row.isOK || err != nil && (!errors.As(err, &fault) || fault.Code != frame.CodeUsage) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// TestProxyEntrance: an address that other machines reach needs a token, and an unusable token is
// refused.
func TestProxyEntrance(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"token": "0123456789abcdef\n", "empty": "\n", "long": strings.Repeat("x", maxToken+1), "open": "0123456789abcdef"} {
		testworld.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	testworld.NoError(t, os.Chmod(filepath.Join(dir, "open"), 0o644))
	for _, row := range []struct {
		listen, file string
		token, note  string
		isOK         bool
	}{
		{"127.0.0.1:0", "", "", "", true},
		{"127.0.0.1:0", "token", "0123456789abcdef", "", true},
		{"127.0.0.1:0", "open", "0123456789abcdef", "chmod 600", true},
		{"unix:/run/cohort.sock", "", "", "", true},
		{"0.0.0.0:0", "token", "0123456789abcdef", "", true},
		{"0.0.0.0:0", "", "", "", false},
		{":0", "", "", "", false},
		{"[::]:0", "", "", "", false},
		{"192.0.2.1:0", "", "", "", false},
		{"0.0.0.0:0", "empty", "", "", false},
		{"127.0.0.1:0", "long", "", "", false},
		{"127.0.0.1:0", "none", "", "", false},
		{"8080", "", "", "", false},
	} {
		f := proxyFlags{listen: row.listen}
		if row.file != "" {
			f.tokenFile = filepath.Join(dir, row.file)
		}
		var notes bytes.Buffer
		_, token, err := f.entrance(t.Context(), &frame.App{Stderr: &notes})
		if (err == nil) != row.isOK || token != row.token && row.isOK || !strings.Contains(notes.String(), row.note) || strings.Contains(notes.String(), "0123") {
			t.Errorf("%s with %q: got token %q, %v, notes %q", row.listen, row.file, token, err, &notes)
		}
	}
}

// TestReceiptsDirectory: receipts contain requests, so their directory is for one user.
func TestReceiptsDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	testworld.NoError(t, prepareReceipts(dir))
	if info := testworld.Must(os.Stat(dir)); info.Mode().Perm() != 0o700 {
		t.Errorf("got mode %v, want 0700", info.Mode())
	}
	testworld.NoError(t, prepareReceipts(dir))
	testworld.NoError(t, os.Chmod(dir, 0o750))
	if err := prepareReceipts(dir); err == nil {
		t.Error("a directory that others can read was accepted")
	}
}

// TestRememberGoesForward: a proxy that lags behind another one does not store its older policy over the
// newer one.
func TestRememberGoesForward(t *testing.T) {
	first, second := clitest.ApprovedTwice(t)
	older := testworld.Must(authorityclient.ReadState(remembered(t, first)))
	newer := testworld.Must(authorityclient.ReadState(remembered(t, second)))
	pins := authorityclient.Pins{State: filepath.Join(t.TempDir(), "seen.json")}
	for _, s := range []client.State{older, newer, older} {
		testworld.NoError(t, authorityclient.Remember(&frame.App{}, pins, s))
	}
	if got := testworld.Must(authorityclient.ReadState(pins.State)).Policy().PolicyHead(); got != second.PolicyHead() {
		t.Errorf("got head %v, want %v", got, second.PolicyHead())
	}
}
