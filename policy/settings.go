package policy

import (
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/cohort-tee/cohort/attest"
)

// bitFields are the tables of demands on bits, by the kind of their path.
var bitFields = map[string]attest.BitField{
	"platform.*.attributes":    attest.TDAttributes,
	"platform.*.xfam":          attest.XFAM,
	"platform.*.platform_info": attest.SNPPlatformInfo,
	"platform.*.guest_policy":  attest.SNPGuestPolicy,
}

// abiKey is the one key of the guest policy's table that is no bit.
const abiKey = "abi"

// bits reads a table of demands: the name of a bit, and true, false or "any". What
// other tables read of it is left to them.
func (t table) bits(field attest.BitField) attest.Bits {
	var demands attest.Bits
	for _, name := range field.Names() {
		t.known[name] = true
		if v, ok := t.values[name]; ok {
			demand := demandOf(v)
			if demand == 0 {
				t.fault(name, "value", show(v), `true, false or "any"`)
			}
			if demands == nil {
				demands = attest.Bits{}
			}
			demands[name] = demand
		}
	}
	return demands
}

// demandOf is what a value says of a bit, zero where it says nothing known.
func demandOf(v any) attest.Demand {
	switch v {
	case true:
		return attest.DemandSet
	case false:
		return attest.DemandClear
	case anyWord:
		return attest.DemandAny
	}
	return 0
}

// demands reads the table of a field, which may be left out.
func (t table) demands(field attest.BitField) attest.Bits {
	inner, _ := t.table(field.Key)
	bits := inner.bits(field)
	inner.done()
	return bits
}

// readSNPSettings reads the rules about how a host set its machine up, and about
// what guests were launched with.
func readSNPSettings(t table, rules *attest.SNPRules) {
	rules.HiddenChips = t.flag("hidden_chips")
	if rules.HiddenChips && t.has("chips") && !rules.Chips.Any {
		t.fault("hidden_chips", "chips", "a list of chips", `chips = "any": a chip whose id is hidden is on no list`)
	}
	rules.PlatformInfo = t.demands(attest.SNPPlatformInfo)
	guest, _ := t.table(attest.SNPGuestPolicy.Key)
	rules.GuestPolicy = guest.bits(attest.SNPGuestPolicy)
	guest.text(abiKey, `a version such as "1.55"`, func(s string) bool {
		var ok bool
		rules.GuestABI, ok = abiVersion(s)
		return ok
	})
	guest.done()
	mitigations, _ := t.table("mitigations")
	rules.LaunchMitigations = mitigations.vector("launch")
	rules.CurrentMitigations = mitigations.vector("current")
	mitigations.done()
}

// abiVersion reads two numbers of a byte each, in their one spelling.
func abiVersion(s string) (v attest.SNPABI, ok bool) {
	major, minor, _ := strings.Cut(s, ".")
	for _, part := range []struct {
		text string
		to   *uint8
	}{{major, &v.Major}, {minor, &v.Minor}} {
		n, err := strconv.ParseUint(part.text, 10, 8)
		if err != nil || strconv.FormatUint(n, 10) != part.text {
			return attest.SNPABI{}, false
		}
		*part.to = uint8(n)
	}
	return v, true
}

// vector reads a list of the numbers of bits, each once.
func (t table) vector(key string) uint64 {
	var vector uint64
	for i, v := range read(t, key, "a list", anything[[]any]) {
		n, is := v.(int64)
		if !is || n < 0 || n > 63 {
			t.faults.add(t.element(key, i), "value", show(v), "the number of a bit, 0 to 63")
			continue
		}
		if vector>>n&1 == 1 {
			t.fault(key, "element twice", n, "each once")
		}
		vector |= 1 << n
	}
	return vector
}

// readTDXSettings reads the rules about how a host set a trust domain up.
func readTDXSettings(t table, rules *attest.DCAPRules) {
	rules.Attributes, rules.XFAM = t.demands(attest.TDAttributes), t.demands(attest.XFAM)
	rules.ServiceTD = t.accepted("servicetd", wantMR+`, or "unsaid"`, serviceTD)
	if _, word := t.values["owner"].(string); word {
		rules.Owner = attest.List{Any: t.text("owner", `"any", or a list`, oneOf([]string{anyWord})) == anyWord}
		return
	}
	for _, pair := range t.tables("owner") {
		var value []byte
		for _, key := range []string{"mrowner", "mrownerconfig"} {
			value = append(value, bytesOf(pair, key, wantMR, mr)...)
		}
		pair.done()
		if slices.ContainsFunc(rules.Owner.Values, func(v []byte) bool { return string(v) == string(value) }) {
			t.fault("owner", "element twice", pair.path, "each once")
		}
		rules.Owner.Values = append(rules.Owner.Values, value)
	}
}

const wantMR = "96 lower-case hexadecimal digits"

func mr(s string) []byte { return digits(s, 48) }

// unsaid stands for the MRSERVICETD of quotes that have none, before TDX 1.5.
const unsaid = "unsaid"

func serviceTD(s string) []byte {
	if s == unsaid {
		return []byte{}
	}
	return mr(s)
}

// implied are the values that a key stands for where it is left out, by its kind or
// path: no service TD that a quote says, no owner, and lists of AWS that may be missing.
var implied = map[string]any{
	"platform.*.servicetd": []any{zeroMR, unsaid},
	"platform.nitro.crl":   string(attest.CRLIfPresent),
	"platform.*.owner":     []any{map[string]any{"mrowner": zeroMR, "mrownerconfig": zeroMR}},
}

var zeroMR = strings.Repeat("00", 48)

// narrows reports whether another demand on a bit accepts less: the same, or one
// value where both were. Nothing is what the field's own table says.
func narrows(field attest.BitField, name, was, is string) bool {
	demand := func(text string) attest.Demand {
		switch text {
		case "true":
			return attest.DemandSet
		case "false":
			return attest.DemandClear
		case "":
			return field.Default(name)
		}
		return attest.DemandAny
	}
	before, after := demand(was), demand(is)
	return before == attest.DemandAny || before == after
}

// abiNumber is a version as a policy file writes it, in quotes; an absent one is
// zero.
func abiNumber(text string) int {
	v, _ := abiVersion(strings.Trim(text, `"`))
	return int(v.Major)*(math.MaxUint8+1) + int(v.Minor)
}
