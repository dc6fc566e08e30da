package policyfile

import (
	"slices"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/policy/policytoml"
)

func platformOK(name string) bool {
	_, ok := known.lookup(attest.Platform(name))
	return ok
}

// readRules reads the tables of platforms.
func readRules(root policytoml.Table) map[attest.Platform]attest.Rules {
	platforms := map[attest.Platform]attest.Rules{}
	for _, t := range root.ReadNamedTables("platform", known.names(func(attest.PolicyRules) bool { return true }), platformOK) {
		platform := attest.Platform(t.Name)
		t.Require("roots")
		rules := attest.Rules{Debug: t.ReadFlag("debug")}
		for _, s := range t.ReadSet("roots", policytoml.WantDigest, func(s string) bool { return policytoml.DecodeDigest(new(attest.Digest), s) }) {
			var root attest.Digest
			policytoml.DecodeDigest(&root, s)
			rules.Roots = append(rules.Roots, root)
		}
		if t.HasKey("roots") && len(rules.Roots) == 0 {
			t.AddFault("roots", "number of roots", 0, "at least 1")
		}
		own, _ := known.lookup(platform)
		readKeys(t.Table, own.Keys, &rules)
		if own.Check != nil {
			if f := own.Check(rules, t.HasKey); f != nil {
				t.AddFault(f.Key, f.Rule, f.Got, f.Want)
			}
		}
		t.RejectUnknown()
		platforms[platform] = rules
	}
	return platforms
}

// nameLaunches adds all reference values to the rules of platforms whose evidence covers
// every program that ran on the machine.
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
// is absent or has a fault has the zero value of its kind.
func readKeys(t policytoml.Table, keys []attest.Key, rules *attest.Rules) {
	for _, k := range keys {
		if k.Required {
			t.Require(k.Name)
		}
	}
	for _, k := range keys {
		switch k.Kind {
		case attest.KeyTable:
			if inner, ok := t.ReadTable(k.Name); ok {
				readKeys(inner, k.Keys, rules)
				inner.RejectUnknown()
			}
		case attest.KeyNamed:
			readNamed(t, k, rules)
		case attest.KeyBits:
			inner, _ := t.ReadTable(k.Name)
			*k.Bits(rules) = readBits(inner, k.Field)
			readKeys(inner, k.Keys, rules)
			inner.RejectUnknown()
		default:
			k.Set(rules, readKey(t, k))
		}
	}
}

// readKey reads a key that is not a table.
func readKey(t policytoml.Table, k attest.Key) any {
	switch k.Kind {
	case attest.KeyFlag:
		return t.ReadFlag(k.Name)
	case attest.KeyNumber:
		return t.ReadNumber(k.Name, k.Least, k.Most)
	case attest.KeyDuration:
		return t.ReadDuration(k.Name, time.Duration(k.Least), time.Duration(k.Most))
	case attest.KeyTime:
		return t.ReadOptionalTime(k.Name)
	case attest.KeyWord:
		return t.ReadText(k.Name, k.Want, k.Is)
	case attest.KeyWords:
		return t.ReadSet(k.Name, k.Want, k.Is)
	case attest.KeyList:
		return readAccepted(t, k.Name, k.Want, k.Form)
	case attest.KeyBytes:
		return readByteStrings(t, k.Name, k.Want, k.Form)
	case attest.KeyJoined:
		return readJoined(t, k)
	case attest.KeyBitNumbers:
		return readBitNumbers(t, k.Name)
	}
	panic("policy: key " + k.Name + " of no known kind") // a fault of the platform's package
}

// readNamed reads a table of tables, at least one.
func readNamed(t policytoml.Table, k attest.Key, rules *attest.Rules) {
	last := len(k.Names) - 1
	want := strings.Join(k.Names[:last], ", ") + " or " + k.Names[last]
	tables := t.ReadNamedTables(k.Name, want, policytoml.OneOf(k.Names))
	var names []string
	for _, inner := range tables {
		names = append(names, inner.Name)
	}
	k.Set(rules, names)
	for _, inner := range tables {
		readKeys(inner.Table, k.Named(inner.Name), rules)
		inner.RejectUnknown()
	}
	if t.HasKey(k.Name) && len(names) == 0 {
		t.AddFault(k.Name, "number of "+k.Name+"s", 0, "at least 1")
	}
}

// readJoined reads "any", or a list of tables whose values are joined, each once.
func readJoined(t policytoml.Table, k attest.Key) attest.List {
	if _, word := t.Values[k.Name].(string); word {
		return attest.List{Any: t.ReadText(k.Name, `"any", or a list`, policytoml.OneOf([]string{anyWord})) == anyWord}
	}
	var list attest.List
	for _, inner := range t.ReadTables(k.Name) {
		var value []byte
		for _, part := range k.Keys {
			value = append(value, bytesOf(inner, part.Name, part.Want, part.Form)...)
		}
		inner.RejectUnknown()
		if slices.ContainsFunc(list.Values, func(v []byte) bool { return string(v) == string(value) }) {
			t.AddFault(k.Name, "element twice", inner.Path, "each once")
		}
		list.Values = append(list.Values, value)
	}
	return list
}

// anyWord accepts every value of a field.
const anyWord = "any"

// readAccepted reads "any" or a list of values.
func readAccepted(t policytoml.Table, key, want string, read func(string) []byte) attest.List {
	if _, word := t.Values[key].(string); word {
		return attest.List{Any: t.ReadText(key, `"any", or a list`, policytoml.OneOf([]string{anyWord})) == anyWord}
	}
	return attest.List{Values: readByteStrings(t, key, want, read)}
}

// readByteStrings reads a list of byte strings, each once.
func readByteStrings(t policytoml.Table, key, want string, read func(string) []byte) [][]byte {
	var out [][]byte
	for _, s := range t.ReadSet(key, want, func(s string) bool { return read(s) != nil }) {
		out = append(out, read(s))
	}
	return out
}
