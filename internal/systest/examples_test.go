package systest

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestClientExamples: the whole programs that docs/how-to/client.md shows reach a cluster through
// its gateway alone, and refuse one with another genesis.
func TestClientExamples(t *testing.T) {
	waits(t)
	d := StartDev(t, filepath.Join("..", "..", "examples", "chat", "dev.toml"))
	info := d.WaitInfo()
	bin := Build(t, "./examples/client/session", "./examples/client/oneoff", "./examples/client/receipt")
	call := func(program, genesis string, args ...string) (stdout, stderr string, err error) {
		var out, log bytes.Buffer
		cmd := exec.CommandContext(t.Context(), filepath.Join(bin, program), append([]string{"--gateway", info.Gateway, "--genesis", genesis, "--task", info.Task}, args...)...)
		cmd.Dir, cmd.Stdout, cmd.Stderr = t.TempDir(), &out, &log
		err = cmd.Run()
		return out.String(), log.String(), err
	}
	for _, c := range []struct {
		program string
		args    []string
		stdout  string
		stderr  string
	}{
		{"session", []string{"/chat", "/chat"}, `event: done`, ""},
		{"oneoff", []string{"/"}, `"service":"chat"`, ""},
		{"receipt", []string{"/"}, `"service":"chat"`, "response of unit "},
	} {
		stdout, stderr, err := call(c.program, info.Genesis, c.args...)
		if err != nil || !strings.Contains(stdout, c.stdout) || !strings.Contains(stderr, c.stderr) {
			t.Errorf("%s: got %v, %.300s\n%.300s", c.program, err, stdout, stderr)
		}
		_, stderr, err = call(c.program, strings.Repeat("0a", 32), c.args...)
		if err == nil || !strings.Contains(stderr, "genesis") {
			t.Errorf("%s with another genesis: got %v, %.300s, want a refusal", c.program, err, stderr)
		}
	}
}
