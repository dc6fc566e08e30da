package cohort

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestMutants removes one protection after the other, two at a time: the test that the mutant
// names must fail. It takes minutes and two cores, so it runs only with COHORT_FULL=1.
//
// Mutants that can be switched are chosen by [mutantVariable], so that one build of a package's
// tests serves all of them. There a test counts only if it passes while no mutant is on. If it
// passes with the mutant on too, for example because it starts a program with a different
// environment, and for all other mutants, the test is built for that mutant alone.
func TestMutants(t *testing.T) {
	if testing.Short() || os.Getenv("COHORT_FULL") == "" {
		t.Skip("SKIPPED: no mutant was run; COHORT_FULL=1 and no -short run them")
	}
	slots := make(chan struct{}, 2)
	all := mutants(t)
	shared := make(map[string]*tests)
	for pkg, some := range switched(all) {
		shared[pkg] = &tests{pkg: pkg, dir: t.TempDir(), mutants: some, passes: make(map[string]error)}
	}
	for _, m := range all {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			slots <- struct{}{}
			defer func() { <-slots }()
			begin, form, by := time.Now(), "switched", ""
			if m.switched() {
				by = shared[m.pkg].fails(t, m)
			}
			if by == "" {
				form, by = "alone", m.fails(t)
			}
			t.Logf("%s, %.1fs: without %q fails %s", form, time.Since(begin).Seconds(), m.protection, by)
		})
	}
}

// mutantVariable is the environment variable that names the mutant that is on.
const mutantVariable = "COHORT_MUTANT"

// short makes the mutants' tests run in their short form, as for every change.
const short = "COHORT_FULL="

// failed matches the tests that go test reports as failed.
var failed = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)`)

// fails runs the mutant's test on code with this change alone, which must build and fail. It
// returns the innermost failed test.
func (m mutant) fails(t *testing.T) string {
	t.Helper()
	overlay := overlay(t, t.TempDir(), fmt.Sprintf("const mutated = %q", m.name), m)
	command := []string{"test", "-overlay", overlay, "-count=1", "-vet=off", "-timeout=60s", "-run", m.run, m.pkg}
	test := exec.Command("go", command...)
	test.Env = append(os.Environ(), short)
	out, err := test.CombinedOutput()
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

// tests are the tests of one package, built once for the mutants that can be switched.
type tests struct {
	pkg, dir string
	mutants  []mutant

	mu     sync.Mutex       // guards the fields below
	binary string           // empty before the tests are built
	passes map[string]error // results by pattern, while no mutant is on
}

// fails runs the test of m with m on, and returns the innermost failed test, or "" if none
// failed.
func (s *tests) fails(t *testing.T, m mutant) string {
	t.Helper()
	if err := s.passing(t, m.run); err != nil {
		t.Fatal(err)
	}
	out, err := s.run(m.run, m.name)
	if found := failed.FindAllSubmatch(out, -1); err != nil && len(found) > 0 {
		return string(found[len(found)-1][1])
	}
	return ""
}

// passing builds the tests once, and runs the tests of each pattern once while no mutant is on.
func (s *tests) passing(t *testing.T, pattern string) error {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.binary == "" {
		s.binary = filepath.Join(s.dir, "test")
		overlay := overlay(t, s.dir, "import \"os\"\n\nvar mutated = os.Getenv(\""+mutantVariable+"\")", s.mutants...)
		if out, err := exec.Command("go", "test", "-c", "-overlay", overlay, "-vet=off", "-o", s.binary, s.pkg).CombinedOutput(); err != nil {
			return fmt.Errorf("building the tests of %s with its mutants: %w\n%s", s.pkg, err, out)
		}
	}
	if _, known := s.passes[pattern]; !known {
		out, err := s.run(pattern, "")
		if err != nil {
			err = fmt.Errorf("%s -run %s fails while no mutant is on: %w\n%s", s.pkg, pattern, err, out)
		}
		s.passes[pattern] = err
	}
	return s.passes[pattern]
}

func (s *tests) run(pattern, mutant string) ([]byte, error) {
	test := exec.Command(s.binary, "-test.run", pattern, "-test.timeout=60s")
	test.Dir, test.Env = s.pkg, append(os.Environ(), short, mutantVariable+"="+mutant)
	return test.CombinedOutput()
}

// overlay writes the changed files, a file for each changed package that names the mutant that is
// on, and the overlay list that the go command reads. It returns the path of the list.
func overlay(t *testing.T, dir, on string, all ...mutant) string {
	t.Helper()
	replace := make(map[string]string)
	add := func(path string, content []byte) {
		source, err := filepath.Abs(path)
		if err != nil {
			t.Fatal(err)
		}
		replace[source] = filepath.Join(dir, strings.ReplaceAll(path, "/", "_"))
		write(t, replace[source], content)
	}
	for path, content := range changed(t, all...) {
		add(path, content)
		name := regexp.MustCompile(`(?m)^package \w+$`).Find(content)
		add(filepath.Join(filepath.Dir(path), "mutated.go"), fmt.Appendf(name, "\n\n%s\n", on))
	}
	list, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "overlay.json")
	write(t, path, list)
	return path
}

// switched returns the mutants that can be switched, by the package of their tests.
func switched(all []mutant) map[string][]mutant {
	by := make(map[string][]mutant)
	for _, m := range all {
		if m.switched() {
			by[m.pkg] = append(by[m.pkg], m)
		}
	}
	return by
}

// changed returns the files that mutants change, by path, with all changes.
func changed(t *testing.T, all ...mutant) map[string][]byte {
	t.Helper()
	edits := make(map[string][]edit)
	for _, m := range all {
		for _, e := range m.edits {
			edits[e.path] = append(edits[e.path], e)
		}
	}
	files := make(map[string][]byte)
	for path, edits := range edits {
		// If one edit is inside another, the outer one comes first.
		slices.SortStableFunc(edits, func(a, b edit) int { return cmp.Or(a.from-b.from, b.to-a.to) })
		content := read(t, path)
		var err error
		if files[path], err = apply(content, 0, len(content), edits); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	return files
}

// apply makes edits, which all are between from and to, and returns that part of content.
func apply(content []byte, from, to int, edits []edit) (out []byte, err error) {
	for len(edits) > 0 {
		e, inside := edits[0], 1
		for inside < len(edits) && edits[inside].from < e.to {
			if edits[inside].to > e.to || e.after == "" {
				return nil, fmt.Errorf("two changes overlap: %q and %q", e.text, edits[inside].text)
			}
			inside++
		}
		out = append(out, content[from:e.from]...)
		if e.after == "" {
			out = append(out, e.text...)
		} else {
			part, err := apply(content, e.from, e.to, edits[1:inside])
			if err != nil {
				return nil, err
			}
			out = slices.Concat(out, []byte(e.before), part, []byte(e.after))
		}
		from, edits = e.to, edits[inside:]
	}
	return append(out, content[from:to]...), nil
}
