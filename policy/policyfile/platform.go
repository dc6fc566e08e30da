package policyfile

import (
	"slices"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
)

func platformOK(name string) bool {
	_, ok := known.lookup(attest.Platform(name))
	return ok
}

// readRules reads the tables of platforms: who may vouch, and what is accepted.
func readRules(root table) map[attest.Platform]attest.Rules {
	platforms := map[attest.Platform]attest.Rules{}
	for _, t := range root.named("platform", known.names(func(attest.PolicyRules) bool { return true }), platformOK) {
		platform := attest.Platform(t.name)
		t.need("roots")
		rules := attest.Rules{Debug: t.flag("debug")}
		for _, s := range t.set("roots", wantDigest, func(s string) bool { return digestInto(new(attest.Digest), s) }) {
			var root attest.Digest
			digestInto(&root, s)
			rules.Roots = append(rules.Roots, root)
		}
		if t.has("roots") && len(rules.Roots) == 0 {
			t.fault("roots", "number of roots", 0, "at least 1")
		}
		own, _ := known.lookup(platform)
		t.readKeys(own.Keys, &rules)
		if own.Check != nil {
			if f := own.Check(rules, t.has); f != nil {
				t.fault(f.Key, f.Rule, f.Got, f.Want)
			}
		}
		t.done()
		platforms[platform] = rules
	}
	return platforms
}

// nameLaunches puts into the rules of each platform whose evidence is of all programs that
// ran on a machine which those may be: all that reference values name.
func nameLaunches(platforms map[attest.Platform]attest.Rules, references []attest.ReferenceValue) {
	for name, rules := range platforms {
		p, _ := known.lookup(name)
		if p.Launches == nil {
			continue
		}
		for _, r := range references {
			if r.Platform == name {
				launches := p.Launches(&rules)
				*launches = append(*launches, r)
			}
		}
		platforms[name] = rules
	}
}

// readKeys reads the keys of a platform, or of a table inside it, into rules. A key that
// is left out, or has a fault, has the zero value of its kind.
func (t table) readKeys(keys []attest.Key, rules *attest.Rules) {
	for _, k := range keys {
		if k.Required {
			t.need(k.Name)
		}
	}
	for _, k := range keys {
		switch k.Kind {
		case attest.KeyTable:
			if inner, ok := t.table(k.Name); ok {
				inner.readKeys(k.Keys, rules)
				inner.done()
			}
		case attest.KeyNamed:
			t.readNamed(k, rules)
		case attest.KeyBits:
			inner, _ := t.table(k.Name)
			*k.Bits(rules) = inner.bits(k.Field)
			inner.readKeys(k.Keys, rules)
			inner.done()
		default:
			k.Set(rules, t.readKey(k))
		}
	}
}

// readKey reads a key that is no table.
func (t table) readKey(k attest.Key) any {
	switch k.Kind {
	case attest.KeyFlag:
		return t.flag(k.Name)
	case attest.KeyNumber:
		return t.number(k.Name, k.Least, k.Most)
	case attest.KeyDuration:
		return t.duration(k.Name, time.Duration(k.Least), time.Duration(k.Most))
	case attest.KeyTime:
		return t.dated(k.Name)
	case attest.KeyWord:
		return t.text(k.Name, k.Want, k.Is)
	case attest.KeyWords:
		return t.set(k.Name, k.Want, k.Is)
	case attest.KeyList:
		return t.accepted(k.Name, k.Want, k.Form)
	case attest.KeyBytes:
		return t.byteStrings(k.Name, k.Want, k.Form)
	case attest.KeyJoined:
		return t.joined(k)
	case attest.KeyBitNumbers:
		return t.vector(k.Name)
	}
	panic("policy: key " + k.Name + " of no known kind") // a fault of the platform's package
}

// readNamed reads a table of tables, at least one.
func (t table) readNamed(k attest.Key, rules *attest.Rules) {
	last := len(k.Names) - 1
	want := strings.Join(k.Names[:last], ", ") + " or " + k.Names[last]
	tables := t.named(k.Name, want, oneOf(k.Names))
	var names []string
	for _, inner := range tables {
		names = append(names, inner.name)
	}
	k.Set(rules, names)
	for _, inner := range tables {
		inner.readKeys(k.Named(inner.name), rules)
		inner.done()
	}
	if t.has(k.Name) && len(names) == 0 {
		t.fault(k.Name, "number of "+k.Name+"s", 0, "at least 1")
	}
}

// joined reads "any", or a list of tables whose values are joined, each once.
func (t table) joined(k attest.Key) attest.List {
	if _, word := t.values[k.Name].(string); word {
		return attest.List{Any: t.text(k.Name, `"any", or a list`, oneOf([]string{anyWord})) == anyWord}
	}
	var list attest.List
	for _, inner := range t.tables(k.Name) {
		var value []byte
		for _, part := range k.Keys {
			value = append(value, bytesOf(inner, part.Name, part.Want, part.Form)...)
		}
		inner.done()
		if slices.ContainsFunc(list.Values, func(v []byte) bool { return string(v) == string(value) }) {
			t.fault(k.Name, "element twice", inner.path, "each once")
		}
		list.Values = append(list.Values, value)
	}
	return list
}

// anyWord accepts every value of a field.
const anyWord = "any"

// accepted reads "any" or a list of values.
func (t table) accepted(key, want string, read func(string) []byte) attest.List {
	if _, word := t.values[key].(string); word {
		return attest.List{Any: t.text(key, `"any", or a list`, oneOf([]string{anyWord})) == anyWord}
	}
	return attest.List{Values: t.byteStrings(key, want, read)}
}

// byteStrings reads a list of byte strings, each once.
func (t table) byteStrings(key, want string, read func(string) []byte) [][]byte {
	var out [][]byte
	for _, s := range t.set(key, want, func(s string) bool { return read(s) != nil }) {
		out = append(out, read(s))
	}
	return out
}
