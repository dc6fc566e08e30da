package policyfile

import (
	"bytes"
	"maps"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policytoml"
)

// Schema is the first key of every policy file.
const Schema = "cohort/policy/v1"

// DefaultLifetime is the lifetime of leaf certificates if a task states none.
const DefaultLifetime = time.Hour

// longestWait bounds approve_within and delay: owners who do not sign within
// a year are lost.
const longestWait = 365 * 24 * time.Hour

// Parse parses a policy file. Its error is [policytoml.Faults], with every broken rule of
// the file. It verifies no signature.
func Parse(raw []byte) (*Document, error) {
	values, err := policytoml.Decode(raw)
	if err != nil {
		return nil, err
	}
	var faults policytoml.Faults
	d := &Document{raw: bytes.Clone(raw), values: values}
	d.readAll(policytoml.NewTable("", values, &faults))
	d.checkDocument(&faults)
	if len(faults) > 0 {
		return nil, faults
	}
	return d, nil
}

// readAll reads the whole file, table by table.
func (d *Document) readAll(t policytoml.Table) {
	t.Require("schema", "trust_domain", "sequence", "previous", "created", "owners", "platform", "authority")
	t.ReadText("schema", Schema, func(s string) bool { return s == Schema })
	d.TrustDomain = t.ReadText("trust_domain", "a domain name in lower case, at most 243 bytes", TrustDomainOK)
	d.readPlace(t)
	d.Created = t.ReadTime("created")
	d.Development = t.ReadFlag("development")
	d.MaxSilence = t.ReadDuration("max_silence", time.Second, wire.MaxLifetime)
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
	t.RejectUnknown()
}

// readPlace reads the place of the policy in its history: the first has sequence 1 and no
// previous digest, every other has both.
func (d *Document) readPlace(t policytoml.Table) {
	d.Sequence = uint64(t.ReadNumber("sequence", 1, wire.MaxHistory))
	t.ReadText("previous", policytoml.WantDigest+`, or "" in the genesis`, func(s string) bool {
		return s == "" || policytoml.DecodeDigest(&d.Previous, s)
	})
	if d.Sequence == 1 && !d.Previous.IsZero() {
		t.AddFault("previous", "genesis", d.Previous, `""`)
	}
	if d.Sequence > 1 && t.Values["previous"] == "" {
		t.AddFault("previous", "chain", "", "the digest of the policy before")
	}
}

func (d *Document) readAuthority(root policytoml.Table, measured measuredNames) {
	t, ok := root.ReadTable("authority")
	if !ok {
		return
	}
	t.Require("root", "machines", "reference")
	d.Authority = Authority{Root: t.ReadDigest("root"), References: measured.references(t)}
	d.Authority.Machines = readMachines(t, d.Authority.References)
	t.RejectUnknown()
}

func (d *Document) readTasks(root policytoml.Table, measured measuredNames) {
	d.Tasks = map[string]*Task{}
	for _, t := range root.ReadNamedTables("task", wantName, wire.ValidName) {
		d.Tasks[t.Name] = readTask(t, measured)
	}
}

func readTask(t policytoml.NamedTable, measured measuredNames) *Task {
	t.Require("key_mode", "release")
	task := &Task{
		Name:     t.Name,
		KeyMode:  KeyMode(t.ReadText("key_mode", "shared or unit", policytoml.OneOf([]string{string(Shared), string(PerUnit)}))),
		Names:    t.ReadSet("names", "a DNS name in lower case, without wildcard", dnsNameOK),
		Lifetime: DefaultLifetime,
		Units:    int(t.ReadNumber("units", 1, 1_000_000)),
		Calls:    t.ReadSet("calls", "the name of a task", wire.ValidName),
		CutUnits: t.ReadSet("cut_units", "the id of a unit, 32 lower-case hexadecimal digits", func(s string) bool { return attest.Digits(s, 16) != nil }),
		Releases: map[string]*Release{},
	}
	if t.HasKey("lifetime") {
		task.Lifetime = t.ReadDuration("lifetime", wire.MinLifetime, wire.MaxLifetime)
	}
	for _, r := range t.ReadNamedTables("release", "1 to 63 of a-z, 0-9, - and .", wire.ValidReleaseName) {
		task.Releases[r.Name] = readRelease(r, measured)
	}
	if t.HasKey("release") && len(task.Releases) == 0 {
		t.AddFault("release", "number of releases", 0, "at least 1")
	}
	t.RejectUnknown()
	return task
}

func readRelease(t policytoml.NamedTable, measured measuredNames) *Release {
	t.Require("reference")
	r := &Release{
		Name:       t.Name,
		References: measured.references(t.Table),
		Continues:  t.ReadText("continues", "the name of a release", wire.ValidReleaseName),
		Retired:    t.ReadFlag("retired"),
		Dynamic:    t.ReadFlag("dynamic"),
		Env:        readEnv(t.Table),
		OneOff:     t.ReadFlag("oneoff"),
		Devices:    readDevices(t.Table),
	}
	t.RejectUnknown()
	return r
}

// readDevices reads how many devices of each platform a release requires.
func readDevices(t policytoml.Table) map[attest.Platform]int {
	inner, ok := t.ReadTable("devices")
	if !ok {
		return nil
	}
	devices := map[attest.Platform]int{}
	for _, name := range slices.Sorted(maps.Keys(inner.Values)) {
		if p := attest.Platform(name); platformOK(name) && p.IsDevice() {
			devices[p] = int(inner.ReadNumber(name, 1, attest.MaxDevices))
		} else {
			inner.Expect(name)
			inner.AddFault(name, "platform", name, known.names(func(r attest.PolicyRules) bool { return r.Platform.IsDevice() }))
		}
	}
	return devices
}
