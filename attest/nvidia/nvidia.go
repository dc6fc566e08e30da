// Package nvidia appraises attestation reports of NVIDIA GPUs, and asks GPUs for them
// through a program that reaches them.
//
// A GPU is a device beside a TEE: its report states which chip, firmware and driver
// were asked, and nothing of the program that uses them. So [attest.Verifier] takes
// it beside a TEE's evidence only.
//
// The appraiser trusts the root keys whose digests the rules name (NVIDIA has one,
// "NVIDIA Device Identity CA") and nothing else. Evidence is an SPDM 1.1 request for
// measurements (DMTF DSP0274) with the GPU's response, whose signature covers both;
// the endorsements are the GPU's certificate chain (role "cert_chain", PEM) and two
// revocation lists (roles "root_crl" and "model_crl", DER).
//
// It refuses whatever is not in the one encoding, a chain that does not verify, is out
// of its time or revoked, a signature that does not verify, firmware other than that
// the signing key was made for, and a model, chip, driver, VBIOS or mode that the
// rules do not accept.
//
// It does not compare the measurements with NVIDIA's reference values (RIM), so no
// report excludes that the GPU is in development mode, in which its host can read
// it. Rules must accept both by name, and the claims state it: see
// [attest.Claims.NotVerified].
// docs/spec/evidence-nvidia.md has every field and check.
//
// Files, each using those before it: report.go, opaque.go, chain.go, dice.go,
// nvidia.go, collector.go, platform.go, screen.go.
package nvidia

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/internal/closed"
	"github.com/cohort-tee/cohort/internal/wire"
)

// reportAppraiser appraises reports of GPUs. It has no state.
type reportAppraiser struct{}

// Platform is [attest.NvidiaGPU].
func (reportAppraiser) Platform() attest.Platform { return attest.NvidiaGPU }

// The roles of endorsements.
const (
	roleChain    = "cert_chain" // leaf first, root last
	roleRootCRL  = "root_crl"   // by the root, on the CAs of models
	roleModelCRL = "model_crl"  // by the CA of the model, on those that provision chips
)

// Genuine implements [attest.Appraiser].
func (a reportAppraiser) Genuine() closed.Appraiser { return closed.VouchFor(a) }

// Appraise appraises a report. Its report data is the nonce of the request, 32 bytes.
func (reportAppraiser) Appraise(raw []byte, endorsed attest.Endorsements, rules attest.Rules, at time.Time) (attest.Claims, error) {
	r, err := parseReport(raw)
	if err != nil {
		return attest.Claims{}, err
	}
	unverified, err := parseChain(endorsed[roleChain])
	if err != nil {
		return attest.Claims{}, err
	}
	c, err := unverified.verify(rules.Roots, at)
	if err != nil {
		return attest.Claims{}, err
	}
	if err := r.signedBy(c); err != nil {
		return attest.Claims{}, err
	}
	identity, err := c.identity()
	if err != nil {
		return attest.Claims{}, err
	}
	if err := identity.checkReport(r, c); err != nil {
		return attest.Claims{}, err
	}
	issued, err := c.checkRevocation(endorsed, rules.CRL, at)
	if err != nil {
		return attest.Claims{}, err
	}
	if err := permit(r, c, rules.NVIDIA); err != nil {
		return attest.Claims{}, err
	}
	claims := r.claims()
	claims.Chip, claims.Debug, claims.Issued = c.chipDigest().String(), identity.debug(), issued
	claims.Details["model"], claims.Details["chain_length"] = c.model, len(c.certs)
	claims.Details["flags"], claims.Details[nameOf(fieldFWID)] = identity.flagNames(), hex.EncodeToString(identity.fwids[0])
	return claims, nil
}

// UnverifiedClaims are what a report states about itself. Who signed it, and so which
// chip it is of, is in the chain and not in the report.
func (reportAppraiser) UnverifiedClaims(raw []byte) (attest.Claims, error) {
	r, err := parseReport(raw)
	if err != nil {
		return attest.Claims{}, err
	}
	return r.claims(), nil
}

// signedBy checks the signature over request and response.
func (r report) signedBy(c chain) error {
	digest := sha512.Sum384(r.signed)
	half := len(r.signature) / 2
	first, second := new(big.Int).SetBytes(r.signature[:half]), new(big.Int).SetBytes(r.signature[half:])
	if !ecdsa.Verify(c.key, digest[:], first, second) {
		return wire.Refuse(wire.BadSignature, "nvidia: signature of the report", "a signature that does not verify", "one by "+c.leafCertificate().Subject.CommonName)
	}
	return nil
}

// permit asks the rules about a report that is genuine.
func permit(r report, c chain, rules attest.NVIDIARules) error {
	chip := c.chipDigest()
	cut := slices.ContainsFunc(rules.CutChips, func(cut []byte) bool { return bytes.Equal(cut, chip[:]) })
	switch {
	case !slices.Contains(rules.Models, c.model):
		return wire.Refuse(wire.NoPlatform, "nvidia: model", c.model, "one that policy accepts")
	case cut || !rules.Chips.Accepts(chip[:]):
		return wire.Refuse(wire.NoPlatform, "nvidia: chip", chip, "one that policy accepts")
	case !rules.Drivers.Accepts([]byte(r.driver)):
		return wire.Refuse(wire.BadTCB, "nvidia: driver", r.driver, "a version that policy accepts")
	case !rules.VBIOS.Accepts([]byte(r.vbios)):
		return wire.Refuse(wire.BadTCB, "nvidia: VBIOS", r.vbios, "a version that policy accepts")
	case !slices.Contains(rules.Modes, r.mode):
		return wire.Refuse(wire.BadTCB, "nvidia: mode", r.mode, fmt.Sprintf("one of %q", strings.Join(rules.Modes, ", ")))
	case !rules.AnyMeasurements:
		return wire.Refuse(wire.NotMeasured, "nvidia: measurements", "measurements that are compared with nothing", `reference values, or measurements = "any" in policy`)
	case !rules.Development:
		return wire.Refuse(wire.Debug, "nvidia: development mode", "stated by the measurements alone, which were compared with nothing", `a report that excludes it, or mode = "development" in policy`)
	}
	return nil
}
