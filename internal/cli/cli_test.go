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

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
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
	a := &app{
		args: args, in: strings.NewReader(""), out: &out, talk: &talk,
		env:     func(name string) (string, bool) { v, ok := env[name]; return v, ok },
		environ: func() []string { return nil },
		now:     func() time.Time { return time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC) },
	}
	return result{a.execute(t.Context()), out.String(), talk.String()}
}

// write makes a file for one test.
func write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
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
		e, ok := explanations[reason]
		if !ok || e.meaning == "" || e.hint == "" {
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
		{"6", "want 0 to 5", exitUsage},
		{"no-such", "unknown code", exitUsage},
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
		{"gateway without session", []string{"request", "https://a/", "--gateway", "https://g", "--genesis", "00"}, "--session"},
		{"address with session", []string{"request", "https://a/", "--session", "--address", "a:1", "--genesis", "00"}, "--gateway"},
		{"keys without a gateway", []string{"trust", "--ohttp", "keys", "--authority", "https://a", "--genesis", "00", "--task", "t"}, "--gateway"},
		{"a gateway without keys", []string{"trust", "--gateway", "https://g", "--authority", "https://a", "--genesis", "00", "--task", "t"}, "--ohttp"},
		{"request URL", []string{"request", "http://a/", "--authority", "https://a", "--genesis", "00"}, "https://NAME"},
		{"request header", []string{"request", "https://a/", "-H", "nocolon", "--authority", "https://a", "--genesis", "00"}, "nocolon"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := run(t, nil, tt.args...)
			if got.exit != exitUsage || !strings.Contains(got.talk, tt.want) || got.out != "" {
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
	if err := json.Unmarshal([]byte(got.talk), &m); err != nil || m.Schema != "cohort/error/v1" || m.Code != codeFile || m.Cause == "" || m.Hint == "" {
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
		{"refusal", fmt.Errorf("doing: %w", refusal), string(wire.WrongRoot), exitRefused},
		{"busy", wire.Refuse(wire.TooMany, "r", "", ""), string(wire.TooMany), exitUnreachable},
		{"our fault", wire.Refuse(wire.Internal, "r", "", ""), codeInternal, exitInternal},
		{"outcome unknown", fmt.Errorf("calling: %w: %w", client.ErrOutcomeUnknown, io.EOF), string(wire.OutcomeUnknown), exitUnreachable},
		{"stream cut off", fmt.Errorf("reading: %w", client.ErrTruncated), string(wire.Truncated), exitUnreachable},
		{"no unit", fmt.Errorf("opening: %w: %w", client.ErrUnreachable, syscall.ECONNREFUSED), string(wire.Unavailable), exitUnreachable},
		{"unknown error", errors.New("boom"), codeInternal, exitInternal},
		{"connection refused", &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, codeUnreachable, exitUnreachable},
		{"interrupted", fmt.Errorf("x: %w", context.Canceled), codeInterrupted, exitRefused},
		{"deadline", context.DeadlineExceeded, codeUnreachable, exitUnreachable},
		{"no such host", &net.DNSError{}, codeUnreachable, exitUnreachable},
		{"port taken", fmt.Errorf("x: %w", &net.OpError{Op: "listen", Err: syscall.EADDRINUSE}), codePortTaken, exitRefused},
		{"TLS alert", &net.OpError{Op: "remote error", Err: errors.New("tls: bad certificate")}, codeNotTrusted, exitRefused},
		{"refusal within a network error", &net.OpError{Op: "dial", Err: refusal}, string(wire.WrongRoot), exitRefused},
		{"file", fs.ErrNotExist, codeFile, exitUsage},
		{"fault in a wrap", fmt.Errorf("x: %w", usage("y")), codeUsage, exitUsage},
	}
	for _, tt := range tests {
		got := classify(tt.err)
		if got.code != tt.code || explain(got.code).exit != tt.exit {
			t.Errorf("%s: got %s exit %d, want %s exit %d", tt.name, got.code, explain(got.code).exit, tt.code, tt.exit)
		}
	}
}

func TestFlagsOverVariablesOverFile(t *testing.T) {
	file := write(t, "c.toml", "output = \"json\"\nlog-level = \"nosuch\"\n")
	env := map[string]string{"COHORT_CONFIG": file, "COHORT_LOG_LEVEL": "warn"}
	if got := run(t, env, "version"); got.exit != 0 || !strings.HasPrefix(got.out, "{") {
		t.Errorf("got %+v, want JSON by the file and the level of the variable", got)
	}
	if got := run(t, env, "version", "-o", "text"); !strings.HasPrefix(got.out, "cohort ") {
		t.Errorf("got %+v, want text by the flag", got)
	}
	env["COHORT_OUTPUT"] = "xml"
	if got := run(t, env, "version"); got.exit != exitUsage || !strings.Contains(got.talk, "xml") {
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
		path := write(t, "c.toml", tt.content)
		if got := run(t, nil, "config", "check", path); got.exit != exitUsage || !strings.Contains(got.talk, tt.want) {
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
	path := write(t, "c.toml", live.String())
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
		root := (&app{}).commands()
		values, err := readConfig(path, root)
		if err != nil {
			return
		}
		for key := range values {
			if _, ok := configKeys(root)[key]; !ok {
				t.Errorf("accepted unknown key %q", key)
			}
		}
	})
}

func TestWithSchemaPutsTheSchemaFirst(t *testing.T) {
	own := struct {
		Schema string `json:"schema"`
	}{"cohort/x/v1"}
	for _, v := range []any{struct{}{}, struct{ A int }{1}, own} {
		b, err := withSchema("x", v)
		if n := strings.Count(string(b), "schema"); n != 1 {
			t.Errorf("%s: got %d schemas, want 1", b, n)
		}
		var got struct{ Schema string }
		if err != nil || json.Unmarshal(b, &got) != nil || got.Schema != "cohort/x/v1" || !strings.HasPrefix(string(b), "{\n  \"schema\"") {
			t.Errorf("got %q, %v", b, err)
		}
	}
	if _, err := withSchema("x", []int{1}); err == nil {
		t.Error("a list was accepted, want an error")
	}
}

func testDraft(t *testing.T) draft {
	t.Helper()
	owners, err := sshKeys(t.TempDir(), "owner-1", "owner-2", "owner-3")
	if err != nil {
		t.Fatal(err)
	}
	var pairs []string
	for _, o := range owners {
		pairs = append(pairs, o.name+"="+o.path+".pub")
	}
	lines, err := ownerLines(pairs)
	if err != nil {
		t.Fatal(err)
	}
	program := wire.Sum([]byte("program"))
	return draft{
		trustDomain: "dev.test", created: time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC), quorum: 2, owners: lines,
		softRoots: []string{wire.Sum([]byte("tee")).String()}, machines: []string{anyMachine},
		authority: []string{reference(attest.Soft, measurement{Program: program.String()}, nil)},
		task: draftTask{name: "scoring", keyMode: "shared", release: "1", names: []string{"scoring.dev.test"}, units: 3, dynamic: true,
			references: []string{reference(attest.Soft, measurement{Agent: program.String(), Program: wire.Sum([]byte("x")).String()}, []string{`a"b\c`, "tab\t", "ä"})}},
	}
}

func TestDraftParsesAsWritten(t *testing.T) {
	d := testDraft(t)
	draft, err := policy.ParseDraft([]byte(d.text()))
	if err != nil {
		t.Fatalf("%v\n%s", err, d.text())
	}
	doc := draft.Document()
	release := doc.Tasks["scoring"].Releases["1"]
	if !doc.Development || doc.Owners.Quorum != 2 || len(doc.Owners.Keys) != 3 || !release.Dynamic {
		t.Errorf("got %+v, want what the draft says", doc)
	}
	want := wire.Hash(wire.LabelArguments, []byte(`a"b\c`), []byte("tab\t"), []byte("ä"))
	if got := release.References[0].Registers[2].Value; !bytes.Equal(got, want[:]) {
		t.Errorf("arguments: got %x, want %x", got, want)
	}
}

func TestSuccessor(t *testing.T) {
	draft, err := policy.ParseDraft([]byte(testDraft(t).text()))
	if err != nil {
		t.Fatal(err)
	}
	doc := draft.Document()
	b, err := successor(doc.Raw(), doc.Created.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	next, err := policy.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if next.Sequence != 2 || next.Previous != doc.Digest() || !next.Created.Equal(doc.Created.Add(time.Hour)) {
		t.Errorf("got %d %s %s, want the next step", next.Sequence, next.Previous, next.Created)
	}
	if changes := policy.Diff(doc, next); len(changes) != 0 {
		t.Errorf("got changes %v, want none", changes)
	}
}

// TestSuccessorCopiesAuthority: the step after a file with a group that says nothing of
// its authority gives it the trust domain's.
func TestSuccessorCopiesAuthority(t *testing.T) {
	raw := strings.Replace(cutPolicy, cutOwner, testworld.NewKey().AuthorizedKey(), 1) + strings.Replace(cutGroup, cutCustody, "", 1)
	for letter, digit := range map[string]string{"A": "a", "B": "b", "C": "c"} {
		raw = strings.ReplaceAll(raw, `"`+letter+`"`, `"sha384:`+strings.Repeat(digit, 96)+`"`)
	}
	if _, err := policy.Parse([]byte(raw)); err == nil {
		t.Fatal("the group says nothing of its authority, and is taken")
	}
	b, err := successor([]byte(raw), time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC))
	if err != nil {
		t.Fatal(err)
	}
	next, err := policy.Parse(b)
	if err != nil || next.Previous != wire.Sum([]byte(raw)) {
		t.Fatalf("got previous %v, %v, want the file as it stood", next.Previous, err)
	}
	if ended := policy.GroupsEnded(nil, next); len(ended) != 0 || !next.Groups["trial"].Authority.Machines.Any {
		t.Errorf("got %v, want the trust domain's authority", ended)
	}
}

func TestSuccessorRefusesWhatItCannotEdit(t *testing.T) {
	for _, change := range [][2]string{{"sequence     =", `"sequence"   =`}, {"previous     =", "  previous   ="}} {
		draft, err := policy.ParseDraft([]byte(strings.Replace(testDraft(t).text(), change[0], change[1], 1)))
		if err != nil {
			t.Fatal(err)
		}
		doc := draft.Document()
		if _, err := successor(doc.Raw(), doc.Created); classify(err).code != codeUsage {
			t.Errorf("%q: got %v, want a usage fault", change[1], err)
		}
	}
}

func TestLockDirIsTakenOnce(t *testing.T) {
	dir := t.TempDir()
	held, err := lockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockDir(dir); err == nil || classify(err).code != codeInUse {
		t.Errorf("got %v, want [in-use]", err)
	}
	held.Close()
	again, err := lockDir(dir)
	if err != nil {
		t.Fatalf("after release: %v", err)
	}
	again.Close()
}

func TestAddresses(t *testing.T) {
	list, err := addresses(0, 8)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, a := range list {
		seen[a] = true
	}
	if len(seen) != 8 {
		t.Errorf("got %v, want 8 different ones", list)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := addresses(l.Addr().(*net.TCPAddr).Port, 1); err == nil || classify(err).code != codePortTaken {
		t.Errorf("got %v, want [port-taken]", err)
	}
}

func TestClusterDescription(t *testing.T) {
	dir := t.TempDir()
	c := cluster{Schema: devSchema, Genesis: "ab", service: service{Task: "t", Units: []clusterUnit{{Address: "a", PID: 2}}}}
	if err := writeCluster(dir, c); err != nil {
		t.Fatal(err)
	}
	got, err := readCluster(filepath.Join(dir, devFile))
	if err != nil || got.Task != "t" || got.Units[0].PID != 2 {
		t.Errorf("got %+v, %v, want what was written", got, err)
	}
	for _, bad := range []string{"{", `{"schema":"cohort/dev/v2","units":[{}]}`, `{"schema":"cohort/dev/v1"}`} {
		if _, err := readCluster(write(t, "dev.json", bad)); classify(err).code != codeUsage {
			t.Errorf("%s: got %v, want a usage fault", bad, err)
		}
	}
}

func TestCommandSettingIsIgnoredOutsideATEE(t *testing.T) {
	got := run(t, map[string]string{commandSetting: `["version"]`}, "explain", "usage")
	if got.exit != 0 || !strings.HasPrefix(got.out, "usage") {
		t.Errorf("got %+v, want the command line to count", got)
	}
	if got := run(t, map[string]string{commandSetting: `["version"]`}); strings.HasPrefix(got.out, "cohort ") {
		t.Errorf("got %+v, want help", got)
	}
}
