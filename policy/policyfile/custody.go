package policyfile

import (
	"bytes"
	"maps"
	"slices"
	"strings"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policytoml"
)

// Custody names the authorities that may have the root of a group and derive its ring
// keys: the key "authority" of [group.G], which is part of the roster. The parties approve
// it. So if owners name another authority program for the trust domain, that program
// cannot read the group.
type Custody struct {
	References []attest.ReferenceValue
	Machines   Machines
	Rules      map[attest.Platform]attest.Rules // rules of their platforms

	line string // all of it
}

// String returns the table as one line of TOML with sorted keys, as in a roster.
func (c Custody) String() string { return c.line }

// custodyKeys are the keys of the table, each of which is given.
var custodyKeys = []string{"reference", "machines", "platform"}

func readCustody(t policytoml.Table, measured measuredNames) Custody {
	t.Require(custodyKeys...)
	c := Custody{References: measured.references(t), Rules: readRules(t), line: rosterLine(measured.resolved(t.Values))}
	c.Machines = readMachines(t, c.References)
	nameLaunches(c.Rules, c.References)
	t.RejectUnknown()
	return c
}

// readGroupCustody reads the key "authority" of a group.
func readGroupCustody(t policytoml.NamedTable, measured measuredNames, domain string) Custody {
	const key = "authority"
	inner, ok := t.Table.ReadTable(key)
	if !ok {
		if !t.HasKey(key) {
			t.AddFault(key, "required key", "a group without it", "a table; the trust domain's is "+domain)
		}
		return Custody{}
	}
	before := len(*t.Faults)
	c := readCustody(inner, measured)
	if len(*t.Faults) > before {
		return c
	}
	if _, err := ParseCustody(c.line); err != nil {
		t.AddFault(key, "encoding", err, "text without control characters")
	}
	return c
}

// ParseCustody parses the line of a roster. It refuses every encoding but one.
func ParseCustody(line string) (Custody, error) {
	values, err := policytoml.Decode([]byte("authority = " + line))
	if err != nil {
		return Custody{}, err
	}
	var faults policytoml.Faults
	root := policytoml.NewTable("", values, &faults)
	t, ok := root.ReadTable("authority")
	if !ok {
		return Custody{}, wire.Refuse(wire.Malformed, "roster: authority", line, "a table")
	}
	c := readCustody(t, nil)
	c.checkPlatforms(&faults, t.Path)
	root.RejectUnknown()
	if c.line != line {
		faults.Add(t.Path, "encoding", line, c.line)
	}
	if len(faults) > 0 {
		return Custody{}, faults
	}
	return c, nil
}

// checkPlatforms demands a table of the platform of each reference value.
func (c Custody) checkPlatforms(faults *policytoml.Faults, path string) {
	for _, ref := range c.References {
		if _, ok := c.Rules[ref.Platform]; !ok {
			faults.Add(path+".reference", "platform", ref.Platform, "one in the table platform beside it")
		}
	}
}

// checkCustody refuses development platforms in other policies, and the code of a task:
// such a program would receive the group's root.
func (d *Document) checkCustody(faults *policytoml.Faults, path string, c Custody) {
	c.checkPlatforms(faults, path)
	if soft := slices.ContainsFunc(slices.Collect(maps.Keys(c.Rules)), known.development); soft && !d.Development {
		faults.Add(path+".platform.soft", "development", "soft without development = true", "hardware alone")
	}
	for _, ref := range d.references() {
		if !strings.HasPrefix(ref.Path, "authority.") && slices.ContainsFunc(c.References, func(r attest.ReferenceValue) bool { return overlap(r, ref.ReferenceValue) }) {
			faults.Add(path+".reference", "measurement", ref.String(), "code that "+ref.Path+" does not have too")
		}
	}
}

// resolved is a table with a reference value's names of [measured.X] replaced by
// their digests.
func (m measuredNames) resolved(values map[string]any) map[string]any {
	values = maps.Clone(values)
	list, _ := values["reference"].([]any)
	list = slices.Clone(list)
	for i, v := range list {
		ref, is := v.(map[string]any)
		if !is {
			continue
		}
		ref = maps.Clone(ref)
		for key, v := range ref {
			text, _ := v.(string)
			if name, named := strings.CutPrefix(text, "@"); named && !m[name].IsZero() {
				ref[key] = m[name].String()
			}
		}
		list[i] = ref
	}
	if list != nil {
		values["reference"] = list
	}
	return values
}

// CopyAuthority adds the key "authority" to each group of a policy file that does not have
// it, with the values of the trust domain: its reference values, its machines, and the
// rules of their platforms. It does not change a group whose table has no line of its own
// of the form [group.G].
func CopyAuthority(raw []byte) ([]byte, error) {
	values, err := policytoml.Decode(raw)
	if err != nil {
		return nil, err
	}
	var faults policytoml.Faults
	measured := readMeasured(policytoml.NewTable("", values, &faults))
	line := "authority = " + domainCustody(values, measured) + "\n"
	var out bytes.Buffer
	for text := range bytes.Lines(raw) {
		out.Write(text)
		name, is := groupHeader(string(text))
		if group := under(values, "group", name); is && group != nil && group["authority"] == nil {
			if text[len(text)-1] != '\n' {
				out.WriteByte('\n')
			}
			out.WriteString(line)
		}
	}
	return out.Bytes(), nil
}

// domainCustody returns the trust domain's authority in the form of a group's key.
func domainCustody(values map[string]any, measured measuredNames) string {
	authority := under(values, "authority")
	return rosterLine(measured.resolved(map[string]any{
		"reference": authority["reference"], "machines": authority["machines"], "platform": platformsOf(authority, under(values, "platform")),
	}))
}

// platformsOf returns the tables of the platforms of reference values.
func platformsOf(authority, platforms map[string]any) map[string]any {
	used := map[string]any{}
	list, _ := authority["reference"].([]any)
	for _, v := range list {
		ref, _ := v.(map[string]any)
		if name, is := ref["platform"].(string); is && platforms[name] != nil {
			used[name] = platforms[name]
		}
	}
	return used
}

// groupHeader reads the name of the group whose table begins with a line.
func groupHeader(line string) (name string, ok bool) {
	line, _, _ = strings.Cut(line, "#")
	name, ok = strings.CutPrefix(strings.TrimSpace(line), "[group.")
	name, end := strings.CutSuffix(name, "]")
	name = strings.Trim(name, `"`)
	return name, ok && end && wire.ValidName(name)
}
