package policy

import (
	"encoding/hex"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
)

// ruleReaders read the keys that one platform alone has. Policy may name
// exactly these platforms, and reference values of all but devices.
var ruleReaders = map[attest.Platform]func(t table, rules *attest.Rules){
	attest.Soft:     readSoft,
	attest.SNP:      readSNP,
	attest.AzureSNP: readSNP,
	attest.TDX:      readTDX,
	attest.SGX:      readSGX,
	attest.Nitro:    readNitro,
	attest.TPM:      readTPM,

	attest.NvidiaGPU: readNVIDIA,
}

func platformOK(name string) bool { return ruleReaders[attest.Platform(name)] != nil }

func wantPlatform() string { return platformList(func(attest.Platform) bool { return true }) }

// platformList lists the platforms that are of a kind.
func platformList(is func(attest.Platform) bool) string {
	var names []string
	for p := range ruleReaders {
		if is(p) {
			names = append(names, string(p))
		}
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// readRules reads the tables of platforms: who may vouch, and what is accepted.
func readRules(root table) map[attest.Platform]attest.Rules {
	platforms := map[attest.Platform]attest.Rules{}
	for _, t := range root.named("platform", wantPlatform(), platformOK) {
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
		ruleReaders[platform](t.table, &rules)
		t.done()
		platforms[platform] = rules
	}
	return platforms
}

// nameLaunches tells the rules of the TPM which programs may have run on a
// machine: all that reference values name.
func nameLaunches(platforms map[attest.Platform]attest.Rules, references []attest.ReferenceValue) {
	rules, ok := platforms[attest.TPM]
	if !ok {
		return
	}
	for _, r := range references {
		if r.Platform == attest.TPM {
			rules.TPM.Launches = append(rules.TPM.Launches, r)
		}
	}
	platforms[attest.TPM] = rules
}

func readSNP(t table, rules *attest.Rules) {
	t.need("generation", "chips", "id_keys")
	t.revocation(rules)
	rules.SNP = attest.SNPRules{
		Generations: map[string]attest.SNPFloor{},
		Chips:       t.accepted("chips", wantSNPChip, snpChip),
		CutChips:    t.byteStrings("cut_chips", wantSNPChip, snpChip),
		IDKeys:      t.accepted("id_keys", wantSHA384, sha384),
		SMT:         t.flag("smt"),
		Migration:   t.flag("migration"),
		Provisional: t.flag("provisional_firmware"),
		VMPL:        uint32(t.number("vmpl", 0, 3)),
	}
	readSNPSettings(t, &rules.SNP)
	for _, g := range t.named("generation", "Milan, Genoa or Turin", snpGenerationOK) {
		g.need("committed")
		rules.SNP.Generations[g.name] = attest.SNPFloor{Committed: g.floor("committed"), Reported: g.floor("reported"), Launch: g.floor("launch")}
		g.done()
	}
	if t.has("generation") && len(rules.SNP.Generations) == 0 {
		t.fault("generation", "number of generations", 0, "at least 1")
	}
}

func snpGenerationOK(name string) bool {
	return name == "Milan" || name == "Genoa" || name == turin
}

// turin is the generation whose firmware has an FMC.
const turin = "Turin"

// floor reads a TCB. It names every component, so that none is forgotten.
func (t namedTable) floor(key string) (floor attest.SNPTCB) {
	inner, ok := t.table.table(key)
	if !ok {
		return floor
	}
	read := func(key string) uint8 {
		inner.need(key)
		return uint8(inner.number(key, 0, math.MaxUint8))
	}
	floor = attest.SNPTCB{Bootloader: read("bootloader"), TEE: read("tee"), SNP: read("snp"), Microcode: read("microcode")}
	if t.name == turin {
		floor.FMC = read("fmc")
	}
	inner.done()
	return floor
}

func readTDX(t table, rules *attest.Rules) {
	readDCAP(t, rules, slices.Concat(dcapStatuses, relaunchStatuses))
	rules.DCAP.Migration = t.flag("migration")
	readTDXSettings(t, &rules.DCAP)
}

func readSGX(t table, rules *attest.Rules) {
	readDCAP(t, rules, dcapStatuses)
	rules.DCAP.MinISVSVN = uint16(t.number("min_isvsvn", 0, math.MaxUint16))
}

func readDCAP(t table, rules *attest.Rules, statuses []string) {
	t.need("chips")
	t.revocation(rules)
	rules.DCAP = attest.DCAPRules{
		Statuses:      t.set("statuses", strings.Join(statuses, ", "), oneOf(statuses)),
		Advisories:    t.set("advisories", `an id such as "INTEL-SA-00615"`, advisory.MatchString),
		MinEvaluation: uint32(t.number("min_evaluation", 0, math.MaxUint32)),
		MinTCBDate:    t.dated("min_tcb_date"),
		Chips:         t.accepted("chips", wantPPID, ppid),
		CutChips:      t.byteStrings("cut_chips", wantPPID, ppid),
		CutModels:     t.byteStrings("cut_models", wantFMSPC, fmspc),
	}
}

// dcapStatuses are the words of Intel's that policy may accept. UpToDate needs
// no permission, Revoked gets none.
var dcapStatuses = []string{
	"SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate", "OutOfDateConfigurationNeeded",
}

// relaunchStatuses are those of a trust domain whose module was replaced.
var relaunchStatuses = []string{"TDRelaunchAdvised", "TDRelaunchAdvisedConfigurationNeeded"}

var advisory = regexp.MustCompile(`^INTEL-[A-Z]{2}-[0-9]{5}$`)

func readNitro(t table, rules *attest.Rules) {
	t.need("max_age")
	t.revocation(rules)
	rules.Nitro.MaxAge = t.duration("max_age", time.Second, 3*time.Hour) // no certificate of an enclave lives longer
}

func readSoft(t table, rules *attest.Rules) {
	rules.Soft.CutChips = t.byteStrings("cut_chips", wantSoftChip, machineForms[attest.Soft])
}

func readTPM(t table, rules *attest.Rules) {
	rules.TPM.CutChips = t.byteStrings("cut_chips", wantDigest, sha256Digest)
}

func readNVIDIA(t table, rules *attest.Rules) {
	t.need("models", "chips", "drivers", "vbios", "modes", "measurements")
	t.revocation(rules)
	rules.NVIDIA = attest.NVIDIARules{
		Models:   t.set("models", "a model such as GH100", nvidiaModel.MatchString),
		Chips:    t.accepted("chips", wantDigest, sha256Digest),
		CutChips: t.byteStrings("cut_chips", wantDigest, sha256Digest),
		Drivers:  t.accepted("drivers", "a version such as 550.90.07", matching(nvidiaDriver)),
		VBIOS:    t.accepted("vbios", "a version such as 96.00.9F.00.01", matching(nvidiaVBIOS)),
		Modes:    t.set("modes", strings.Join(nvidiaModes, ", "), oneOf(nvidiaModes)),
	}
	rules.NVIDIA.AnyMeasurements = t.text("measurements", `"any": nobody compares them`, oneOf([]string{anyWord})) == anyWord
	rules.NVIDIA.Development = t.text("mode", strings.Join(nvidiaStates, " or "), oneOf(nvidiaStates)) == nvidiaStates[1]
}

var (
	nvidiaModel  = regexp.MustCompile(`^G[A-Z][0-9]{2}[0-9X]$`)
	nvidiaDriver = regexp.MustCompile(`^[0-9]+(\.[0-9]+)+$`)
	nvidiaVBIOS  = regexp.MustCompile(`^[0-9A-F]{2}(\.[0-9A-F]{2}){4}$`)

	// nvidiaModes are the words for how GPUs are protected from one another.
	nvidiaModes = []string{"SPT", "MPT", "PPCIE", "unstated"}

	// nvidiaStates are the words for whether a GPU's host can read it: it cannot, or
	// it may.
	nvidiaStates = []string{"production", "development"}
)

// matching reads text of a form as its bytes.
func matching(form *regexp.Regexp) func(string) []byte {
	return func(s string) []byte {
		if !form.MatchString(s) {
			return nil
		}
		return []byte(s)
	}
}

// revocation reads what a missing revocation list means, and how long ago lists
// and statements may have been had: at least the day after which the authority
// asks again.
func (t table) revocation(rules *attest.Rules) {
	words := []string{string(attest.CRLRequired), string(attest.CRLIfPresent)}
	rules.CRL = attest.CRLRule(t.text("crl", strings.Join(words, " or "), oneOf(words)))
	rules.CheckedWithin = t.duration("checked_within", 25*time.Hour, 8760*time.Hour)
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

const wantSNPChip = "128 lower-case hexadecimal digits, or the 16 of a Turin, not all zero"

// snpChip reads a chip id. The 8 bytes of a Turin stand before zeros in reports.
// Zeros are no id: a host writes them to hide one.
func snpChip(s string) []byte {
	b := digits(s, 64)
	if short := digits(s, 8); short != nil {
		b = append(short, make([]byte, 56)...)
	}
	if zero(b) {
		return nil
	}
	return b
}

const wantSoftChip = "16 lower-case hexadecimal digits"

const wantPPID = "32 lower-case hexadecimal digits"

func ppid(s string) []byte { return digits(s, 16) }

const wantFMSPC = "12 lower-case hexadecimal digits, an FMSPC"

func fmspc(s string) []byte { return digits(s, 6) }

const wantSHA384 = `"sha384:" and 96 lower-case hexadecimal digits`

func sha384(s string) []byte { return prefixed(s, "sha384:", 48) }

func sha256Digest(s string) []byte { return prefixed(s, "sha256:", 32) }

func prefixed(s, prefix string, size int) []byte {
	s, ok := strings.CutPrefix(s, prefix)
	if !ok {
		return nil
	}
	return digits(s, size)
}

// digits reads so many bytes in hexadecimal, and nil from anything else.
func digits(s string, size int) []byte {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != size || fmt.Sprintf("%x", b) != s {
		return nil
	}
	return b
}
