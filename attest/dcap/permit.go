package dcap

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// permit asks the rules about a quote that is genuine. Debug is asked by the
// verifier, for every platform alike.
func permit(p *platform, v verdict, rules attest.DCAPRules) error {
	among := func(cut [][]byte, id []byte) bool {
		return slices.ContainsFunc(cut, func(c []byte) bool { return bytes.Equal(c, id) })
	}
	if among(rules.CutChips, p.pck.ppid) || !rules.Chips.Accepts(p.pck.ppid) {
		return wire.Refuse(wire.NoPlatform, "dcap: chip", hex.EncodeToString(p.pck.ppid), "one that policy accepts")
	}
	if among(rules.CutModels, p.pck.fmspc) {
		return wire.Refuse(wire.NoPlatform, "dcap: model (FMSPC)", hex.EncodeToString(p.pck.fmspc), "one that policy does not cut off")
	}
	for _, document := range []issued{p.tcb.issued, p.qe.issued} {
		if document.Evaluation < rules.MinEvaluation {
			return wire.Refuse(wire.BadTCB, "dcap: evaluation number of "+document.ID, document.Evaluation, fmt.Sprintf("at least %d", rules.MinEvaluation))
		}
	}
	return permitStatus(v, rules)
}

// permitStatus asks about Intel's verdict. UpToDate needs no permission, and
// Revoked gets none.
func permitStatus(v verdict, rules attest.DCAPRules) error {
	accepted := slices.Contains(rules.Statuses, v.overall.String()) && v.overall&revoked == 0
	if v.overall != rated && !accepted {
		return wire.Refuse(wire.BadTCB, "dcap: TCB status", v.overall, strings.Join(append([]string{"UpToDate"}, rules.Statuses...), ", "))
	}
	for _, advisory := range v.advisories {
		if !slices.Contains(rules.Advisories, advisory) {
			return wire.Refuse(wire.BadTCB, "dcap: advisory", advisory, "one that policy accepts")
		}
	}
	return nil
}

// permitBody asks about the trust domain or enclave itself.
func permitBody(q quote, of attest.Platform, rules attest.DCAPRules) error {
	switch {
	case of == attest.TDX && guest(q.body).migratable() && !rules.Migration:
		return wire.Refuse(wire.BadTCB, "dcap: TD attributes", "migration allowed", "not allowed")
	case of == attest.SGX && enclave(q.body).svn() < rules.MinISVSVN:
		return wire.Refuse(wire.BadTCB, "dcap: isvsvn", enclave(q.body).svn(), fmt.Sprintf("at least %d", rules.MinISVSVN))
	}
	return nil
}
