package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/cli/clitest"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/cohort-tee/cohort/internal/wire"
)

// result is what one command line did.
type result struct {
	exit      int
	out, talk string
}

// run runs a command line with the given variables at a fixed time.
func run(t *testing.T, env map[string]string, args ...string) result {
	t.Helper()
	var out, talk bytes.Buffer
	a := &frame.App{
		Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &talk,
		Env:     func(name string) (string, bool) { v, ok := env[name]; return v, ok },
		Environ: func() []string { return nil },
		Now:     func() time.Time { return time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC) },
	}
	return result{execute(t.Context(), a), out.String(), talk.String()}
}

// reasons reads every Reason that package wire declares.
func reasons(t *testing.T) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../wire/refusal.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || fmt.Sprint(spec.Type) != "Reason" {
			return true
		}
		for _, v := range spec.Values {
			reason, err := strconv.Unquote(v.(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, reason)
		}
		return true
	})
	if len(list) < 30 {
		t.Fatalf("found %d reasons, want all of the closed list", len(list))
	}
	return list
}

func TestEveryReasonIsExplained(t *testing.T) {
	for _, reason := range reasons(t) {
		e, ok := frame.Explanations[reason]
		if !ok || e.Meaning == "" || e.Hint == "" {
			t.Errorf("reason %q: got %+v, want meaning and hint", reason, e)
		}
	}
}

func TestExplain(t *testing.T) {
	tests := []struct {
		arg, want string
		exit      int
	}{
		{"measurement", "exit code 1", 0},
		{"rate", "exit code 3", 0},
		{"5", "error status", 0},
		{"6", "want 0 to 5", frame.ExitUsage},
		{"no-such", "unknown code", frame.ExitUsage},
	}
	for _, tt := range tests {
		got := run(t, nil, "explain", tt.arg)
		if got.exit != tt.exit || !strings.Contains(got.out+got.talk, tt.want) {
			t.Errorf("explain %s: got %+v, want exit %d and %q", tt.arg, got, tt.exit, tt.want)
		}
	}
}

func TestUsageIsExitTwo(t *testing.T) {
	tests := []struct {
		name string
		args []string
		want string
	}{
		{"unknown command", []string{"nosuch"}, "nosuch"},
		{"unknown subcommand", []string{"policy", "nosuch"}, "nosuch"},
		{"unknown flag", []string{"version", "--nosuch"}, "--nosuch"},
		{"too many arguments", []string{"version", "more"}, "more"},
		{"output", []string{"version", "-o", "xml"}, "xml"},
		{"log level", []string{"version", "--log-level", "loud"}, "loud"},
		{"log format", []string{"version", "--log-format", "xml"}, "xml"},
		{"required flag", []string{"trust", "--authority", "https://127.0.0.1:1"}, "genesis"},
		{"both pins", []string{"trust", "--authority", "https://127.0.0.1:1", "--genesis", strings.Repeat("1", 64), "--task", "t", "--id", "i"}, "one of --task and --id"},
		{"genesis", []string{"status", "--authority", "https://127.0.0.1:1", "--genesis", "12"}, "--genesis"},
		{"missing file", []string{"policy", "check", "/nonexistent"}, "[file]"},
		{"key mode", []string{"dev", "--key-mode", "both"}, "both"},
		{"a description that is not there", []string{"dev", "/nonexistent.toml"}, "[file]"},
		{"a description and a program", []string{"dev", "dev.toml", "--", "program"}, "FILE"},
		{"rows without data", []string{"dev", "--rows", "5"}, "--rows"},
		{"cluster without check", []string{"dev", "--cluster", "x"}, "--check"},
		{"example", []string{"dev", "--dir", t.TempDir(), "--example", "poems"}, "poems"},
		{"outside a TEE", []string{"authority", "init", "--draft", "genesis.toml"}, "[no-tee]"},
		{"unit without program", []string{"unit", "--task", "t", "--authority", "https://a", "--genesis", "00"}, "no program"},
		{"platform", []string{"authority", "run", "--platform", "xen"}, "xen"},
		{"socket", []string{"authority", "run", "--platform", "soft"}, "--tee-socket"},
		{"address", []string{"verify", "nowhere", "--authority", "https://a", "--genesis", "00"}, "HOST:PORT"},
		{"no authority", []string{"trust", "--genesis", strings.Repeat("1", 64), "--task", "t"}, "--authority"},
		{"verify nothing", []string{"verify", "--genesis", "00"}, "--receipt"},
		{"verify both", []string{"verify", "a:1", "--receipt", "r", "--genesis", "00"}, "--receipt"},
		{"fresh evidence without session", []string{"verify", "a:1", "--fresh-evidence", "--genesis", "00"}, "--session"},
		{"receipt without session", []string{"request", "https://a/", "--receipt-out", "r", "--genesis", "00"}, "--session"},
		{"gateway without session", []string{"request", "https://a/", "--gateway", "https://g", "--authority", "https://a", "--genesis", "00"}, "--session"},
		{"two gateways", []string{"verify", "https://g", "--session", "--gateway", "https://g", "--genesis", "00"}, "ADDRESS"},
		{"address with session", []string{"request", "https://a/", "--session", "--address", "a:1", "--genesis", "00"}, "--gateway"},
		{"keys without a gateway", []string{"trust", "--ohttp", "keys", "--authority", "https://a", "--genesis", "00", "--task", "t"}, "--gateway"},
		{"a gateway without keys", []string{"trust", "--gateway", "https://g", "--authority", "https://a", "--genesis", "00", "--task", "t"}, "--ohttp"},
		{"request URL", []string{"request", "http://a/", "--authority", "https://a", "--genesis", "00"}, "https://NAME"},
		{"request header", []string{"request", "https://a/", "-H", "nocolon", "--authority", "https://a", "--genesis", "00"}, "nocolon"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := run(t, nil, tt.args...)
			if got.exit != frame.ExitUsage || !strings.Contains(got.talk, tt.want) || got.out != "" {
				t.Errorf("got %+v, want exit 2, %q on stderr, nothing on stdout", got, tt.want)
			}
			for _, line := range []string{"error: ", "\ncause: ", "\nhint: "} {
				if !strings.Contains(got.talk, line) {
					t.Errorf("stderr %q: want a line %q", got.talk, line)
				}
			}
		})
	}
}

func TestErrorsAsJSON(t *testing.T) {
	got := run(t, nil, "policy", "check", "/nonexistent", "-o", "json")
	var m struct{ Schema, Code, Cause, Hint string }
	if err := json.Unmarshal([]byte(got.talk), &m); err != nil || m.Schema != "cohort/error/v1" || m.Code != frame.CodeFile || m.Cause == "" || m.Hint == "" {
		t.Errorf("got %q (%v), want an error object", got.talk, err)
	}
}

func TestClassify(t *testing.T) {
	refusal := wire.Refuse(wire.WrongRoot, "rule", "a", "b")
	tests := []struct {
		name string
		err  error
		code string
		exit int
	}{
		{"refusal", fmt.Errorf("doing: %w", refusal), string(wire.WrongRoot), frame.ExitRefused},
		{"busy", wire.Refuse(wire.TooMany, "r", "", ""), string(wire.TooMany), frame.ExitUnreachable},
		{"our fault", wire.Refuse(wire.Internal, "r", "", ""), frame.CodeInternal, frame.ExitInternal},
		{"outcome unknown", fmt.Errorf("calling: %w: %w", client.ErrOutcomeUnknown, io.EOF), string(wire.OutcomeUnknown), frame.ExitUnreachable},
		{"stream cut off", fmt.Errorf("reading: %w", client.ErrTruncated), string(wire.Truncated), frame.ExitUnreachable},
		{"no unit", fmt.Errorf("opening: %w: %w", client.ErrUnreachable, syscall.ECONNREFUSED), string(wire.Unavailable), frame.ExitUnreachable},
		{"unknown error", errors.New("boom"), frame.CodeInternal, frame.ExitInternal},
		{"connection refused", &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, frame.CodeUnreachable, frame.ExitUnreachable},
		{"interrupted", fmt.Errorf("x: %w", context.Canceled), frame.CodeInterrupted, frame.ExitRefused},
		{"deadline", context.DeadlineExceeded, frame.CodeUnreachable, frame.ExitUnreachable},
		{"no such host", &net.DNSError{}, frame.CodeUnreachable, frame.ExitUnreachable},
		{"port taken", fmt.Errorf("x: %w", &net.OpError{Op: "listen", Err: syscall.EADDRINUSE}), frame.CodePortTaken, frame.ExitRefused},
		{"TLS alert", &net.OpError{Op: "remote error", Err: errors.New("tls: bad certificate")}, frame.CodeNotTrusted, frame.ExitRefused},
		{"refusal within a network error", &net.OpError{Op: "dial", Err: refusal}, string(wire.WrongRoot), frame.ExitRefused},
		{"file", fs.ErrNotExist, frame.CodeFile, frame.ExitUsage},
		{"fault in a wrap", fmt.Errorf("x: %w", frame.Usage("y")), frame.CodeUsage, frame.ExitUsage},
	}
	for _, tt := range tests {
		got := frame.Classify(tt.err)
		if got.Code != tt.code || frame.Explain(got.Code).Exit != tt.exit {
			t.Errorf("%s: got %s exit %d, want %s exit %d", tt.name, got.Code, frame.Explain(got.Code).Exit, tt.code, tt.exit)
		}
	}
}

func TestFlagsOverVariablesOverFile(t *testing.T) {
	file := clitest.Write(t, "c.toml", "output = \"json\"\nlog-level = \"nosuch\"\n")
	env := map[string]string{"COHORT_CONFIG": file, "COHORT_LOG_LEVEL": "warn"}
	if got := run(t, env, "version"); got.exit != 0 || !strings.HasPrefix(got.out, "{") {
		t.Errorf("got %+v, want JSON by the file and the level of the variable", got)
	}
	if got := run(t, env, "version", "-o", "text"); !strings.HasPrefix(got.out, "cohort ") {
		t.Errorf("got %+v, want text by the flag", got)
	}
	env["COHORT_OUTPUT"] = "xml"
	if got := run(t, env, "version"); got.exit != frame.ExitUsage || !strings.Contains(got.talk, "xml") {
		t.Errorf("got %+v, want the variable to win over the file", got)
	}
}

func TestConfigRefuses(t *testing.T) {
	tests := []struct{ name, content, want string }{
		{"unknown key", "outputs = \"json\"", "outputs"},
		{"key of another command", "[version]\ntask = \"t\"", "version.task"},
		{"unknown command", "[nosuch]\nx = 1", "nosuch.x"},
		{"not TOML", "output", "c.toml"},
		{"wrong value", "[dev]\nbase-port = \"many\"", "dev.base-port"},
	}
	for _, tt := range tests {
		path := clitest.Write(t, "c.toml", tt.content)
		if got := run(t, nil, "config", "check", path); got.exit != frame.ExitUsage || !strings.Contains(got.talk, tt.want) {
			t.Errorf("%s: got %+v, want exit 2 and %q", tt.name, got, tt.want)
		}
	}
}

func TestConfigExampleIsAccepted(t *testing.T) {
	example := run(t, nil, "config", "example")
	var live strings.Builder
	for line := range strings.Lines(example.out) {
		if rest, ok := strings.CutPrefix(line, "# "); ok && strings.Contains(line, " = ") {
			line = rest
		}
		live.WriteString(line)
	}
	path := clitest.Write(t, "c.toml", live.String())
	if got := run(t, nil, "config", "check", path); got.exit != 0 {
		t.Errorf("got %+v for:\n%s", got, live.String())
	}
}

func FuzzReadConfig(f *testing.F) {
	f.Add([]byte("output = \"json\"\n[dev]\nbase-port = 1\n"))
	f.Add([]byte("[unit]\nauthority = [\"https://a\"]\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		path := filepath.Join(t.TempDir(), "c.toml")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Skip(err)
		}
		root := commands((&frame.App{}))
		values, err := frame.ReadConfig(path, root)
		if err != nil {
			return
		}
		for key := range values {
			if _, ok := frame.ConfigKeys(root)[key]; !ok {
				t.Errorf("accepted unknown key %q", key)
			}
		}
	})
}

func TestCommandSettingIsIgnoredOutsideATEE(t *testing.T) {
	got := run(t, map[string]string{localtee.CommandSetting: `["version"]`}, "explain", "usage")
	if got.exit != 0 || !strings.HasPrefix(got.out, "usage") {
		t.Errorf("got %+v, want the command line to count", got)
	}
	if got := run(t, map[string]string{localtee.CommandSetting: `["version"]`}); strings.HasPrefix(got.out, "cohort ") {
		t.Errorf("got %+v, want help", got)
	}
}
