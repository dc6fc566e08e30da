package dev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/pelletier/go-toml/v2"
)

const (
	exampleSchema = "cohort/dev-example/v1"
	maxExample    = 64 << 10 // maximum bytes of a description
)

// Example describes the programs of a development cluster: three units of one program, or one
// unit of each role of a group. It is read from a TOML file in the folder of the programs.
type Example struct {
	Schema  string    `toml:"schema"`  // "cohort/dev-example/v1"
	Name    string    `toml:"name"`    // name of the task or of the group
	Program string    `toml:"program"` // program of the task: "." or a folder of Go code, relative to the file
	Args    []string  `toml:"args"`
	Page    string    `toml:"page"` // program of a page for browsers, which takes --listen, --gateway, --genesis and --task
	Stream  *Stream   `toml:"stream"`
	Data    *Data     `toml:"data"`
	Roles   []Role    `toml:"role"` // roles of the group; the cluster's units have the same order
	Request *Requests `toml:"request"`

	dir string // folder of the file
}

// Stream is a request whose response is a stream of events.
type Stream struct {
	Path  string `toml:"path" json:"path"`
	Body  string `toml:"body" json:"body"`
	Event string `toml:"event" json:"event"` // text that occurs in each event
	Count int    `toml:"count" json:"count"` // number of events
}

// Data is the input data of a group's programs. In arguments, {data} is replaced with its folder
// and {rows} with its size.
type Data struct {
	Program   string   `toml:"program"`
	Args      []string `toml:"args"`
	Rows      int      `toml:"rows"`       // size without --rows
	CheckRows int      `toml:"check_rows"` // size with --check
}

// Role is a role of the group, with the program and the party of its only member. Its task has
// the same name.
type Role struct {
	Name    string   `toml:"name"`
	Party   string   `toml:"party"`
	Program string   `toml:"program"`
	Args    []string `toml:"args"`
	Calls   []string `toml:"calls"`
}

// Requests describes the request of a user to a role of the group.
type Requests struct {
	Role      string   `toml:"role"`
	Path      string   `toml:"path"`
	Same      []string `toml:"same"`       // arguments with which the data's program prints the same response
	Note      string   `toml:"note"`       // description of that command, for users
	HandedOut string   `toml:"handed_out"` // text that a called role logs each time it returns data
}

// ReadExample reads the description of an example from a file.
func ReadExample(path string) (Example, error) {
	e := Example{}
	b, err := frame.ReadFile(path, maxExample)
	if err != nil {
		return e, err
	}
	if err := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields().Decode(&e); err != nil {
		return e, frame.Usage("%s: %w", path, err)
	}
	if err := e.validate(); err != nil {
		return e, frame.Usage("%s: %w", path, err)
	}
	e.dir, err = filepath.Abs(filepath.Dir(path))
	return e, err
}

// FindExample reads the description of the example with a name: NAME.toml in the folder of this
// executable, or examples/NAME/dev.toml in the source tree.
func FindExample(name string) (Example, error) {
	self, err := os.Executable()
	if err != nil {
		return Example{}, err
	}
	if !wire.ValidName(name) {
		return Example{}, frame.Usage("--example: got %q, want a name", name)
	}
	paths := []string{filepath.Join(filepath.Dir(self), name+".toml")}
	if tree, ok := sourceTree(); ok {
		paths = append(paths, filepath.Join(tree, "examples", name, "dev.toml"))
	}
	for _, path := range paths {
		if _, err := os.Stat(path); err == nil {
			return ReadExample(path)
		}
	}
	return Example{}, &frame.Fault{
		Code: frame.CodeUsage, Cause: fmt.Errorf("--example: got %q, and its description is neither beside %s nor in a source tree here", name, self),
		Hint: "run it in the source tree, give the file of the description, or a program of your own: cohort dev -- ./my-server",
	}
}

// validate refuses an incomplete or contradictory description.
func (e Example) validate() error {
	switch {
	case e.Schema != exampleSchema:
		return fmt.Errorf("schema: got %q, want %s", e.Schema, exampleSchema)
	case !wire.ValidName(e.Name):
		return fmt.Errorf("name: got %q, want a name", e.Name)
	case (e.Program == "") == (len(e.Roles) == 0):
		return errors.New("want program, or roles")
	case len(e.Roles) == 0 && (e.Data != nil || e.Request != nil):
		return errors.New("data and request are for roles")
	case len(e.Roles) > 0 && e.Page != "":
		return errors.New("page is for a program, not for roles")
	case len(e.Roles) > 0 && (e.Data == nil || e.Request == nil):
		return errors.New("roles want data and request")
	case len(e.Roles) > 0 && (e.roleIndex(e.Request.Role) < 0 || !strings.HasPrefix(e.Request.Path, "/")):
		return fmt.Errorf("request: got role %q and path %q, want a role and a path", e.Request.Role, e.Request.Path)
	case e.Data != nil && (e.Data.Rows < 1 || e.Data.CheckRows < 1):
		return fmt.Errorf("data: got rows %d and check_rows %d, want 1 or more", e.Data.Rows, e.Data.CheckRows)
	}
	names := map[string]bool{}
	for _, r := range e.Roles {
		if !wire.ValidName(r.Name) || !wire.ValidName(r.Party) || r.Program == "" || names[r.Name] {
			return fmt.Errorf("role %q: want a name of its own, a party and a program", r.Name)
		}
		names[r.Name] = true
		for _, called := range r.Calls {
			if e.roleIndex(called) < 0 {
				return fmt.Errorf("role %q: calls: got %q, want a role", r.Name, called)
			}
		}
	}
	return nil
}

// roleIndex returns the index of a role, or -1 if there is none.
func (e Example) roleIndex(name string) int {
	return slices.IndexFunc(e.Roles, func(r Role) bool { return r.Name == name })
}

// Grouped reports whether the example is a group.
func (e Example) Grouped() bool { return len(e.Roles) > 0 }

// Asked returns the index of the role to which users send requests.
func (e Example) Asked() int { return e.roleIndex(e.Request.Role) }

// Holders returns the indices of the roles that are called by other roles and call none: these
// roles hold data.
func (e Example) Holders() (places []int) {
	for i, r := range e.Roles {
		called := func(other Role) bool { return slices.Contains(other.Calls, r.Name) }
		if len(r.Calls) == 0 && slices.ContainsFunc(e.Roles, called) {
			places = append(places, i)
		}
	}
	return places
}

// Parties returns the names of the parties, sorted.
func (e Example) Parties() (names []string) {
	for _, r := range e.Roles {
		names = append(names, r.Party)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// OfParty returns the index of the first role of a party.
func (e Example) OfParty(party string) int {
	return slices.IndexFunc(e.Roles, func(r Role) bool { return r.Party == party })
}

// MainTask returns the task in the description of a cluster of the example.
func (e Example) MainTask() string {
	if e.Grouped() {
		return e.Request.Role
	}
	return e.Name
}

// tables returns the folder of the data, for a cluster in dir.
func (f Flags) tables(dir string) string {
	rows := f.Rows
	switch {
	case rows == 0 && f.Checking:
		rows = f.Example.Data.CheckRows
	case rows == 0:
		rows = f.Example.Data.Rows
	}
	return filepath.Join(dir, "tables-"+strconv.Itoa(rows))
}

// RowsOf returns the size of the data in a folder, from the folder's name.
func RowsOf(tables string) string { return strings.TrimPrefix(filepath.Base(tables), "tables-") }

// FindPrograms finds the programs of an example in the folder of the executable self, or builds
// them into dir. It generates a group's data if it does not exist.
func (f Flags) FindPrograms(ctx context.Context, b Binaries, self, dir string) (Binaries, error) {
	b.Example = f.Example
	var err error
	if f.Example.Page != "" && !f.Checking {
		if b.Page, err = f.Example.findProgram(ctx, f.Example.Page, self, dir); err != nil {
			return b, err
		}
	}
	if !f.Example.Grouped() {
		path, err := f.Example.findProgram(ctx, f.Example.Program, self, dir)
		b.Program = append([]string{path}, f.Example.Args...)
		return b, err
	}
	b.Tables = f.tables(dir)
	if b.Generate, err = f.Example.findProgram(ctx, f.Example.Data.Program, self, dir); err != nil {
		return b, err
	}
	for _, r := range f.Example.Roles {
		path, err := f.Example.findProgram(ctx, r.Program, self, dir)
		if err != nil {
			return b, err
		}
		b.Members = append(b.Members, append([]string{path}, b.filled(r.Args, b.Tables)...))
	}
	b.Program = b.Members[f.Example.Asked()]
	return b, b.MakeTables(ctx)
}

// findProgram returns the path of a program of the example, which it builds if necessary.
func (e Example) findProgram(ctx context.Context, program, self, dir string) (string, error) {
	name := filepath.Join(e.Name, program)
	if !e.Grouped() && program != e.Program {
		name = e.Name + "-" + program // the program itself is a file with the name of the folder
	}
	beside := filepath.Join(filepath.Dir(self), name)
	if info, err := os.Stat(beside); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
		return beside, nil
	}
	source := filepath.Join(e.dir, program)
	if files, _ := filepath.Glob(filepath.Join(source, "*.go")); len(files) == 0 {
		return "", &frame.Fault{
			Code: frame.CodeFile, Cause: fmt.Errorf("finding program %s: neither beside %s nor Go code in %s", name, self, source),
			Hint: "build it, or give a program of your own: cohort dev -- ./my-server",
		}
	}
	return build(ctx, source, ".", filepath.Join(dir, "bin", name))
}

// filled replaces {data} and {rows} in arguments.
func (b Binaries) filled(args []string, folder string) []string {
	filled := make([]string, len(args))
	for i, arg := range args {
		filled[i] = strings.NewReplacer("{data}", folder, "{rows}", RowsOf(b.Tables)).Replace(arg)
	}
	return filled
}

// MakeTables generates the data if it does not exist.
func (b Binaries) MakeTables(ctx context.Context) error {
	if _, err := os.Stat(b.Tables); err == nil {
		return nil
	}
	unfinished, err := os.MkdirTemp(filepath.Dir(b.Tables), "unfinished-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(unfinished)
	if out, err := exec.CommandContext(ctx, b.Generate, b.filled(b.Example.Data.Args, unfinished)...).CombinedOutput(); err != nil {
		return fmt.Errorf("making data of %s rows: %w: %s", RowsOf(b.Tables), err, bytes.TrimSpace(out))
	}
	return os.Rename(unfinished, b.Tables)
}

// requestCommand returns the command that prints the same result as the example's request.
func (b Binaries) requestCommand() []string {
	return append([]string{b.Generate}, b.filled(b.Example.Request.Same, b.Tables)...)
}

// Pooled returns the result of the example's request, computed by one program on all data.
func (b Binaries) Pooled(ctx context.Context) ([]byte, error) {
	command := b.requestCommand()
	out, err := exec.CommandContext(ctx, command[0], command[1:]...).Output()
	if err != nil {
		return nil, fmt.Errorf("computing on all data: %w", err)
	}
	return out, nil
}
