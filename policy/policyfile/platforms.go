package policyfile

import (
	"slices"
	"strings"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/dcap/dcaprules"
	"github.com/cohort-tee/cohort/attest/nitro/nitrorules"
	"github.com/cohort-tee/cohort/attest/nvidia/nvidiarules"
	"github.com/cohort-tee/cohort/attest/snp/snprules"
	"github.com/cohort-tee/cohort/attest/soft/softrules"
	"github.com/cohort-tee/cohort/attest/tpm/tpmrules"
)

// known are the platforms that a policy may name. Units parse policy without any vendor's
// library, so this table lists the rules alone; a test of attest/platforms compares it
// with the table there.
var known = newPlatforms(
	softrules.Rules, tpmrules.Rules, snprules.SNP, snprules.Azure, dcaprules.TDX, dcaprules.SGX, nitrorules.Rules, nvidiarules.Rules,
)

// Platforms returns the platforms that a policy may name, in the order of their names.
func Platforms() []attest.PolicyRules { return slices.Clone(known.all) }

// platformTable has the rules and keys of platforms.
type platformTable struct {
	all  []attest.PolicyRules  // in the order of their names
	keys map[string]attest.Key // by the kind of their path, as diff has it
	// chosen are the kinds of tables whose keys the file chooses.
	chosen map[string]bool
}

func newPlatforms(all ...attest.PolicyRules) platformTable {
	p := platformTable{all: slices.Clone(all), keys: map[string]attest.Key{}, chosen: map[string]bool{}}
	slices.SortFunc(p.all, func(a, b attest.PolicyRules) int { return strings.Compare(string(a.Platform), string(b.Platform)) })
	for _, r := range p.all {
		kind := "platform." + string(r.Platform)
		p.keys[kind] = attest.Key{Direction: attest.Grants}
		p.addKeys(kind, common)
		p.addKeys(kind, r.Keys)
	}
	return p
}

// common are the keys that every platform has.
var common = []attest.Key{
	{Name: "roots", Direction: attest.Grants},
	{Name: "debug", Direction: attest.GrantsIfTrue},
}

// addKeys adds keys below a table of a kind.
func (p platformTable) addKeys(kind string, keys []attest.Key) {
	for _, k := range keys {
		kind := kind + "." + k.Name
		switch k.Kind {
		case attest.KeyNamed:
			p.chosen[kind] = true
			p.keys[kind+".*"] = k
			for _, name := range k.Names {
				p.addKeys(kind+".*", k.Named(name))
			}
		case attest.KeyBits:
			p.keys[kind] = attest.Key{Optional: k.Optional}
			for _, bit := range k.Field.Names() {
				p.keys[kind+"."+bit] = attest.Key{Name: bit, Direction: attest.NarrowsBits, Field: k.Field}
			}
			p.addKeys(kind, k.Keys)
		case attest.KeyJoined:
			p.keys[kind] = k
		default:
			p.keys[kind] = k
			p.addKeys(kind, k.Keys)
		}
	}
}

// lookup returns the rules of a platform.
func (p platformTable) lookup(name attest.Platform) (attest.PolicyRules, bool) {
	i := slices.IndexFunc(p.all, func(r attest.PolicyRules) bool { return r.Platform == name })
	if i < 0 {
		return attest.PolicyRules{}, false
	}
	return p.all[i], true
}

// names returns the names of the platforms that is accepts.
func (p platformTable) names(is func(attest.PolicyRules) bool) string {
	var names []string
	for _, r := range p.all {
		if is(r) {
			names = append(names, string(r.Platform))
		}
	}
	return strings.Join(names, ", ")
}

// development reports whether a platform does not protect from its host.
func (p platformTable) development(name attest.Platform) bool {
	r, _ := p.lookup(name)
	return r.Development
}
