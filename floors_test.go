package cohort

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/cohort-tee/cohort"

// room is one package or, with a trailing "/", all packages below a folder.
type room struct {
	path  string
	floor int
	// third lists the module paths outside the standard library that the shipped code of the room
	// may import.
	third []string
	// below, where set, lists the only rooms of the project that it may import.
	below []string
	// beside lists rooms of the same floor that it may import.
	beside []string
	// testsOnly rooms are imported only by tests and by other testsOnly rooms.
	testsOnly bool
}

// house is the table of DESIGN: a package imports packages of lower floors, and packages of its
// own floor only where beside lists them.
var house = []room{
	{path: "internal/wire", floor: 0},
	{path: "internal/limit", floor: 0, beside: []string{"internal/wire"}, third: []string{"golang.org/x/time"}},
	{path: "internal/retry", floor: 0},
	{path: "internal/queue", floor: 0},
	{path: "internal/fullduplex", floor: 0},
	{path: "internal/der", floor: 0},
	{path: "internal/hostclock", floor: 1, third: []string{"golang.org/x/sys"}},
	{path: "internal/loopback", floor: 0, testsOnly: true},
	{path: "interop/conformance", floor: 0},
	{path: "attest/internal/closed", floor: 0},
	{path: "internal/envelope", floor: 1},
	{path: "internal/bhttp", floor: 1},
	{path: "internal/chunk", floor: 1},
	{path: "attest/internal/pki", floor: 1},
	{path: "attest", floor: 1},
	{path: "attest/soft/softrules", floor: 1, beside: []string{"attest"}},
	{path: "attest/tpm/tpmrules", floor: 1, beside: []string{"attest"}},
	{path: "attest/snp/snprules", floor: 1, beside: []string{"attest"}},
	{path: "attest/dcap/dcaprules", floor: 1, beside: []string{"attest"}},
	{path: "attest/nitro/nitrorules", floor: 1, beside: []string{"attest"}},
	{path: "attest/nvidia/nvidiarules", floor: 1, beside: []string{"attest"}},
	{path: "internal/api", floor: 1},
	{path: "internal/affinity", floor: 1},
	{path: "internal/forwarded", floor: 1},
	{path: "internal/tracecontext", floor: 0},
	{path: "internal/opsserver", floor: 2, below: []string{"internal/api", "internal/limit", "internal/wire"}},
	{path: "internal/bus", floor: 1},
	{path: "internal/bus/cluster", floor: 2, third: []string{"github.com/nats-io/nats.go"}},
	{path: "internal/bus/natsd", floor: 2, third: []string{"github.com/nats-io/nats-server/v2"}},
	{path: "internal/bus/bustest", floor: 4, beside: []string{"internal/testworld"}, testsOnly: true},
	{path: "attest/attesttest", floor: 3, third: []string{"github.com/google/go-tpm"}, testsOnly: true},
	{path: "attest/vectortest", floor: 3, testsOnly: true},
	{path: "attest/soft", floor: 2, third: []string{"golang.org/x/sys"}},
	{path: "attest/tpm", floor: 2, third: []string{"github.com/google/go-tpm", "github.com/google/go-eventlog", "golang.org/x/crypto"}},
	{path: "attest/snp", floor: 2, beside: []string{"attest/tpm"}, third: []string{"github.com/google/go-sev-guest", "github.com/google/go-configfs-tsm"}},
	{path: "attest/dcap", floor: 2, third: []string{"github.com/google/go-configfs-tsm"}},
	{path: "attest/nitro", floor: 2, third: []string{"github.com/veraison/go-cose", "github.com/fxamacker/cbor/v2"}},
	{path: "attest/nvidia", floor: 2},
	{path: "attest/platforms", floor: 3},
	{path: "internal/ohttp", floor: 2},
	{path: "internal/collateral", floor: 2, third: []string{"golang.org/x/sync"}},
	{path: "policy/sshsig", floor: 1, third: []string{"golang.org/x/crypto"}},
	{path: "policy/policytoml", floor: 1, beside: []string{"attest"}, third: []string{"github.com/pelletier/go-toml/v2"}},
	{path: "policy/policyfile", floor: 2, third: []string{"golang.org/x/crypto", "filippo.io/age"}},
	{path: "policy/policydraft", floor: 2, beside: []string{"policy/policyfile"}},
	{path: "policy", floor: 2, beside: []string{"policy/policyfile"}, third: []string{"golang.org/x/crypto"}},
	{path: "policy/policytest", floor: 2, third: []string{"golang.org/x/crypto"}, testsOnly: true},
	{path: "identity", floor: 3},
	{path: "internal/testworld/bubble", floor: 0, testsOnly: true},
	{path: "internal/testworld", floor: 4, third: []string{"golang.org/x/crypto"}, testsOnly: true},
	{path: "internal/relay", floor: 4, below: []string{"internal/bus", "internal/envelope", "internal/wire"}},
	{path: "internal/history", floor: 4},
	{path: "internal/backup", floor: 4, third: []string{"filippo.io/age", "github.com/cloudflare/circl", "golang.org/x/crypto"}},
	{path: "internal/founding", floor: 4},
	{path: "internal/unitauth", floor: 4},
	{path: "internal/trustresponse", floor: 4},
	{path: "internal/channel", floor: 4, beside: []string{"internal/unitauth"}},
	{path: "internal/authority/store", floor: 4, third: []string{"modernc.org/sqlite", "github.com/jackc/pgx/v5"}},
	{path: "internal/authority/store/testdb", floor: 4, third: []string{"github.com/jackc/pgx/v5"}, testsOnly: true},
	{path: "internal/failpoint", floor: 4, third: []string{"modernc.org/sqlite", "modernc.org/libc"}, testsOnly: true},
	{path: "internal/channelhttp", floor: 5},
	{path: "internal/authority/trustedclock", floor: 1},
	{path: "internal/authority/records", floor: 4, beside: []string{"internal/authority/store"}, third: []string{"github.com/prometheus/client_golang"}},
	{path: "internal/manager/ranges", floor: 4, below: []string{"internal/bus"}},
	{path: "internal/manager/selfsigned", floor: 4, below: []string{}},
	{path: "internal/manager/statuspage", floor: 4, below: []string{}},
	{path: "internal/manager/trustrelay", floor: 4, below: []string{"internal/api", "internal/limit", "internal/wire"}},
	{path: "internal/manager", floor: 5, third: []string{"github.com/prometheus/client_golang"}, below: []string{"internal/affinity", "internal/api", "internal/bus", "internal/bus/cluster", "internal/bus/natsd", "internal/envelope", "internal/forwarded", "internal/limit", "internal/manager/ranges", "internal/manager/selfsigned", "internal/manager/statuspage", "internal/manager/trustrelay", "internal/opsserver", "internal/relay", "internal/retry", "internal/tracecontext", "internal/wire"}},
	{path: "internal/authority/history", floor: 5, beside: []string{"internal/authority/records"}, third: []string{"github.com/prometheus/client_golang", "golang.org/x/time"}},
	{path: "internal/authority/sealed", floor: 5, third: []string{"github.com/prometheus/client_golang"}},
	{path: "internal/authority/admission", floor: 4, third: []string{"golang.org/x/time"}},
	{path: "internal/authority/metrics", floor: 5, third: []string{"github.com/prometheus/client_golang"}},
	{path: "internal/authority/ringkeys", floor: 5, third: []string{"github.com/prometheus/client_golang"}},
	{path: "internal/authority", floor: 5, beside: []string{"internal/authority/history", "internal/authority/metrics", "internal/authority/ringkeys", "internal/authority/sealed"}, third: []string{"github.com/prometheus/client_golang", "golang.org/x/time", "golang.org/x/sync"}},
	{path: "internal/busrelay", floor: 5},
	{path: "unit", floor: 5, beside: []string{"internal/channelhttp", "internal/busrelay"}, third: []string{"golang.org/x/sync"}},
	{path: "unit/unittest", floor: 5, testsOnly: true},
	{path: "client", floor: 5, beside: []string{"internal/channelhttp"}, third: []string{"golang.org/x/sync"}},
	{path: "internal/agent", floor: 6, third: []string{"golang.org/x/sys"}},
	{path: "internal/localproxy", floor: 6, third: []string{"github.com/prometheus/client_golang"}},
	{path: "internal/cli/localtee", floor: 6},
	{path: "internal/cli/tree", floor: 0},
	{path: "internal/cli/frame", floor: 6, beside: []string{"internal/cli/localtee"}, third: []string{"github.com/spf13/cobra", "github.com/spf13/pflag", "github.com/pelletier/go-toml/v2"}},
	{path: "internal/cli/sshkey", floor: 6, beside: []string{"internal/cli/frame"}, third: []string{"golang.org/x/crypto", "golang.org/x/sys"}},
	{path: "internal/authorityclient", floor: 6, beside: []string{"internal/cli/frame", "internal/cli/localtee", "internal/cli/sshkey"}, third: []string{"github.com/spf13/cobra"}},
	{path: "internal/cli/drafttext", floor: 6, beside: []string{"internal/cli/frame", "internal/cli/localtee", "internal/cli/sshkey"}, third: []string{"golang.org/x/crypto"}},
	{path: "internal/cli/partystatement", floor: 6, beside: []string{"internal/authorityclient", "internal/cli/frame", "internal/cli/localtee", "internal/cli/sshkey"}, third: []string{"github.com/spf13/cobra"}},
	{path: "internal/cli/policycmd", floor: 6, beside: []string{"internal/authorityclient", "internal/cli/drafttext", "internal/cli/frame", "internal/cli/localtee", "internal/cli/sshkey"}, third: []string{"github.com/spf13/cobra", "golang.org/x/crypto"}},
	{path: "internal/cli/authoritycmd", floor: 6, beside: []string{"internal/authorityclient", "internal/cli/frame", "internal/cli/localtee", "internal/cli/sshkey"}, third: []string{"github.com/spf13/cobra", "golang.org/x/crypto", "filippo.io/age"}},
	{path: "internal/cli/groupcmd", floor: 6, beside: []string{"internal/authorityclient", "internal/cli/frame", "internal/cli/partystatement", "internal/cli/sshkey"}, third: []string{"github.com/spf13/cobra"}},
	{path: "internal/cli/clientcmd", floor: 6, beside: []string{"internal/authorityclient", "internal/cli/frame", "internal/localproxy"}, third: []string{"github.com/spf13/cobra"}},
	{path: "internal/cli/evidencecmd", floor: 6, beside: []string{"internal/cli/frame", "internal/cli/localtee"}, third: []string{"github.com/spf13/cobra"}},
	{path: "internal/cli/opscmd", floor: 6, beside: []string{"internal/authorityclient", "internal/cli/frame", "internal/cli/localtee", "internal/cli/policycmd"}, third: []string{"github.com/spf13/cobra", "golang.org/x/sys"}},
	{path: "internal/cli/runcmd", floor: 6, beside: []string{"internal/agent", "internal/cli/frame", "internal/cli/localtee", "internal/cli/sshkey"}, third: []string{"github.com/spf13/cobra"}},
	{path: "internal/dev", floor: 6, beside: []string{"internal/authorityclient", "internal/cli/drafttext", "internal/cli/frame", "internal/cli/localtee", "internal/cli/partystatement", "internal/cli/sshkey"}, third: []string{"github.com/pelletier/go-toml/v2"}},
	{path: "internal/dev/check", floor: 6, beside: []string{"internal/authorityclient", "internal/cli/drafttext", "internal/cli/frame", "internal/cli/localtee", "internal/cli/sshkey", "internal/dev"}},
	{path: "internal/dev/check/identitycheck", floor: 6, beside: []string{"internal/authorityclient", "internal/cli/drafttext", "internal/cli/frame", "internal/cli/localtee", "internal/cli/sshkey", "internal/dev", "internal/dev/check"}},
	{path: "internal/dev/check/channelcheck", floor: 6, beside: []string{"internal/authorityclient", "internal/cli/drafttext", "internal/cli/frame", "internal/cli/localtee", "internal/dev", "internal/dev/check"}, third: []string{"github.com/spf13/cobra"}},
	{path: "internal/dev/check/groupcheck", floor: 6, beside: []string{"internal/authorityclient", "internal/cli/drafttext", "internal/cli/frame", "internal/cli/localtee", "internal/cli/partystatement", "internal/cli/sshkey", "internal/dev", "internal/dev/check"}},
	{path: "internal/cli/devcmd", floor: 6, beside: []string{"internal/cli/frame", "internal/dev", "internal/dev/check", "internal/dev/check/channelcheck", "internal/dev/check/groupcheck", "internal/dev/check/identitycheck"}, third: []string{"github.com/spf13/cobra"}},
	{path: "internal/cli", floor: 6, beside: []string{"internal/cli/authoritycmd", "internal/cli/clientcmd", "internal/cli/devcmd", "internal/cli/evidencecmd", "internal/cli/frame", "internal/cli/groupcmd", "internal/cli/opscmd", "internal/cli/policycmd", "internal/cli/runcmd"}, third: []string{"github.com/spf13/cobra", "github.com/spf13/pflag"}},
	{path: "internal/cli/clitest", floor: 6, beside: []string{"internal/cli/drafttext", "internal/cli/frame", "internal/cli/localtee", "internal/cli/sshkey"}, third: []string{"golang.org/x/crypto"}, testsOnly: true},
	{path: "internal/hostilegateway", floor: 5, testsOnly: true},
	{path: "internal/systest", floor: 6, testsOnly: true},
	{path: "bench", floor: 6, testsOnly: true},
	{path: "examples/jointrisk/risk", floor: 5, below: []string{}},
	{path: "examples/client/", floor: 6, below: []string{"attest", "attest/platforms", "client"}},
	{path: "examples/", floor: 6, below: []string{"unit", "client", "examples/jointrisk/risk"}},
	{path: "cmd/cohort", floor: 7, below: []string{"internal/cli"}},
}

// never lists what a room must not reach, even indirectly.
var never = map[string][]string{
	"unit":             {"github.com/nats-io", "github.com/prometheus/client_golang", "modernc.org/sqlite", "github.com/jackc/pgx"},
	"internal/agent":   {"github.com/nats-io", "github.com/prometheus/client_golang", "modernc.org/sqlite", "github.com/jackc/pgx"},
	"client":           {"github.com/nats-io", "github.com/prometheus/client_golang", "modernc.org/sqlite", "github.com/jackc/pgx"},
	"internal/manager": {module + "/attest", module + "/identity", module + "/policy", module + "/internal/channel", module + "/internal/channelhttp", module + "/internal/unitauth"},
	"cmd/cohort":       {module + "/attest/attesttest", module + "/attest/vectortest", module + "/internal/systest", module + "/internal/bus/bustest", module + "/internal/testworld", module + "/internal/cli/clitest", module + "/unit/unittest", module + "/policy/policytest", module + "/internal/authority/store/testdb", module + "/internal/failpoint", "github.com/rogpeppe/go-internal", "testing"},
}

// neverItself lists what a room must not import directly; rooms below it may.
var neverItself = map[string][]string{
	"internal/channel": {"net", "net/http"}, // a state machine; internal/channelhttp connects it
}

// inside lists all third-party code that a room may reach, even indirectly. It names the code
// that runs inside a TEE and parses untrusted bytes, and which bytes. docs/threat-model.md has
// the same table with the bounds.
var inside = map[string][]string{
	"unit": {
		"github.com/pelletier/go-toml/v2",   // policies, which owners sign, and rosters
		"golang.org/x/crypto",               // SSH keys and signatures of owners and parties
		"filippo.io/age", "filippo.io/hpke", // owners' age recipients in policies
		"golang.org/x/sys", "golang.org/x/time", // no untrusted bytes
	},
}

type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func list(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,Deps", "./...").Output()
	if err != nil {
		t.Fatalf("listing packages: %v", err)
	}
	var pkgs []pkg
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p pkg
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return pkgs
		}
		if err != nil {
			t.Fatalf("reading the package list: %v", err)
		}
		pkgs = append(pkgs, p)
	}
}

func find(importPath string) (room, bool) {
	path := strings.TrimPrefix(importPath, module+"/")
	for _, r := range house {
		if r.path == path || strings.HasSuffix(r.path, "/") && strings.HasPrefix(path, r.path) {
			return r, true
		}
	}
	return room{}, false
}

// within reports whether an import path is path or a path below it.
func within(imported, path string) bool {
	return imported == path || strings.HasPrefix(imported, path+"/")
}

func TestFloors(t *testing.T) {
	for _, p := range list(t) {
		if p.ImportPath == module {
			continue
		}
		for _, fault := range faults(p) {
			t.Error(fault)
		}
	}
}

// faults lists the forbidden imports of one package.
func faults(p pkg) []string {
	from, ok := find(p.ImportPath)
	if !ok {
		return []string{p.ImportPath + " has no room: a new package is a design change, say it in doc.go and here"}
	}
	var out []string
	for _, imported := range p.Imports {
		if fault := judge(from, imported); fault != "" {
			out = append(out, p.ImportPath+" imports "+imported+": "+fault)
		}
	}
	name := strings.TrimPrefix(p.ImportPath, module+"/")
	for _, bad := range never[name] {
		for _, dep := range p.Deps {
			if within(dep, bad) {
				out = append(out, p.ImportPath+" reaches "+dep+", which it never may")
			}
		}
	}
	for _, bad := range neverItself[name] {
		if slices.Contains(p.Imports, bad) {
			out = append(out, p.ImportPath+" imports "+bad+", which it never may itself")
		}
	}
	for _, dep := range p.Deps {
		first, _, _ := strings.Cut(dep, "/")
		third := strings.Contains(first, ".") && !within(dep, module)
		if named := inside[name]; named != nil && third && !slices.ContainsFunc(named, func(m string) bool { return within(dep, m) }) {
			out = append(out, p.ImportPath+" reaches "+dep+", which is not on its list")
		}
	}
	return out
}

func judge(from room, imported string) string {
	first, _, _ := strings.Cut(imported, "/")
	switch {
	case within(imported, module):
		return judgeOwn(from, imported)
	case !strings.Contains(first, "."):
		return "" // standard library
	case slices.ContainsFunc(from.third, func(m string) bool { return within(imported, m) }):
		return ""
	}
	return "third-party code outside its package"
}

func judgeOwn(from room, imported string) string {
	to, ok := find(imported)
	switch {
	case !ok:
		return "a package without a room"
	case to.floor >= from.floor && !slices.Contains(from.beside, to.path):
		return "imports go down only"
	case to.testsOnly && !from.testsOnly:
		return "for tests only"
	case from.below != nil && !slices.Contains(from.below, to.path):
		return "not one of the rooms it may import"
	}
	return ""
}

// TestFloorsRefuse: the rules above accept and refuse these imports.
func TestFloorsRefuse(t *testing.T) {
	tests := []struct {
		name     string
		from, to string
		refused  bool
	}{
		{"down", "identity", module + "/attest", false},
		{"up", "attest", module + "/identity", true},
		{"sideways", "unit", module + "/client", true},
		{"one platform to another", "attest/soft", module + "/attest/snp", true},
		{"a report that binds a TPM's key", "attest/snp", module + "/attest/tpm", false},
		{"a TPM that knows reports", "attest/tpm", module + "/attest/snp", true},
		{"test support in code that ships", "internal/authority", module + "/attest/attesttest", true},
		{"a server below its room", "internal/channel", "net/http", true},
		{"no room", "internal/cli", module + "/internal/drawer", true},
		{"a library in its room", "policy/policytoml", "github.com/pelletier/go-toml/v2", false},
		{"a library outside its room", "identity", "github.com/pelletier/go-toml/v2", true},
		{"a library with a longer name", "policy/policytoml", "github.com/pelletier/go-toml/v22", true},
		{"standard library", "internal/wire", "crypto/sha256", false},
		{"an example below the SDK", "examples/scoring", module + "/attest", true},
		{"main around the command line", "cmd/cohort", module + "/client", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := len(faults(pkg{ImportPath: module + "/" + tt.from, Imports: []string{tt.to}})) > 0
			if got != tt.refused {
				t.Errorf("refused = %v, want %v", got, tt.refused)
			}
		})
	}
}
