package snp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/vectortest"
	"github.com/google/go-sev-guest/abi"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
)

// policyAt is the offset of the guest policy, 8 bytes; knownPolicy are the bits of it that
// go-sev-guest parses: 0 to 25. Newer bits are not malformed: the rules refuse them by number,
// once the report is genuine.
const (
	policyAt    = 0x008
	knownPolicy = 1<<26 - 1
)

// FuzzReport: go-sev-guest parses every accepted report with the same fields, and encodes it to
// the same bytes. Every refusal has a reason.
func FuzzReport(f *testing.F) {
	chip := attesttest.NewSNPVendor("Milan", now).Chip(attest.SNPTCB{SNP: 1})
	evidence, err := chip.Attester(attesttest.MeasureSNP("guest")).Attest(f.Context(), attest.ReportData{1})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(evidence.Raw)
	f.Add(evidence.Raw[:100])
	for _, raw := range vectortest.Seeds(f, "sev-snp", 16<<10) {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := parseReport(raw)
		var refusal *attest.Refusal
		if err != nil && !errors.As(err, &refusal) {
			t.Fatalf("refused without a reason: %v", err)
		}
		if err != nil {
			return
		}
		read := bytes.Clone(raw)
		binary.LittleEndian.PutUint64(read[policyAt:], r.Policy&knownPolicy)
		fields, err := abi.ReportToProto(read)
		if err != nil {
			t.Fatalf("go-sev-guest refuses it: %v", err)
		}
		again, err := abi.ReportToAbiBytes(fields)
		if err != nil || !bytes.Equal(again, read) {
			t.Fatalf("encoded again: %v\n got %x\nwant %x", err, again, read)
		}
		compareFields(t, r, fields)
		ours, err := r.signature()
		theirs, theirErr := abi.ReportToSignatureDER(read)
		if err != nil || theirErr != nil || !bytes.Equal(ours, theirs) {
			t.Errorf("signature: got %x, %v, want %x, %v", ours, err, theirs, theirErr)
		}
	})
}

// compareFields compares every field with that of go-sev-guest.
func compareFields(t *testing.T, r report, want *spb.Report) {
	t.Helper()
	for name, pair := range map[string][2]any{
		"version": {r.Version, want.Version}, "guest svn": {r.GuestSVN, want.GuestSvn}, "policy": {r.Policy & knownPolicy, want.Policy},
		"family id": {string(r.FamilyID), string(want.FamilyId)}, "image id": {string(r.ImageID), string(want.ImageId)},
		"vmpl": {r.VMPL, want.Vmpl}, "current tcb": {r.CurrentTCB, want.CurrentTcb}, "platform info": {r.PlatformInfo, want.PlatformInfo},
		"signer info": {r.SignerInfo, want.SignerInfo}, "report data": {string(r.ReportData), string(want.ReportData)},
		"measurement": {string(r.Measurement), string(want.Measurement)}, "host data": {string(r.HostData), string(want.HostData)},
		"id key digest": {string(r.IDKeyDigest), string(want.IdKeyDigest)}, "author key digest": {string(r.AuthorKeyDigest), string(want.AuthorKeyDigest)},
		"report id": {string(r.ReportID), string(want.ReportId)}, "report id ma": {string(r.ReportIDMA), string(want.ReportIdMa)},
		"reported tcb": {r.ReportedTCB, want.ReportedTcb}, "chip id": {string(r.ChipID), string(want.ChipId)},
		"committed tcb": {r.CommittedTCB, want.CommittedTcb}, "launch tcb": {r.LaunchTCB, want.LaunchTcb},
		"current":            {r.Current, [3]byte{byte(want.CurrentMajor), byte(want.CurrentMinor), byte(want.CurrentBuild)}},
		"committed":          {r.Committed, [3]byte{byte(want.CommittedMajor), byte(want.CommittedMinor), byte(want.CommittedBuild)}},
		"launch mitigations": {r.LaunchMitVector, want.LaunchMitVector}, "current mitigations": {r.CurrentMitVector, want.CurrentMitVector},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: got %v, want %v", name, pair[0], pair[1])
		}
	}
}

// FuzzChain: certificates and lists that AMD did not sign are refused with a reason.
func FuzzChain(f *testing.F) {
	good := attesttest.NewSNPVendor("Turin", now).Chip(attest.SNPTCB{SNP: 1}).Endorsements()
	f.Add(good["vcek"], good["ask_ark"], good["crl"])
	f.Fuzz(func(t *testing.T, leaf, askARK, crl []byte) {
		c, err := bundle{kind: signerVCEK, leaf: leaf, askARK: askARK, crl: crl}.verify()
		var refusal *attest.Refusal
		if err != nil && !errors.As(err, &refusal) {
			t.Fatalf("refused without a reason: %v", err)
		}
		if err == nil && (c.key == nil || len(c.times) < 3) {
			t.Fatalf("accepted without a key or times: %+v", c)
		}
	})
}
