package cohort

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/scanner"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// declaration is a function of a package, or one of its types, constants or variables.
type declaration struct {
	name, path string
	file       *token.File
	content    []byte
	node       ast.Node
}

// word is a Go token with its position.
type word struct {
	text     string
	from, to int
}

// declared returns the declarations of a name, which can be several in files with build
// constraints. Without a name it returns all of the package.
func (r reader) declared(folder, name string) (found []declaration, err error) {
	if other, rest, ok := strings.Cut(name, " "); ok {
		folder, name = other, rest
	}
	if r[folder] == nil {
		if r[folder], err = parseFolder(folder); err != nil {
			return nil, err
		}
	}
	for _, d := range r[folder] {
		if name == "" || d.name == name {
			found = append(found, d)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s declares no %q", folder, name)
	}
	return found, nil
}

func parseFolder(folder string) (all []declaration, err error) {
	paths, err := filepath.Glob(filepath.Join(folder, "*.go"))
	if err != nil {
		return nil, err
	}
	files := token.NewFileSet()
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		parsed, err := parser.ParseFile(files, path, content, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		add := func(name string, node ast.Node) {
			all = append(all, declaration{name, path, files.File(parsed.FileStart), content, node})
		}
		for _, d := range parsed.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				add(nameOf(d), d)
			case *ast.GenDecl:
				for _, s := range d.Specs {
					switch s := s.(type) {
					case *ast.TypeSpec:
						add(s.Name.Name, s)
					case *ast.ValueSpec:
						add(s.Names[0].Name, s)
					}
				}
			}
		}
	}
	return all, nil
}

// nameOf returns Name or Type.Name of a function, without type parameters.
func nameOf(f *ast.FuncDecl) string {
	if f.Recv == nil {
		return f.Name.Name
	}
	receiver := ""
	ast.Inspect(f.Recv.List[0].Type, func(n ast.Node) bool {
		if name, ok := n.(*ast.Ident); ok && receiver == "" {
			receiver = name.Name
		}
		return receiver == ""
	})
	return receiver + "." + f.Name.Name
}

// text returns the source between two positions, and the offset at which it begins.
func (d declaration) text(from, to token.Pos) (string, int) {
	return string(d.content[d.file.Offset(from):d.file.Offset(to)]), d.file.Offset(from)
}

// replace adds an edit that replaces the text old by changed.
func (m *mutant) replace(scope []declaration, old, changed string) error {
	var hits []edit
	want := words(old, 0)
	for _, d := range scope {
		all := words(d.text(d.node.Pos(), d.node.End()))
		for i := range len(all) - len(want) + 1 {
			if part := all[i : i+len(want)]; len(want) > 0 && same(part, want) {
				e := edit{path: d.path, from: part[0].from, to: part[len(part)-1].to, text: changed}
				hits = append(hits, d.choice(e, m.name))
			}
		}
	}
	if len(hits) != 1 {
		return fmt.Errorf("the old text stands %d times there, want once: %s", len(hits), old)
	}
	m.edits = append(m.edits, hits[0])
	return nil
}

// choice adds to an edit of d the text before and after its part that makes the part switchable:
// while the mutant is on, the edit's text runs instead. Only comparisons, and statements that
// declare nothing, can be switched.
func (d declaration) choice(e edit, mutant string) edit {
	ast.Inspect(d.node, func(n ast.Node) bool {
		var list []ast.Stmt
		switch n := n.(type) {
		case *ast.BlockStmt:
			list = n.List
		case *ast.CaseClause:
			list = n.Body
		case *ast.CommClause:
			list = n.Body
		case ast.Expr:
			if compares(n) && d.file.Offset(n.Pos()) == e.from && d.file.Offset(n.End()) == e.to {
				e.before, e.after = fmt.Sprintf("(mutated == %q && (%s) || mutated != %[1]q && (", mutant, e.text), "))"
			}
		}
		first := slices.IndexFunc(list, func(s ast.Stmt) bool { return d.file.Offset(s.Pos()) == e.from })
		last := slices.IndexFunc(list, func(s ast.Stmt) bool { return d.file.Offset(s.End()) == e.to })
		if first >= 0 && first <= last && !slices.ContainsFunc(list[first:last+1], fixed) {
			e.before, e.after = fmt.Sprintf("if mutated == %q {\n%s\n} else {\n", mutant, e.text), "\n}"
		}
		return true
	})
	return e
}

// compares reports whether an expression is boolean by its syntax.
func compares(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.BinaryExpr:
		return e.Op.Precedence() <= token.EQL.Precedence()
	case *ast.UnaryExpr:
		return e.Op == token.NOT
	}
	return false
}

// fixed reports whether a statement cannot be moved into a block.
func fixed(s ast.Stmt) bool {
	switch s := s.(type) {
	case *ast.AssignStmt:
		return s.Tok == token.DEFINE
	case *ast.BranchStmt:
		return s.Tok == token.FALLTHROUGH
	case *ast.DeclStmt, *ast.LabeledStmt, *ast.CaseClause, *ast.CommClause:
		return true
	}
	return false
}

// remove adds an edit that makes the guard of a refusal always false.
func (m *mutant) remove(scope []declaration, refusal string) error {
	var hits []edit
	want := words(refusal, 0)
	for _, d := range scope {
		for _, g := range guards(d, want) {
			if g == nil {
				return fmt.Errorf("the refusal stands under no condition of its own: %s", refusal)
			}
			condition, from := d.text(g.Pos(), g.End())
			hits = append(hits, edit{d.path, from, d.file.Offset(g.End()), "(" + condition + ") && false", "(", fmt.Sprintf(") && mutated != %q", m.name)})
		}
	}
	if len(hits) != 1 {
		return fmt.Errorf("the refusal stands %d times there, want once: %s", len(hits), refusal)
	}
	m.edits = append(m.edits, hits[0])
	return nil
}

// guards returns the conditions in d whose header (with its `if` or `case`) is want, or that
// guard a call of Refuse with the arguments want.
func guards(d declaration, want []word) (found []ast.Expr) {
	type guard struct {
		condition ast.Expr // nil if there is none, or one for several values
		body, end token.Pos
	}
	var all []guard
	add := func(header token.Pos, g guard) {
		all = append(all, g)
		if same(words(d.text(header, g.body)), want) {
			found = append(found, g.condition)
		}
	}
	ast.Inspect(d.node, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.IfStmt:
			add(n.If, guard{n.Cond, n.Body.Lbrace, n.Body.End()})
			if n.Else != nil {
				add(n.Else.Pos(), guard{nil, n.Else.Pos(), n.Else.End()})
			}
		case *ast.SelectStmt:
			add(n.Select, guard{nil, n.Body.Lbrace, n.End()})
		case *ast.TypeSwitchStmt:
			add(n.Switch, guard{nil, n.Body.Lbrace, n.End()})
		case *ast.SwitchStmt:
			for _, s := range n.Body.List {
				c := s.(*ast.CaseClause)
				g := guard{nil, c.Colon, c.End()}
				if n.Tag == nil && len(c.List) == 1 {
					g.condition = c.List[0]
				}
				add(c.Case, g)
			}
		case *ast.CallExpr:
			callee, _ := d.text(n.Fun.Pos(), n.Fun.End())
			if strings.TrimPrefix(callee, "wire.") == "Refuse" && same(words(d.text(n.Args[0].Pos(), n.Args[1].End())), want) {
				inner := guard{}
				for _, g := range all {
					if g.body <= n.Pos() && n.End() <= g.end {
						inner = g
					}
				}
				found = append(found, inner.condition)
			}
		}
		return true
	})
	return found
}

// words returns the tokens of a text that begins at offset, without semicolons and comments. The
// text of a raw string is split into tokens too, so that a mutant can name a part of it; there,
// comments count as tokens.
func words(text string, offset int) []word { return scan(text, offset, 0) }

func scan(text string, offset int, mode scanner.Mode) (all []word) {
	file := token.NewFileSet().AddFile("", -1, len(text))
	var s scanner.Scanner
	s.Init(file, []byte(text), nil, mode)
	for {
		at, kind, literal := s.Scan()
		if kind == token.EOF {
			return all
		}
		if literal == "" {
			literal = kind.String()
		}
		from := file.Offset(at)
		switch {
		case kind == token.SEMICOLON:
		case literal[0] == '`' && len(literal) > 1:
			all = append(all, word{"`", offset + from, offset + from + 1})
			all = append(all, scan(literal[1:len(literal)-1], offset+from+1, scanner.ScanComments)...)
			all = append(all, word{"`", offset + from + len(literal) - 1, offset + from + len(literal)})
		default:
			all = append(all, word{literal, offset + from, offset + from + len(literal)})
		}
	}
}

func same(a, b []word) bool {
	return slices.EqualFunc(a, b, func(a, b word) bool { return a.text == b.text })
}
