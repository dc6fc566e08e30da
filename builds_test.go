package cohort

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// elsewhere are the systems besides Linux on which programs appraise evidence. Files that request
// evidence from a TEE are built for Linux only, where all TEEs are. So a program that only
// appraises links no device driver.
var elsewhere = []string{"darwin/arm64", "windows/amd64", "js/wasm"}

// appraising are the packages that appraise evidence, and the packages that need only those.
var appraising = []string{"attest", "attest/dcap", "attest/nitro", "attest/nvidia", "attest/snp", "attest/soft", "attest/tpm", "identity", "policy", "client"}

// crossBuild builds for a system. The first build takes minutes, so it runs only with
// COHORT_FULL=1.
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

// clientCommands are the packages of the commands of owners, parties and clients.
var clientCommands = []string{"./internal/cli/clientcmd", "./internal/cli/policycmd", "./internal/cli/groupcmd", "./internal/cli/evidencecmd"}

// TestClientCommandsElsewhere: cohort builds on the systems that people have at their desks,
// without what serves, and the commands of owners, parties and clients build for js/wasm too.
func TestClientCommandsElsewhere(t *testing.T) {
	skipCrossBuilds(t)
	for _, system := range desks {
		t.Run(system, func(t *testing.T) {
			crossBuild(t, system, "-o", filepath.Join(t.TempDir(), "cohort"), "./cmd/cohort")
		})
	}
	t.Run("js/wasm", func(t *testing.T) { crossBuild(t, "js/wasm", clientCommands...) })
}

// TestClientRefusesTLS: on js/wasm, where no handshake calls VerifyConnection, package client
// opens no TLS connection.
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
	run.Env = []string{"PATH=" + os.Getenv("PATH")} // the wasm runtime limits arguments and environment to 12 KiB
	if out, err := run.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
