package cohort

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// elsewhere are the systems beside linux on which evidence is appraised. Files that ask
// a TEE for evidence are built for linux alone, where all TEEs are, so that a program
// which only appraises links no driver of a device.
var elsewhere = []string{"darwin/arm64", "windows/amd64", "js/wasm"}

// appraising are the packages that appraise, and those that need no more than they do.
var appraising = []string{"attest", "attest/dcap", "attest/nitro", "attest/nvidia", "attest/snp", "attest/soft", "attest/tpm", "identity", "policy", "client"}

// crossBuild builds for a system. It takes minutes the first time, so it waits to be
// asked for.
func crossBuild(t *testing.T, system string, args ...string) {
	t.Helper()
	build := exec.Command("go", append([]string{"build"}, args...)...)
	name, machine, _ := strings.Cut(system, "/")
	build.Env = append(os.Environ(), "GOOS="+name, "GOARCH="+machine, "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func skipCrossBuilds(t *testing.T) {
	t.Helper()
	if testing.Short() || os.Getenv("COHORT_FULL") == "" {
		t.Skip("SKIPPED: nothing was built for other systems; COHORT_FULL=1 and no -short build it")
	}
}

func TestBuildsElsewhere(t *testing.T) {
	skipCrossBuilds(t)
	for _, system := range elsewhere {
		t.Run(system, func(t *testing.T) {
			var args []string
			for _, path := range appraising {
				args = append(args, "./"+path)
			}
			crossBuild(t, system, args...)
		})
	}
}

// TestClientCommandsElsewhere: the commands of clients build on the systems that people
// have at their desks.
func TestClientCommandsElsewhere(t *testing.T) {
	skipCrossBuilds(t)
	for _, system := range []string{"darwin/arm64", "windows/amd64"} {
		t.Run(system, func(t *testing.T) { crossBuild(t, system, "./internal/cli/clientcmd") })
	}
}

// TestClientRefusesTLS: on js/wasm, where no handshake calls VerifyConnection, package
// client opens no TLS connection.
func TestClientRefusesTLS(t *testing.T) {
	skipCrossBuilds(t)
	program := filepath.Join(t.TempDir(), "notls.wasm")
	crossBuild(t, "js/wasm", "-o", program, "./client/testdata/notls")
	if _, err := exec.LookPath("node"); err != nil {
		t.Skip("NO NODE: the program for js/wasm was built, and not run")
	}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	run := exec.Command(filepath.Join(strings.TrimSpace(string(root)), "lib/wasm/go_js_wasm_exec"), program)
	run.Env = []string{"PATH=" + os.Getenv("PATH")} // the runtime bounds arguments and environment to 12 KiB
	if out, err := run.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
