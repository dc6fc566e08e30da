package dcap

import (
	"slices"

	"github.com/cohort-tee/cohort/internal/wire"
)

// status is what Intel says of a TCB level, as a set of what is the matter. The
// zero status is none and accepted nowhere.
type status uint8

const (
	rated         status = 1 << iota // Intel says something; alone: all is well
	hardening                        // software must be hardened
	configuration                    // the platform must be configured
	outOfDate
	revoked
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

// UnmarshalText reads Intel's word.
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
	for word, known := range statuses {
		if s == known {
			return word
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

// verdict is what Intel says of a platform: of each part, of all, and the
// advisories of all levels that matched, sorted.
type verdict struct {
	platform, module, qe status // module is zero where Intel rates none
	overall              status
	advisories           []string
}

// assess rates the platform of a quote.
func (p *platform) assess(q quote) (verdict, error) {
	var v verdict
	level, err := p.tcb.platformLevel(p.pck, p.guestSVN(q))
	if err != nil {
		return v, err
	}
	v.platform, v.overall, v.advisories = level.Status, level.Status, slices.Clone(level.Advisories)
	if p.tcb.ID == idTDX {
		level, err = p.tcb.moduleLevel(guest(q.body))
		if err != nil {
			return v, err
		}
		if level != nil {
			v.module = level.Status
			v.overall = worse(v.overall, v.module)
			v.advisories = append(v.advisories, level.Advisories...)
		}
	}
	if level, err = p.qe.level(q.qe.svn()); err != nil {
		return v, err
	}
	v.qe = level.Status
	v.overall = worse(v.overall, v.qe)
	v.advisories = append(v.advisories, level.Advisories...)
	slices.Sort(v.advisories)
	v.advisories = slices.Compact(v.advisories)
	return v, nil
}

// guestSVN is the TEE TCB SVN of a quote, nil for an enclave's.
func (p *platform) guestSVN(q quote) []byte {
	if p.tcb.ID != idTDX {
		return nil
	}
	return guest(q.body).tcbSVN()
}
