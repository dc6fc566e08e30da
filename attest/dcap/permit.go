package dcap

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// permit asks the rules about a quote that is genuine. Debug is asked by the
// verifier, for every platform alike.
func permit(p *platform, v verdict, rules attest.DCAPRules) error {
	if err := permitChip(p, rules); err != nil {
		return err
	}
	for _, document := range []issued{p.tcb.issued, p.qe.issued} {
		if document.Evaluation < rules.MinEvaluation {
			return wire.Refuse(wire.BadTCB, "dcap: evaluation number of "+document.ID, document.Evaluation, fmt.Sprintf("at least %d", rules.MinEvaluation))
		}
	}
	return permitStatus(v, rules)
}

// permitChip asks about the platform that the PCK certificate names.
func permitChip(p *platform, rules attest.DCAPRules) error {
	among := func(cut [][]byte, id []byte) bool {
		return slices.ContainsFunc(cut, func(c []byte) bool { return bytes.Equal(c, id) })
	}
	if among(rules.CutChips, p.pck.ppid) || !rules.Chips.Accepts(p.pck.ppid) {
		return wire.Refuse(wire.NoPlatform, "dcap: chip", hex.EncodeToString(p.pck.ppid), "one that policy accepts")
	}
	if among(rules.CutModels, p.pck.fmspc) {
		return wire.Refuse(wire.NoPlatform, "dcap: model (FMSPC)", hex.EncodeToString(p.pck.fmspc), "one that policy does not cut off")
	}
	return nil
}

// permitStatus asks about Intel's verdict. UpToDate needs no permission, and
// Revoked gets none.
func permitStatus(v verdict, rules attest.DCAPRules) error {
	accepted := slices.Contains(rules.Statuses, v.overall.String()) && v.overall&revoked == 0
	if v.overall != rated && !accepted {
		return wire.Refuse(wire.BadTCB, "dcap: TCB status", v.overall, strings.Join(append([]string{"UpToDate"}, rules.Statuses...), ", "))
	}
	if v.date.Before(rules.MinTCBDate) {
		return wire.Refuse(wire.BadTCB, "dcap: tcbDate of the platform", v.date.Format(time.DateOnly), "not before "+rules.MinTCBDate.Format(time.DateOnly))
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
	if of == attest.TDX {
		return permitGuest(guest(q.body), rules)
	}
	if got := enclave(q.body).securityVersion(); got < rules.MinISVSVN {
		return wire.Refuse(wire.BadTCB, "dcap: isvsvn", got, fmt.Sprintf("at least %d", rules.MinISVSVN))
	}
	return nil
}

// permitGuest asks how the host set the trust domain up: nothing of it is in a
// register.
func permitGuest(g guest, rules attest.DCAPRules) error {
	if g.migratable() && !rules.Migration {
		return wire.Refuse(wire.BadTCB, "dcap: TD attributes", "migration allowed", "not allowed")
	}
	if err := attest.TDAttributes.Permit(binary.LittleEndian.Uint64(g.attributes()), rules.Attributes); err != nil {
		return err
	}
	if err := attest.XFAM.Permit(binary.LittleEndian.Uint64(g.extendedFeatures()), rules.XFAM); err != nil {
		return err
	}
	if !acceptsOrZero(rules.Owner, g.owners()) {
		return wire.Refuse(wire.BadTCB, "dcap: MROWNER and MROWNERCONFIG", hex.EncodeToString(g.mrOwner())+" "+hex.EncodeToString(g.mrOwnerConfig()),
			"zeros, or a pair under owner in policy")
	}
	if bound := g.mrServiceTD(); !acceptsOrZero(rules.ServiceTD, bound) {
		return wire.Refuse(wire.BadTCB, "dcap: MRSERVICETD", cmp.Or(hex.EncodeToString(bound), "none, as in every quote before TDX 1.5"),
			"zeros, or a value under servicetd in policy")
	}
	return nil
}

// acceptsOrZero reports whether a list accepts a value; an empty list accepts
// zeros, and what a quote does not have.
func acceptsOrZero(l attest.List, value []byte) bool {
	if !l.Any && len(l.Values) == 0 {
		return len(bytes.Trim(value, "\x00")) == 0
	}
	return l.Accepts(value)
}
