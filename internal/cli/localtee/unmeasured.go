//go:build linux

package localtee

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// interpreter matches the names of programs whose work is code that they read from
// elsewhere.
var interpreter = regexp.MustCompile(`^(python|pypy|node|nodejs|deno|bun|java|ruby|jruby|perl|php|php-fpm|lua|luajit|R|Rscript|julia|dotnet|mono|erl|escript|beam\.smp|elixir|guile|tclsh|bash|sh|dash|ash|zsh|fish|ksh|busybox|qemu-.*|wasmtime|wasmer)[0-9.]*$`)

// unmeasured lists what a program's work depends on and no measurement of it
// covers, as far as can be seen: one sentence each. Its file and its arguments, as
// text, are measured.
func unmeasured(program []string, dynamic bool) []string {
	var notes []string
	name := filepath.Base(program[0])
	if dynamic {
		notes = append(notes, "the shared libraries that "+name+" loads")
	}
	if what := interpreted(program[0]); what != "" {
		notes = append(notes, "the code that "+what+" runs, and its modules: the operator of the machine can replace them (docs/how-to/interpreters.md)")
	}
	for _, file := range filesOf(program[1:]) {
		notes = append(notes, "the content of "+file+", whose name alone is in the arguments")
	}
	return notes
}

// interpreted is the name by which a program is known as an interpreter: its own, or
// that of the file that it links to.
func interpreted(path string) string {
	real, err := filepath.EvalSymlinks(path)
	for _, name := range []string{filepath.Base(path), filepath.Base(real)} {
		if interpreter.MatchString(name) {
			return name
		}
		if err != nil {
			break
		}
	}
	return ""
}

// filesOf are the arguments, or what follows "=" in them, that name something on
// this disk, each once.
func filesOf(args []string) []string {
	var files []string
	seen := map[string]bool{}
	for _, arg := range args {
		if _, value, is := strings.Cut(arg, "="); is && strings.HasPrefix(arg, "-") {
			arg = value
		}
		for _, part := range filepath.SplitList(arg) { // a class path has several
			if _, err := os.Stat(part); err == nil && part != "" && !seen[part] {
				seen[part] = true
				files = append(files, part)
			}
		}
	}
	return files
}
