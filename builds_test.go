package cohort

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// elsewhere are the systems beside linux on which evidence is appraised, and what does
// not build there yet, each with its reason. Files that ask a TEE for evidence are built
// for linux alone, where all TEEs are, so that a program which only appraises links no
// driver of a device.
var elsewhere = map[string][]string{
	"darwin/arm64":  nil,
	"windows/amd64": nil,
	"js/wasm":       {"attest/snp"}, // its reader of reports links a logger of files, which js has not
}

// appraising are the packages that appraise, and those that need no more than they do.
var appraising = []string{"attest", "attest/dcap", "attest/nitro", "attest/nvidia", "attest/snp", "attest/soft", "attest/tpm", "identity", "policy"}

// TestBuildsElsewhere builds for each system, which for the first time takes minutes, so
// it waits to be asked for.
func TestBuildsElsewhere(t *testing.T) {
	if testing.Short() || os.Getenv("COHORT_FULL") == "" {
		t.Skip("SKIPPED: nothing was built for other systems; COHORT_FULL=1 and no -short build it")
	}
	for system, without := range elsewhere {
		t.Run(system, func(t *testing.T) {
			command := []string{"build"}
			for _, path := range appraising {
				if !slices.Contains(without, path) {
					command = append(command, "./"+path)
				}
			}
			build := exec.Command("go", command...)
			name, machine, _ := strings.Cut(system, "/")
			build.Env = append(os.Environ(), "GOOS="+name, "GOARCH="+machine, "CGO_ENABLED=0")
			if out, err := build.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
