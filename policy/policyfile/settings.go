package policyfile

import (
	"math"
	"strconv"
	"strings"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/policy/policytoml"
)

// readBits reads a table of bits: the name of a bit, and true, false or "any". It leaves
// other keys of the table unread.
func readBits(t policytoml.Table, field attest.BitField) attest.Bits {
	var demands attest.Bits
	for _, name := range field.Names() {
		t.Expect(name)
		if v, ok := t.Values[name]; ok {
			demand := demandOf(v)
			if demand == 0 {
				t.AddFault(name, "value", policytoml.Describe(v), `true, false or "any"`)
			}
			if demands == nil {
				demands = attest.Bits{}
			}
			demands[name] = demand
		}
	}
	return demands
}

// demandOf returns the demand of a value, or zero for an invalid one.
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

// readBitNumbers reads a list of bit numbers, each once.
func readBitNumbers(t policytoml.Table, key string) uint64 {
	var vector uint64
	for i, v := range policytoml.ReadValue(t, key, "a list", policytoml.AnyValue[[]any]) {
		n, is := v.(int64)
		if !is || n < 0 || n > 63 {
			t.Faults.Add(t.ElementPath(key, i), "value", policytoml.Describe(v), "the number of a bit, 0 to 63")
			continue
		}
		if vector>>n&1 == 1 {
			t.AddFault(key, "element twice", n, "each once")
		}
		vector |= 1 << n
	}
	return vector
}

// narrows reports whether another demand on a bit accepts less: the same, or one value
// instead of both. An absent value is the default of the field.
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

// versionNumber parses a version of two numbers of a policy file, in quotes; an absent one
// is zero.
func versionNumber(text string) int {
	major, minor, _ := strings.Cut(strings.Trim(text, `"`), ".")
	high, _ := strconv.Atoi(major)
	low, _ := strconv.Atoi(minor)
	return high*(math.MaxUint8+1) + low
}
