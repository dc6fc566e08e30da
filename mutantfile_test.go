package cohort

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// mutant is a change that removes one protection, with the test that must fail then. It is a
// block of lines in a file of testdata/mutants, whose path is the folder of the package that it
// changes:
//
//	mutant: NAME
//	protection: WHAT IS TAKEN AWAY
//	test: PACKAGE -run PATTERN
//	removes: REASON, RULE
//
// "removes" makes a guard always false: the condition of the `if` or `case` around the call of
// Refuse with these first two arguments. If another function refuses, the line has the guard
// instead: `if CONDITION` or `case CONDITION`. Where there is no guard, two lines replace a text;
// an empty new text deletes it:
//
//	old: TEXT
//	new: TEXT
//
// Each text is searched in the declaration that a line "in" above it names:
//
//	in: FUNCTION, TYPE.METHOD, TYPE, CONSTANT or VARIABLE
//
// with its folder before it if that is a different package. Only "removes" works without "in":
// then it is searched in the whole package. The text must occur exactly once. It is compared
// token by token: white space, line breaks, semicolons and comments do not matter; in raw strings
// comments do. A line that begins with a tab continues the line above.
type mutant struct {
	name, protection, pkg, run string
	edits                      []edit
}

// edit replaces a part of a file by text. If after is set, the edit can instead put before and
// after around the part: then the program behaves as before while the mutant is off.
type edit struct {
	path                string
	from, to            int
	text, before, after string
}

// reader reads mutants, and parses each package that they change once.
type reader map[string][]declaration // by folder

// joint marks the end of a line that the next line continues.
const joint = "\v"

// read reads the mutants of one file, which change the package in folder. Its error names each
// faulty block; it still returns the other mutants.
func (r reader) read(folder, text string) (all []mutant, err error) {
	for block := range strings.SplitSeq(strings.TrimSpace(text), "\n\n") {
		m, wrong := r.mutant(folder, strings.ReplaceAll(block, "\n\t", joint))
		if wrong != nil {
			err = errors.Join(err, fmt.Errorf("mutant %q: %w", m.name, wrong))
			continue
		}
		all = append(all, m)
	}
	return all, err
}

func (r reader) mutant(folder, block string) (m mutant, err error) {
	scope, err := r.declared(folder, "")
	old := ""
	for line := range strings.SplitSeq(block, "\n") {
		if err != nil {
			break
		}
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(strings.ReplaceAll(value, joint, "\n"))
		switch {
		case old != "" && key != "new":
			err = fmt.Errorf("got line %q after old, want new", line)
		case key == "mutant":
			m.name = value
		case key == "protection":
			m.protection = value
		case key == "test":
			m.pkg, m.run, _ = strings.Cut(value, " -run ")
		case key == "in":
			scope, err = r.declared(folder, value)
		case key == "removes":
			err = m.remove(scope, value)
		case key == "old":
			old = value
		case key == "new":
			err = m.replace(scope, old, value)
			old = ""
		default:
			err = fmt.Errorf("got line %q, want mutant, protection, test, in, removes, old or new", line)
		}
	}
	if err == nil && (m.name == "" || m.protection == "" || m.run == "" || len(m.edits) == 0 || old != "") {
		err = errors.New("want lines mutant, protection, test, and removes, or old and new")
	}
	if !m.switched() {
		for i := range m.edits {
			m.edits[i].after = ""
		}
	}
	return m, err
}

// switched reports whether all edits of the mutant can be switched.
func (m mutant) switched() bool {
	return !slices.ContainsFunc(m.edits, func(e edit) bool { return e.after == "" })
}
