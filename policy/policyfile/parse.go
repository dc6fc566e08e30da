package policyfile

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/pelletier/go-toml/v2"
)

// Schema is the first key of every policy file.
const Schema = "cohort/policy/v1"

// DefaultLife is the life of leaf certificates where a task states none.
const DefaultLife = time.Hour

// longestWait bounds approve_within and delay: a policy that waits longer than
// a year for its owners has lost them.
const longestWait = 365 * 24 * time.Hour

// Parse reads a policy file. Its error is [Faults], with every broken rule of
// the file. Parsing checks no signature.
func Parse(raw []byte) (*Document, error) {
	values, err := decode(raw)
	if err != nil {
		return nil, err
	}
	var faults Faults
	d := &Document{raw: bytes.Clone(raw), values: values}
	d.read(newTable("", values, &faults))
	d.check(&faults)
	if len(faults) > 0 {
		return nil, faults
	}
	return d, nil
}

// CheckForm refuses a file that is too large, is not text without hidden characters,
// or is not TOML.
func CheckForm(raw []byte) error {
	_, err := decode(raw)
	return err
}

// decode checks the form of the file: size, character encoding, characters, TOML.
func decode(raw []byte) (map[string]any, error) {
	switch {
	case len(raw) > wire.MaxPolicy:
		return nil, Faults{{Rule: "size in bytes", Got: fmt.Sprint(len(raw)), Want: fmt.Sprint("at most ", wire.MaxPolicy)}}
	case !utf8.Valid(raw):
		return nil, Faults{{Rule: "encoding", Got: "bytes that are not UTF-8", Want: "UTF-8"}}
	case bytes.HasPrefix(raw, []byte("\ufeff")):
		return nil, Faults{{Rule: "encoding", Got: "a byte order mark", Want: "none"}}
	case bytes.ContainsRune(raw, '\r'):
		return nil, Faults{{Rule: "line ends", Got: "CR", Want: "LF alone"}}
	}
	if err := visible(string(raw)); err != nil {
		return nil, err
	}
	var values map[string]any
	if err := toml.Unmarshal(raw, &values); err != nil {
		return nil, Faults{{Path: place(err), Rule: "TOML", Got: err.Error(), Want: "TOML 1.0"}}
	}
	return values, nil
}

func place(err error) string {
	var at *toml.DecodeError
	if !errors.As(err, &at) {
		return ""
	}
	line, column := at.Position()
	return fmt.Sprintf("line %d, column %d", line, column)
}

// read reads the whole file, table by table.
func (d *Document) read(t table) {
	t.need("schema", "trust_domain", "sequence", "previous", "created", "owners", "platform", "authority")
	t.text("schema", Schema, func(s string) bool { return s == Schema })
	d.TrustDomain = t.text("trust_domain", "a domain name in lower case, at most 243 bytes", TrustDomainOK)
	d.readPlace(t)
	d.Created = t.moment("created")
	d.Development = t.flag("development")
	d.MaxSilence = t.duration("max_silence", time.Second, wire.MaxLifetime)
	d.readOwners(t)
	d.Platforms = readRules(t)
	measured := readMeasured(t)
	d.readAuthority(t, measured)
	d.readTasks(t, measured)
	var named []attest.ReferenceValue
	for _, r := range d.references() {
		named = append(named, r.ReferenceValue)
	}
	nameLaunches(d.Platforms, named)
	d.readGroups(t, measured)
	t.done()
}

// readPlace reads where in its history the policy stands: the first has
// sequence 1 and no previous, every other has both.
func (d *Document) readPlace(t table) {
	d.Sequence = uint64(t.number("sequence", 1, wire.MaxHistory))
	t.text("previous", wantDigest+`, or "" in the genesis`, func(s string) bool {
		return s == "" || digestInto(&d.Previous, s)
	})
	if d.Sequence == 1 && !d.Previous.IsZero() {
		t.fault("previous", "genesis", d.Previous, `""`)
	}
	if d.Sequence > 1 && t.values["previous"] == "" {
		t.fault("previous", "chain", "", "the digest of the policy before")
	}
}

func (d *Document) readAuthority(root table, measured measuredNames) {
	t, ok := root.table("authority")
	if !ok {
		return
	}
	t.need("root", "machines", "reference")
	d.Authority = Authority{Root: t.digest("root"), References: measured.references(t)}
	d.Authority.Machines = readMachines(t, d.Authority.References)
	t.done()
}

func (d *Document) readTasks(root table, measured measuredNames) {
	d.Tasks = map[string]*Task{}
	for _, t := range root.named("task", wantName, wire.ValidName) {
		d.Tasks[t.name] = readTask(t, measured)
	}
}

func readTask(t namedTable, measured measuredNames) *Task {
	t.need("key_mode", "release")
	task := &Task{
		Name:     t.name,
		KeyMode:  KeyMode(t.text("key_mode", "shared or unit", oneOf([]string{string(Shared), string(PerUnit)}))),
		Names:    t.set("names", "a DNS name in lower case, without wildcard", dnsNameOK),
		Life:     DefaultLife,
		Units:    int(t.number("units", 1, 1_000_000)),
		Calls:    t.set("calls", "the name of a task", wire.ValidName),
		CutUnits: t.set("cut_units", "the id of a unit, 32 lower-case hexadecimal digits", func(s string) bool { return attest.Digits(s, 16) != nil }),
		Releases: map[string]*Release{},
	}
	if t.has("lifetime") {
		task.Life = t.duration("lifetime", wire.MinLifetime, wire.MaxLifetime)
	}
	for _, r := range t.named("release", "1 to 63 of a-z, 0-9, - and .", wire.ValidReleaseName) {
		task.Releases[r.name] = readRelease(r, measured)
	}
	if t.has("release") && len(task.Releases) == 0 {
		t.fault("release", "number of releases", 0, "at least 1")
	}
	t.done()
	return task
}

func readRelease(t namedTable, measured measuredNames) *Release {
	t.need("reference")
	r := &Release{
		Name:       t.name,
		References: measured.references(t.table),
		Continues:  t.text("continues", "the name of a release", wire.ValidReleaseName),
		Retired:    t.flag("retired"),
		Dynamic:    t.flag("dynamic"),
		Env:        readEnv(t.table),
		OneOff:     t.flag("oneoff"),
		Devices:    readDevices(t.table),
	}
	t.done()
	return r
}

// readDevices reads how many devices of each platform are demanded.
func readDevices(t table) map[attest.Platform]int {
	inner, ok := t.table("devices")
	if !ok {
		return nil
	}
	devices := map[attest.Platform]int{}
	for _, name := range slices.Sorted(maps.Keys(inner.values)) {
		if p := attest.Platform(name); platformOK(name) && p.IsDevice() {
			devices[p] = int(inner.number(name, 1, attest.MaxDevices))
		} else {
			inner.known[name] = true
			inner.fault(name, "platform", name, known.names(func(r attest.PolicyRules) bool { return r.Platform.IsDevice() }))
		}
	}
	return devices
}
