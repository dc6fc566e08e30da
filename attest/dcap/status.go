package dcap

import (
	"bytes"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// status is what Intel states about a TCB level, as a set of what is the matter. The
// zero status is none and accepted nowhere.
type status uint8

const (
	rated         status = 1 << iota // Intel states something; alone: all is well
	hardening                        // software must be hardened
	configuration                    // the platform must be configured
	outOfDate
	revoked
	relaunch // the TD was launched under a module that is out of date, and runs under one that is not
)

// statuses are Intel's words.
var statuses = map[string]status{
	"UpToDate":                          rated,
	"SWHardeningNeeded":                 rated | hardening,
	"ConfigurationNeeded":               rated | configuration,
	"ConfigurationAndSWHardeningNeeded": rated | configuration | hardening,
	"OutOfDate":                         rated | outOfDate,
	"OutOfDateConfigurationNeeded":      rated | outOfDate | configuration,
	"Revoked":                           rated | revoked,
}

// concluded are Intel's words that are in no document: a verifier concludes them.
var concluded = map[string]status{
	"TDRelaunchAdvised":                    rated | relaunch,
	"TDRelaunchAdvisedConfigurationNeeded": rated | relaunch | configuration,
}

// UnmarshalText reads Intel's word in a document.
func (s *status) UnmarshalText(text []byte) error {
	known, ok := statuses[string(text)]
	if !ok {
		return wire.Refuse(wire.Malformed, "dcap: TCB status", string(text), "one of Intel's")
	}
	*s = known
	return nil
}

// String is Intel's word.
func (s status) String() string {
	for _, words := range []map[string]status{statuses, concluded} {
		for word, known := range words {
			if s == known {
				return word
			}
		}
	}
	return "none"
}

// worse joins the statuses of two parts of a platform as Intel does: what is the
// matter with one is the matter with both, but Revoked hides all else, and
// OutOfDate hides that software must be hardened.
func worse(a, b status) status {
	joined := a | b
	switch {
	case a == 0 || b == 0:
		return 0
	case joined&revoked != 0:
		return rated | revoked
	case joined&outOfDate != 0:
		return joined &^ hardening
	}
	return joined
}

// relaunched joins the status at a trust domain's launch with that of the module
// it runs under now. A module that was replaced by one that is not out of date
// leaves what happened before: Intel advises to launch the trust domain anew. In
// all other cases the worse counts.
func relaunched(launch, current status) status {
	joined := worse(launch, current)
	if joined == 0 || joined&revoked != 0 || launch&outOfDate == 0 || current&outOfDate != 0 {
		return joined
	}
	return rated | relaunch | joined&configuration
}

// verdict is what Intel states about a platform: of each part, of all, and the
// advisories of all levels that matched, sorted.
type verdict struct {
	platform, module, qe status // module is zero where Intel rates none
	current              status // of all with the TDX module that runs now; zero where it is the same
	overall              status
	date                 time.Time // tcbDate of the platform's level
	advisories           []string
}

// assess rates the platform of a quote: with the TDX module that a trust domain was
// launched under, and with the one that it runs under now, where the quote names
// another.
func (p *platform) assess(q quote) (verdict, error) {
	if p.tcb.ID != idTDX {
		return p.ratePlatform(q, nil)
	}
	g := guest(q.body)
	v, err := p.ratePlatform(q, g.tcbSVN())
	if err != nil || len(g.tcbSVN2()) == 0 || bytes.Equal(g.tcbSVN2(), g.tcbSVN()) {
		return v, err
	}
	now, err := p.ratePlatform(q, g.tcbSVN2())
	if err != nil {
		return v, err
	}
	v.current = now.overall
	v.overall = relaunched(v.overall, now.overall)
	v.addAdvisories(now.advisories)
	return v, nil
}

// ratePlatform rates the platform of a quote with a TEE TCB SVN, nil for an enclave's.
func (p *platform) ratePlatform(q quote, teeSVN []byte) (verdict, error) {
	var v verdict
	level, err := p.tcb.platformLevel(p.pck, teeSVN)
	if err != nil {
		return v, err
	}
	v.platform, v.overall, v.date = level.Status, level.Status, level.Date
	v.addAdvisories(level.Advisories)
	if teeSVN != nil {
		level, err = p.tcb.moduleLevel(guest(q.body), teeSVN)
		if err != nil {
			return v, err
		}
		if level != nil {
			v.module = level.Status
			v.overall = worse(v.overall, v.module)
			v.addAdvisories(level.Advisories)
		}
	}
	if level, err = p.qe.level(q.qe.securityVersion()); err != nil {
		return v, err
	}
	v.qe = level.Status
	v.overall = worse(v.overall, v.qe)
	v.addAdvisories(level.Advisories)
	return v, nil
}

// addAdvisories adds advisories, each once, sorted.
func (v *verdict) addAdvisories(advisories []string) {
	all := slices.Concat(v.advisories, advisories)
	slices.Sort(all)
	v.advisories = slices.Compact(all)
}
