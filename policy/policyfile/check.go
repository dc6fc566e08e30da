package policyfile

import (
	"crypto/x509"
	"maps"
	"slices"
	"strings"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policytoml"
	"golang.org/x/crypto/ssh"
)

const wantName = "1 to 63 of a-z, 0-9 and -"

// TaskNames lists the tasks in the order of their names.
func (d *Document) TaskNames() []string { return slices.Sorted(maps.Keys(d.Tasks)) }

// Debug reports whether the policy accepts TEEs that their host can read, on any
// platform.
func (d *Document) Debug() bool {
	for _, rules := range d.Platforms {
		if rules.Debug {
			return true
		}
	}
	return false
}

// ReleaseNames lists the releases of a task in the order of their names.
func (t *Task) ReleaseNames() []string { return slices.Sorted(maps.Keys(t.Releases)) }

// checkDocument adds the faults that no single table shows.
func (d *Document) checkDocument(faults *policytoml.Faults) {
	d.checkRootLine(faults)
	d.checkOwners(faults)
	d.checkDevelopment(faults)
	d.checkNames(faults)
	d.checkCalls(faults)
	d.checkContinues(faults)
	d.checkReferences(faults)
	d.checkDevices(faults)
	d.checkGroups(faults)
}

// checkOwners refuses a name or a key that occurs twice. A key and its sk- form are one
// key.
func (d *Document) checkOwners(faults *policytoml.Faults) {
	names, keys := map[string]bool{}, map[string]string{}
	for _, o := range d.Owners.Keys {
		if o.Name == "" || o.Key == nil {
			continue // already a fault
		}
		if names[o.Name] {
			faults.Add("owners.keys", "owner twice", o.Name, "each name once")
		}
		names[o.Name] = true
		id := keyID(o.Key)
		if other, taken := keys[id]; taken {
			faults.Add("owners.keys", "key twice", other+" and "+o.Name, "each key once")
		}
		keys[id] = o.Name
	}
}

func keyID(key ssh.PublicKey) string {
	if inner, ok := key.(ssh.CryptoPublicKey); ok {
		if der, err := x509.MarshalPKIXPublicKey(inner.CryptoPublicKey()); err == nil {
			return string(der)
		}
	}
	return string(key.Marshal())
}

// checkDevelopment keeps the development TEE and hardware in separate policies: an
// authority root that was in a development TEE must never vouch for hardware.
func (d *Document) checkDevelopment(faults *policytoml.Faults) {
	for _, p := range slices.Sorted(maps.Keys(d.Platforms)) {
		path := policytoml.JoinPath("platform", string(p))
		switch {
		case known.development(p) && !d.Development:
			faults.Add(path, "development", "soft without development = true", "hardware alone")
		case !known.development(p) && d.Development:
			faults.Add(path, "development", string(p)+" with development = true", "soft alone")
		}
	}
}

// checkNames refuses a DNS name that two tasks or groups have, and the name of the
// authority.
func (d *Document) checkNames(faults *policytoml.Faults) {
	owner := map[string]string{d.AuthorityName(): "the authority"}
	check := func(kind, name string, names []string) {
		for _, dns := range names {
			if other, taken := owner[dns]; taken {
				faults.Add(policytoml.JoinPath(kind, name)+".names", "name twice", dns, "a name that is not "+other+"'s")
			}
			owner[dns] = kind + " " + name
		}
	}
	for _, name := range d.TaskNames() {
		check("task", name, d.Tasks[name].Names)
	}
	for _, name := range d.GroupNames() {
		check("group", name, d.Groups[name].Names)
	}
}

// AuthorityName returns the DNS name of the authority's own certificate.
func (d *Document) AuthorityName() string { return "authority." + d.TrustDomain }

func (d *Document) checkCalls(faults *policytoml.Faults) {
	for _, name := range d.TaskNames() {
		for _, call := range d.Tasks[name].Calls {
			if d.Tasks[call] == nil {
				faults.Add(policytoml.JoinPath("task", name)+".calls", "task", call, "a task of this policy, as "+policytoml.Nearest(call, d.TaskNames()))
			}
		}
	}
}

// checkContinues demands that each chain of continues ends at a release without it.
func (d *Document) checkContinues(faults *policytoml.Faults) {
	for _, name := range d.TaskNames() {
		task := d.Tasks[name]
		for _, release := range task.ReleaseNames() {
			path := policytoml.JoinPath(policytoml.JoinPath("task", name)+".release", release) + ".continues"
			next := task.Releases[release].Continues
			if next != "" && task.Releases[next] == nil {
				faults.Add(path, "release", next, "a release of this task, as "+policytoml.Nearest(next, task.ReleaseNames()))
			}
			if task.circular(release) {
				faults.Add(path, "circle", next, "a release that does not lead back")
			}
		}
	}
}

// circular reports whether the chain of continues from a release leads back to it.
func (t *Task) circular(release string) bool {
	at := t.Releases[release]
	for range t.Releases {
		if at = t.Releases[at.Continues]; at == nil {
			return false
		}
		if at.Name == release {
			return true
		}
	}
	return false
}

// checkReferences demands a table of the platform of each reference value, and that no
// measurement matches two reference values.
func (d *Document) checkReferences(faults *policytoml.Faults) {
	refs := d.references()
	for i, ref := range refs {
		if _, ok := d.Platforms[ref.Platform]; !ok {
			faults.Add(ref.Path, "platform", ref.Platform, policytoml.JoinPath("[platform", string(ref.Platform))+"] in this policy")
		}
		for _, other := range refs[:i] {
			if overlap(ref.ReferenceValue, other.ReferenceValue) {
				faults.Add(ref.Path, "measurement twice", ref.String(), "code that "+other.Path+" does not have too")
			}
		}
	}
}

// checkDevices demands a table of the platform of each device that a release requires.
func (d *Document) checkDevices(faults *policytoml.Faults) {
	for _, name := range d.TaskNames() {
		for _, release := range d.Tasks[name].ReleaseNames() {
			for _, p := range slices.Sorted(maps.Keys(d.Tasks[name].Releases[release].Devices)) {
				if _, ok := d.Platforms[p]; !ok {
					faults.Add(policytoml.JoinPath(policytoml.JoinPath("task", name)+".release", release)+".devices", "platform", p, policytoml.JoinPath("[platform", string(p))+"] in this policy")
				}
			}
		}
	}
}

// TrustDomainOK reports whether s can be a SPIFFE trust domain whose authority
// has a DNS name.
func TrustDomainOK(s string) bool { return dnsNameOK("authority." + s) }

// dnsNameOK reports whether s is a DNS name in lower case: at most 253 bytes,
// labels of 1 to 63 of a-z, 0-9 and inner "-", not an IP address.
func dnsNameOK(s string) bool {
	labels := strings.Split(s, ".")
	for _, l := range labels {
		if !wire.ValidName(l) || strings.HasPrefix(l, "-") || strings.HasSuffix(l, "-") {
			return false
		}
	}
	return len(s) <= 253 && strings.Trim(labels[len(labels)-1], "0123456789") != ""
}
