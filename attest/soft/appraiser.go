package soft

import (
	"encoding/hex"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/internal/closed"
	"github.com/cohort-tee/cohort/internal/wire"
)

// chipDigits of a daemon's root name it for people: 64 bits.
const chipDigits = 16

// ChipOf is the chip that the evidence of the daemon with a root names: 16
// hexadecimal digits.
func ChipOf(root attest.Digest) string { return root.Hex()[:chipDigits] }

// softAppraiser appraises evidence of the development TEE. It needs no
// endorsements and no time: a daemon's key vouches for itself where policy
// names its digest, until policy names it no longer.
type softAppraiser struct{}

var _ attest.Appraiser = softAppraiser{}

// Platform is [attest.Soft].
func (softAppraiser) Platform() attest.Platform { return attest.Soft }

// Genuine implements [attest.Appraiser].
func (a softAppraiser) Genuine() closed.Appraiser { return closed.VouchFor(a) }

// Appraise refuses with "malformed" what is not the one encoding, with
// "unknown-root" a daemon that the rules do not name, with "signature" evidence
// the daemon did not sign, and with "platform" a chip that the rules cut off.
func (softAppraiser) Appraise(raw []byte, _ attest.Endorsements, rules attest.Rules, _ time.Time) (attest.Claims, error) {
	e, err := parse(raw)
	if err != nil {
		return attest.Claims{}, err
	}
	root := wire.Sum(e.spki)
	if !slices.Contains(rules.Roots, root) {
		return attest.Claims{}, wire.Refuse(wire.UnknownRoot, "soft evidence: root", root, "a root that policy names")
	}
	if !e.isSignatureValid() {
		return attest.Claims{}, wire.Refuse(wire.BadSignature, "soft evidence: signature", "a signature that does not verify", "the daemon's")
	}
	if slices.ContainsFunc(rules.Soft.CutChips, func(chip []byte) bool { return hex.EncodeToString(chip) == ChipOf(root) }) {
		return attest.Claims{}, wire.Refuse(wire.NoPlatform, "soft evidence: chip", ChipOf(root), "one that policy accepts")
	}
	return e.claims(), nil
}

// UnverifiedClaims are what evidence states about itself.
func (softAppraiser) UnverifiedClaims(raw []byte) (attest.Claims, error) {
	e, err := parse(raw)
	if err != nil {
		return attest.Claims{}, err
	}
	return e.claims(), nil
}

func (e unverifiedEvidence) claims() attest.Claims {
	return attest.Claims{
		Measurement: e.statement.Measurement(),
		ReportData:  e.statement.ReportData[:],
		Debug:       e.statement.Debug,
		Dynamic:     e.statement.Dynamic,
		Chip:        ChipOf(wire.Sum(e.spki)),
	}
}
