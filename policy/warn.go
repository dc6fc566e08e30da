package policy

import (
	"maps"
	"slices"

	"github.com/cohort-tee/cohort/attest"
)

// Warning is a place where a policy file follows every rule and yet does less than it
// seems to: a cut-off or a floor without effect, a task of which no unit can start.
type Warning struct {
	Path string // dotted key
	Text string
}

// String is one line for people.
func (w Warning) String() string { return w.Path + ": " + w.Text }

// Warnings lists the cut-offs and floors of a document that are void, and why, in
// the order of the platforms, and then the tasks of which no unit can start.
func (d *Document) Warnings() []Warning {
	var all []Warning
	for _, p := range slices.Sorted(maps.Keys(d.Platforms)) {
		w := warner{path: join("platform", string(p)), rules: d.Platforms[p]}
		w.common()
		switch p {
		case attest.SNP, attest.AzureSNP:
			w.snp()
		case attest.TDX, attest.SGX:
			w.dcap()
		case attest.Nitro:
			w.nitro()
		}
		if p == attest.SGX {
			w.enclaves(d.references())
		}
		all = append(all, w.found...)
	}
	for _, name := range d.TaskNames() {
		live := func(release string) bool { return !d.Tasks[name].Releases[release].Retired }
		if !slices.ContainsFunc(d.Tasks[name].ReleaseNames(), live) {
			all = append(all, Warning{join("task", name) + ".release", "every release is retired: no unit of the task gets a certificate"})
		}
	}
	return all
}

// warner looks at the rules of one platform.
type warner struct {
	path  string
	rules attest.Rules
	found []Warning
}

func (w *warner) warn(key, text string) {
	w.found = append(w.found, Warning{w.path + "." + key, text})
}

func (w *warner) common() {
	if w.rules.Debug {
		w.warn("debug", "the host can read and change such a TEE: no measurement, cut-off or floor restrains it")
	}
	if w.rules.CRL == attest.CRLIfPresent {
		w.warn("crl", "what the vendor revokes is refused only while its list is at hand")
	}
}

func (w *warner) snp() {
	r := w.rules.SNP
	if r.HiddenChips && len(r.CutChips) > 0 {
		w.warn("hidden_chips", "void beside cut_chips: a chip whose id is hidden may be the one that is cut off, so none is accepted")
	} else if r.HiddenChips {
		w.warn("hidden_chips", "a chip whose id is hidden cannot be cut off: only its provider's root, or a floor, can")
	}
	w.migration(r.Migration, r.CutChips)
	for _, name := range slices.Sorted(maps.Keys(r.Generations)) {
		if r.Generations[name].Committed == (attest.SNPTCB{}) {
			w.warn("generation."+name+".committed", "a floor of zeros refuses no firmware")
		}
	}
}

func (w *warner) dcap() {
	r := w.rules.DCAP
	w.migration(r.Migration, r.CutChips)
	old := func(status string) bool { return status == "OutOfDate" || status == "OutOfDateConfigurationNeeded" }
	if slices.ContainsFunc(r.Statuses, old) && r.MinTCBDate.IsZero() {
		w.warn("statuses", "out of date, however old: min_tcb_date says how old")
	}
	if r.MinEvaluation == 0 {
		w.warn("min_evaluation", "none: Intel's statements from before its last recovery count until their own end")
	}
}

func (w *warner) nitro() {
	if w.rules.CRL == "" {
		w.warn("crl", `none: what AWS revokes is refused only while its lists are at hand; crl = "required" demands them`)
	}
}

// migration warns of chips that a TEE may move to after it was appraised.
func (w *warner) migration(allowed bool, cut [][]byte) {
	if allowed && len(cut) > 0 {
		w.warn("cut_chips", "void for what moves there afterwards: migration = true lets a TEE change its chip until it renews")
	}
}

// enclaves warns of enclaves that policy knows by their signer alone: every build
// of that signer counts that is not below the floor.
func (w *warner) enclaves(refs []placedReference) {
	if w.rules.DCAP.MinISVSVN > 0 {
		return
	}
	for _, ref := range refs {
		for _, r := range ref.Registers {
			if ref.Platform == attest.SGX && r.Name == "mrenclave" && r.Any {
				w.warn("min_isvsvn", "none, and "+ref.path+" leaves mrenclave open: every old build of that signer counts")
			}
		}
	}
}
