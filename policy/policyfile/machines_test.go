package policyfile

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/attest"
)

// TestMachineForms: a policy accepts, for each platform, chip ids in the form of that platform's
// evidence, and no others.
func TestMachineForms(t *testing.T) {
	hex := func(n int) string { return strings.Repeat("a", n) }
	forms := map[attest.Platform][]string{
		attest.Soft: {hex(16)}, attest.SNP: {hex(128), hex(16)}, attest.AzureSNP: {hex(128), hex(16)}, attest.TDX: {hex(32)}, attest.SGX: {hex(32)},
		attest.TPM: {hex(64)}, attest.Nitro: {"i-0123456789abcdef0-enc0123456789abcdef"},
	}
	chips := map[attest.Platform]func(string) []byte{}
	for _, p := range Platforms() {
		if isTEE(p) != (p.Chip != nil) {
			t.Errorf("%s: got a form %v, want one for each platform that an authority may run on", p.Platform, p.Chip != nil)
		}
		if isTEE(p) {
			chips[p.Platform] = p.Chip
		}
	}
	all := slices.Sorted(maps.Keys(chips))
	every := append(slices.Concat(slices.Collect(maps.Values(forms))...), "", hex(15), hex(63), strings.ToUpper(hex(64)), "vlek:aws", "any")
	for _, p := range all {
		for _, chip := range every {
			if got, want := chips[p](chip) != nil, slices.Contains(forms[p], chip); got != want {
				t.Errorf("%s: chip %q: got %v, want %v", p, chip, got, want)
			}
		}
	}
	if short, long := chips[attest.SNP](hex(16)), chips[attest.SNP](hex(16)+strings.Repeat("0", 112)); !bytes.Equal(short, long) {
		t.Error("the two spellings of a Turin's chip differ")
	}
}
