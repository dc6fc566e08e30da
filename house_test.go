package cohort

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/constant"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode"
)

// checkedPackage is a package with its files and types.
type checkedPackage struct {
	path  string // relative to the module: "internal/wire"
	files []*ast.File
	info  *types.Info
	types *types.Package
}

// shippedCode is all code that ships: the packages that the commands and the SDK reach.
type shippedCode struct {
	fset     *token.FileSet
	imports  types.Importer // of what the packages import
	packages []*checkedPackage
}

// loadShipped parses and type-checks the shipped packages once for all tests.
var loadShipped = sync.OnceValues(func() (*shippedCode, error) {
	out, err := exec.Command("go", "list", "-export", "-deps", "-json=ImportPath,Dir,GoFiles,Export,Standard", "./cmd/...", "./unit", "./client").Output()
	if err != nil {
		return nil, fmt.Errorf("listing packages: %w", err)
	}
	type listed struct {
		ImportPath, Dir, Export string
		GoFiles                 []string
		Standard                bool
	}
	exports := map[string]string{}
	var own []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("reading the package list: %w", err)
		}
		exports[p.ImportPath] = p.Export
		if within(p.ImportPath, module) {
			own = append(own, p)
		}
	}
	s := &shippedCode{fset: token.NewFileSet()}
	s.imports = importer.ForCompiler(s.fset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) })
	for _, p := range own {
		c := &checkedPackage{
			path: strings.TrimPrefix(p.ImportPath, module+"/"),
			info: &types.Info{Defs: map[*ast.Ident]types.Object{}, Uses: map[*ast.Ident]types.Object{}, Types: map[ast.Expr]types.TypeAndValue{}},
		}
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(s.fset, filepath.Join(p.Dir, name), nil, parser.ParseComments)
			if err != nil {
				return nil, err
			}
			c.files = append(c.files, f)
		}
		config := types.Config{Importer: s.imports}
		if c.types, err = config.Check(p.ImportPath, s.fset, c.files, c.info); err != nil {
			return nil, err
		}
		s.packages = append(s.packages, c)
	}
	return s, nil
})

// shipped returns the shipped code, or fails the test.
func shipped(t *testing.T) *shippedCode {
	t.Helper()
	s, err := loadShipped()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// fileOf returns the base name of the file that a position is in.
func (s *shippedCode) fileOf(pos token.Pos) string {
	return filepath.Base(s.fset.Position(pos).Filename)
}

// functions lists every function and method as "package.Type.name".
func (s *shippedCode) functions() (list []*types.Func) {
	for _, p := range s.packages {
		for _, f := range p.files {
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Name.Name != "_" {
					list = append(list, p.info.Defs[fn.Name].(*types.Func))
				}
			}
		}
	}
	return list
}

// wantCount fails the test and prints the list when it is longer than its bound.
func wantCount(t *testing.T, what string, list []string, most int) {
	t.Helper()
	slices.Sort(list)
	t.Logf("%s: %d, at most %d", what, len(list), most)
	if len(list) > most {
		t.Errorf("%s: got %d, want at most %d:\n%s", what, len(list), most, strings.Join(list, "\n"))
	}
}

// oneHome lists facts that once had several places: a pattern that matches such a place, and the
// files that may have it.
var oneHome = []struct {
	fact, like string
	homes      []string // files, or packages with a trailing "/"
}{
	{"a link of a vendor's chain", `\.CheckSignatureFrom\(`, []string{"attest/internal/pki/"}},
	{"a vendor's revocation list", `x509\.ParseRevocationList\(`, []string{"attest/internal/pki/", "internal/collateral/collateral.go" /* reads when it ends */}},
	{"a certificate in PEM", `pem\.Decode\(`, []string{"attest/internal/pki/", "attest/nitro/eif.go" /* of an image */, "attest/soft/keys.go" /* a key */, "internal/cli/frame/files.go" /* what operators bring */, "attest/attesttest/", "attest/vectortest/"}},
	{"what a carrier may read", `LabelSealed\b|LabelSealedSession\b|LabelTombstone\b|LabelTombstoneBound\b|LabelPin\b`, []string{"internal/wire/label.go", "internal/envelope/", "internal/dev/check/channelcheck/" /* stories build bad ones */}},
	{"a bucket for each address", `map\[netip\.Addr\]\*rate\.Limiter`, []string{"internal/limit/buckets.go"}},
	{"the connections of a server", `case http\.StateActive`, []string{"internal/limit/connections.go"}},
	{"the HTTP status of a reason", `wire\.\w+: .*http\.Status`, []string{"internal/api/status.go"}},
	{"a wait that doubles", `\*= 2$|<< (doublings|failures|tries|attempts?)\b|rand\.Float64\(`, []string{"internal/retry/retry.go", "client/" /* draws, so that tests can give the jitter */}},
}

// TestOneHome: no shipped file outside the homes of a fact matches its pattern.
func TestOneHome(t *testing.T) {
	for _, fact := range oneHome {
		like, found := regexp.MustCompile("(?m)"+fact.like), 0
		for _, p := range shipped(t).packages {
			for _, f := range p.files {
				path := filepath.Join(p.path, shipped(t).fileOf(f.Pos()))
				if !like.Match(read(t, path)) {
					continue
				}
				found++
				if !slices.ContainsFunc(fact.homes, func(home string) bool { return strings.HasPrefix(path, home) }) {
					t.Errorf("%s: %s is a second place of it, want only %v", fact.fact, path, fact.homes)
				}
			}
		}
		if found == 0 {
			t.Errorf("%s: stands nowhere; has it another look now?", fact.fact)
		}
	}
}

// mostLines bounds the lines of a shipped package. A package in longer keeps one protocol or one
// type whole.
const mostLines = 2500

var longer = map[string]string{
	"internal/channel": "one protocol: handshake, table of sessions, requests, responses",
	"client":           "one client of a cluster: what it trusts, and how a request finds a replica",
}

func TestPackageSize(t *testing.T) {
	if len(longer) > 3 {
		t.Errorf("%d packages have an exception, want at most 3", len(longer))
	}
	for _, p := range shipped(t).packages {
		lines := 0
		for _, f := range p.files {
			lines += shipped(t).fset.File(f.FileStart).LineCount()
		}
		most := mostLines
		if longer[p.path] != "" {
			most = 3500
		}
		if lines > most {
			t.Errorf("%s has %d lines, want at most %d", p.path, lines, most)
		}
	}
}

func TestShortNames(t *testing.T) {
	var short []string
	for _, f := range shipped(t).functions() {
		if len(f.Name()) <= 4 {
			short = append(short, f.FullName())
		}
	}
	wantCount(t, "functions of four letters or fewer", short, mostShort)
}

// shareable are names that mean the same in every package: those of the standard library and its
// interfaces, and the methods of an appraiser, which each platform has.
var shareable = map[string]bool{
	"main": true, "New": true, "Parse": true, "String": true, "Error": true, "Close": true, "Read": true, "Write": true, "Open": true,
	"Run": true, "Len": true, "Less": true, "Swap": true, "Push": true, "Pop": true, "Is": true, "Unwrap": true, "ServeHTTP": true,
	"Verify": true, "Encode": true, "Decode": true, "MarshalText": true, "UnmarshalText": true, "MarshalJSON": true, "UnmarshalJSON": true,
	"Bytes": true, "Digest": true, "Seal": true, "close": true, "Genuine": true, "UnverifiedClaims": true, "Platform": true, "Appraise": true, "Attest": true, "Validate": true, "validate": true, "Stop": true, "Wait": true, "Equal": true,
}

func TestSharedNames(t *testing.T) {
	where := map[string]map[string]bool{}
	for _, f := range shipped(t).functions() {
		if where[f.Name()] == nil {
			where[f.Name()] = map[string]bool{}
		}
		where[f.Name()][f.Pkg().Path()] = true
	}
	var shared []string
	for name, packages := range where {
		if len(packages) > 5 && !shareable[name] {
			shared = append(shared, fmt.Sprintf("%s in %d packages", name, len(packages)))
		}
	}
	wantCount(t, "names of functions in more than five packages", shared, mostShared)
}

// sdk are the packages whose exported names are for programs outside the project.
var sdk = []string{"unit", "client", "attest", "policy", "identity"}

func TestExportedNames(t *testing.T) {
	s := shipped(t)
	used := map[string]bool{}
	for _, p := range s.packages {
		for _, o := range p.info.Uses {
			if o.Pkg() != nil && o.Pkg().Path() != p.types.Path() && o.Parent() == o.Pkg().Scope() {
				used[o.Pkg().Path()+"."+o.Name()] = true
			}
		}
	}
	var unused []string
	all := 0
	for _, p := range s.packages {
		if slices.Contains(sdk, p.path) {
			continue
		}
		for _, name := range p.types.Scope().Names() {
			if !token.IsExported(name) {
				continue
			}
			all++
			if !used[p.types.Path()+"."+name] {
				unused = append(unused, p.path+"."+name)
			}
		}
	}
	wantCount(t, fmt.Sprintf("exported names of %d that no other shipped package uses", all), unused, all*mostUnused/100)
}

func TestRefusalsShowValues(t *testing.T) {
	s := shipped(t)
	var fixed []string
	calls := 0
	for _, p := range s.packages {
		for _, f := range p.files {
			ast.Inspect(f, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok || len(call.Args) != 4 || !isRefuse(p, call.Fun) {
					return true
				}
				calls++
				if v := p.info.Types[call.Args[2]].Value; v != nil && v.Kind() == constant.String && saysNothing(constant.StringVal(v)) {
					fixed = append(fixed, fmt.Sprintf("%s: %s", s.fset.Position(call.Pos()), v))
				}
				return true
			})
		}
	}
	wantCount(t, fmt.Sprintf("fixed words as got, of %d refusals", calls), fixed, mostFixed)
}

// saysNothing reports whether a constant is a word instead of a value: a single word, or a phrase
// that begins with a pronoun.
func saysNothing(got string) bool {
	words := strings.Fields(got)
	return len(words) < 2 || slices.Contains([]string{"none", "another", "other", "others", "one"}, words[0])
}

// isRefuse reports whether a call makes a refusal. It checks only the function's name, because
// packages wrap wire.Refuse.
func isRefuse(p *checkedPackage, fun ast.Expr) bool {
	switch f := fun.(type) {
	case *ast.Ident:
		return f.Name == "Refuse" || f.Name == "refuse"
	case *ast.SelectorExpr:
		return f.Sel.Name == "Refuse"
	}
	return false
}

// bannedWords are words that names must not contain, because the code's fields have other terms
// for them.
var bannedWords = strings.Fields(`
	answer answers answered tell tells told say says said talk talks
	nobody somebody anybody whoever he him his
	dear beat beats meet meets met attend attends converse bequeath bequeathed bury buried hear hears heard
	stand stands standing stood judge judges judged held holds life story stories`)

func TestWordsInNames(t *testing.T) {
	s := shipped(t)
	banned := map[string]bool{}
	for _, w := range bannedWords {
		banned[w] = true
	}
	found := map[string]bool{}
	for _, p := range s.packages {
		for id, o := range p.info.Defs {
			if o == nil {
				continue
			}
			for _, w := range wordsOf(id.Name) {
				if banned[w] {
					found[fmt.Sprintf("%s: %s", p.path, id.Name)] = true
				}
			}
		}
	}
	wantCount(t, "names with a word of the list", slices.Collect(maps.Keys(found)), mostBanned)
}

// wordsOf splits a name at its capitals.
func wordsOf(name string) []string {
	var words []string
	begin := 0
	runes := []rune(name)
	for i := 1; i <= len(runes); i++ {
		if i == len(runes) || unicode.IsUpper(runes[i]) && !unicode.IsUpper(runes[i-1]) || runes[i] == '_' {
			words = append(words, strings.ToLower(strings.Trim(string(runes[begin:i]), "_")))
			begin = i
		}
	}
	return words
}

// TestFlows: each name in doc.go's three flows exists in the code.
func TestFlows(t *testing.T) {
	text, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ = bytes.Cut(text, []byte("// # Three flows\n"))
	section, _, _ := bytes.Cut(text, []byte("// # "))
	flows := 0
	for line := range strings.Lines(string(section)) {
		line, ok := strings.CutPrefix(line, "//\t")
		if !ok {
			continue
		}
		flows++
		names := strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune("→⇒ \n", r) })
		if len(names) > 6 {
			t.Errorf("a flow of %d names, want at most 6: %s", len(names), line)
		}
		for _, name := range names {
			if !shipped(t).declares(name) {
				t.Errorf("%s is not in the code", name)
			}
		}
	}
	if flows != 3 {
		t.Errorf("got %d flows, want 3", flows)
	}
	if shipped(t).declares("unit.Begin") || shipped(t).declares("policy.Approved.Last") {
		t.Error("names that nothing has are found")
	}
}

// declares reports whether shipped code declares a name: package.Function or package.Type.Method,
// with the last part of the package's path.
func (s *shippedCode) declares(name string) bool {
	parts := strings.Split(name, ".")
	for _, p := range s.packages {
		if p.types.Name() != parts[0] {
			continue
		}
		o := p.types.Scope().Lookup(parts[1])
		if o == nil {
			continue
		}
		if len(parts) == 2 {
			return true
		}
		if m, _, _ := types.LookupFieldOrMethod(o.Type(), true, p.types, parts[2]); m != nil {
			return true
		}
	}
	return false
}

// mostDirect bounds the direct requirements in go.mod.
const mostDirect = 22

func TestDependencies(t *testing.T) {
	text, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	_, block, _ := strings.Cut(string(text), "require (\n")
	block, rest, _ := strings.Cut(block, ")")
	var direct []string
	for line := range strings.Lines(block) {
		direct = append(direct, strings.TrimSpace(line))
		if strings.Contains(line, "// indirect") {
			t.Errorf("an indirect module among the direct ones: %s", line)
		}
	}
	wantCount(t, "direct dependencies", direct, mostDirect)
	_, rest, _ = strings.Cut(rest, "require (\n")
	for line := range strings.Lines(rest) {
		if strings.Contains(line, " v") && !strings.Contains(line, "// indirect") {
			t.Errorf("a direct module outside the first block: %s", line)
		}
	}
}

// fileList matches the files in a package comment's list.
var fileList = regexp.MustCompile(`\b[a-z0-9_]+\.go\b`)

// TestFilesInOrder: the package comment lists the files so that each uses those before it. A use
// of an unexported name of a later file counts as an arrow upward, and few are allowed.
func TestFilesInOrder(t *testing.T) {
	s := shipped(t)
	for _, p := range s.packages {
		if len(p.files) < 3 {
			continue
		}
		place := map[string]int{}
		for _, f := range p.files {
			if f.Doc == nil {
				continue
			}
			for i, name := range fileList.FindAllString(f.Doc.Text(), -1) {
				place[name] = i + 1
			}
		}
		missing := slices.DeleteFunc(s.filesOf(p), func(name string) bool { return place[name] > 0 || name == "doc.go" })
		if len(missing) > 0 {
			t.Errorf("%s: the package comment does not list %s; a good order: %s", p.path, strings.Join(missing, ", "), strings.Join(bestOrder(s.filesOf(p), s.arrows(p)), ", "))
			continue
		}
		all, up := 0, []string{}
		for from, tos := range s.arrows(p) {
			for to, names := range tos {
				all++
				if place[to] > place[from] {
					slices.Sort(names)
					up = append(up, fmt.Sprintf("%s → %s: %s", from, to, strings.Join(slices.Compact(names), ", ")))
				}
			}
		}
		wantCount(t, fmt.Sprintf("%s: arrows upward, of %d", p.path, all), up, max(1, all/5))
	}
}

// filesOf returns the names of a package's files.
func (s *shippedCode) filesOf(p *checkedPackage) (names []string) {
	for _, f := range p.files {
		names = append(names, s.fileOf(f.Pos()))
	}
	return names
}

// arrows returns the uses of unexported names between the files of a package.
func (s *shippedCode) arrows(p *checkedPackage) map[string]map[string][]string {
	out := map[string]map[string][]string{}
	for id, o := range p.info.Uses {
		if o.Pkg() != p.types || o.Exported() {
			continue
		}
		from, to := s.fileOf(id.Pos()), s.fileOf(o.Pos())
		if from == to {
			continue
		}
		if out[from] == nil {
			out[from] = map[string][]string{}
		}
		out[from][to] = append(out[from][to], o.Name())
	}
	return out
}

// bestOrder orders files so that few use a later one: the next file is always the one that uses
// the fewest of those left and, among these, the one that most others use. Then it moves single
// files as long as that leaves fewer arrows upward.
func bestOrder(files []string, uses map[string]map[string][]string) (order []string) {
	left := slices.Clone(files)
	slices.Sort(left)
	for len(left) > 0 {
		cost := func(f string) (n int) {
			for _, other := range left {
				if len(uses[f][other]) > 0 {
					n += len(left)
				}
				if len(uses[other][f]) > 0 {
					n--
				}
			}
			return n
		}
		best := slices.MinFunc(left, func(a, b string) int { return cost(a) - cost(b) })
		order = append(order, best)
		left = slices.DeleteFunc(left, func(f string) bool { return f == best })
	}
	upward := func(order []string) (n int) {
		for i, from := range order {
			for _, to := range order[i+1:] {
				if len(uses[from][to]) > 0 {
					n++
				}
			}
		}
		return n
	}
	for better := true; better; {
		better = false
		for i := range order {
			for j := range order {
				tried := slices.Insert(slices.Delete(slices.Clone(order), i, i+1), j, order[i])
				if upward(tried) < upward(order) {
					order, better = tried, true
				}
			}
		}
	}
	return order
}

// Bounds of the counts. They may only decrease.
const (
	mostShort  = 120
	mostShared = 0
	mostUnused = 10 // percent
	mostFixed  = 0
	mostBanned = 0
)
