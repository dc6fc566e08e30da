package cohort

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/format"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// mutant is one file of testdata/mutants: a patch that takes one protection
// away, and above it the lines
//
//	protection: WHAT IS TAKEN AWAY
//	test: PACKAGE -run PATTERN
//
// that name what is lost and the test that must notice.
type mutant struct {
	name, protection, pkg, run string
	files                      map[string][]byte // path in the module → changed content
}

// TestMutantsFit reads every mutant: its old text must stand exactly once in
// the file, and docs/threat-cases.md must have its row. It costs nothing, so
// that code that moves away from under a mutant is noticed at once.
func TestMutantsFit(t *testing.T) {
	all := mutants(t)
	if len(all) < 25 {
		t.Errorf("got %d mutants, want at least 25", len(all))
	}
	table := read(t, "docs/threat-cases.md")
	for _, m := range all {
		row := fmt.Sprintf("| %s | `%s` | `%s` `%s` |", m.protection, m.name, m.pkg, m.run)
		if !bytes.Contains(table, []byte(row)) {
			t.Errorf("docs/threat-cases.md has no row\n%s", row)
		}
	}
}

// TestMutants takes away one protection after the other, two at a time, and
// wants the test that is named for it to fail. It takes minutes and both cores,
// so it waits to be asked for.
func TestMutants(t *testing.T) {
	if testing.Short() || os.Getenv("COHORT_FULL") == "" {
		t.Skip("SKIPPED: no mutant was run; COHORT_FULL=1 and no -short run them")
	}
	slots := make(chan struct{}, 2)
	for _, m := range mutants(t) {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			slots <- struct{}{}
			defer func() { <-slots }()
			begin := time.Now()
			by := m.kill(t)
			t.Logf("%.1fs: without %q fails %s", time.Since(begin).Seconds(), m.protection, by)
		})
	}
}

// failed finds the tests that a run of go test says have failed.
var failed = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)`)

// kill runs the mutant's test on the changed code, which must build and fail,
// and gives the innermost test that did.
func (m mutant) kill(t *testing.T) string {
	t.Helper()
	overlay := m.overlay(t)
	command := []string{"test", "-overlay", overlay, "-count=1", "-vet=off", "-timeout=60s", "-run", m.run, m.pkg}
	out, err := exec.Command("go", command...).CombinedOutput()
	var exit *exec.ExitError
	found := failed.FindAllSubmatch(out, -1)
	switch {
	case err == nil:
		t.Errorf("survived: without %s, %s %s passes:\n%s", m.protection, m.pkg, m.run, out)
	case !errors.As(err, &exit):
		t.Errorf("running go test: %v", err)
	case len(found) == 0:
		t.Errorf("no test failed; does it build?\n%s", out)
	default:
		return string(found[len(found)-1][1])
	}
	return "nothing"
}

// overlay writes the changed files beside the tree, and the list of them that
// the go command reads.
func (m mutant) overlay(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	replace := make(map[string]string)
	for path, content := range m.files {
		source, err := filepath.Abs(path)
		if err != nil {
			t.Fatal(err)
		}
		replace[source] = filepath.Join(dir, strings.ReplaceAll(path, "/", "_"))
		write(t, replace[source], content)
	}
	list, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "overlay.json")
	write(t, path, list)
	return path
}

// mutants reads all of them and applies their patches in memory.
func mutants(t *testing.T) []mutant {
	t.Helper()
	paths, err := filepath.Glob("testdata/mutants/*.patch")
	if err != nil {
		t.Fatal(err)
	}
	var all []mutant
	for _, path := range paths {
		m, err := parseMutant(path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		all = append(all, m)
	}
	return all
}

func parseMutant(path string) (mutant, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return mutant{}, err
	}
	m := mutant{name: strings.TrimSuffix(filepath.Base(path), ".patch"), files: make(map[string][]byte)}
	head, patch, _ := strings.Cut(string(text), "--- a/")
	for line := range strings.Lines(head) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch key {
		case "protection":
			m.protection = value
		case "test":
			m.pkg, m.run, _ = strings.Cut(value, " -run ")
		default:
			return m, fmt.Errorf("line %q: want protection or test", line)
		}
	}
	if m.protection == "" || m.run == "" || patch == "" {
		return m, errors.New("want lines protection and test, then a patch")
	}
	for part := range strings.SplitSeq(patch, "\n--- a/") {
		if err := m.apply(part); err != nil {
			return m, err
		}
	}
	return m, nil
}

// apply makes the changes of one file of a patch. Where they belong is found by
// their old text, not by line numbers, so that code above may move.
func (m mutant) apply(patch string) error {
	hunks := strings.Split(patch, "\n@@ ")
	path, _, _ := strings.Cut(hunks[0], "\n")
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for _, hunk := range hunks[1:] {
		old, changed := sides(hunk)
		if n := bytes.Count(content, old); n != 1 {
			return fmt.Errorf("%s: the old text stands %d times in it, want once:\n%s", path, n, old)
		}
		content = bytes.Replace(content, old, changed, 1)
	}
	if _, err := format.Source(content); err != nil {
		return fmt.Errorf("%s, changed: %w", path, err)
	}
	m.files[path] = content
	return nil
}

// sides are the text of a hunk before and after.
func sides(hunk string) (old, changed []byte) {
	_, body, _ := strings.Cut(hunk, "\n")
	for line := range strings.Lines(strings.TrimSuffix(body, "\n") + "\n") {
		if line[0] != '+' {
			old = append(old, line[1:]...)
		}
		if line[0] != '-' {
			changed = append(changed, line[1:]...)
		}
	}
	return old, changed
}

// TestThreatCases: every test that docs/threat-cases.md names is there. A test
// stands behind its package, on the same line.
func TestThreatCases(t *testing.T) {
	name := regexp.MustCompile("`(\\./[\\w/]+|Test\\w+)[^`]*`")
	found := 0
	for line := range strings.Lines(string(read(t, "docs/threat-cases.md"))) {
		folder := ""
		for _, token := range name.FindAllStringSubmatch(line, -1) {
			switch {
			case token[1][0] == '.':
				folder = token[1]
			case folder != "":
				found++
				if !hasTest(t, folder, token[1]) {
					t.Errorf("docs/threat-cases.md names %s of %s, which is not there", token[1], folder)
				}
			}
		}
	}
	if found < 50 {
		t.Errorf("got %d tests in docs/threat-cases.md, want them all", found)
	}
}

func hasTest(t *testing.T, folder, test string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if bytes.Contains(read(t, file), []byte("func "+test+"(")) {
			return true
		}
	}
	return false
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}
