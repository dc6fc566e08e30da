package tpm

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/internal/closed"
	"github.com/cohort-tee/cohort/attest/vectortest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/google/go-eventlog/register"
	"github.com/google/go-eventlog/tcg"
)

// Captured evidence has other wrappers than this package's, and no launch log. These appraisers
// unpack the wrappers and appraise the parts with the product's code.

// captured is an appraiser of one wrapper.
type captured func(raw []byte, endorsed attest.Endorsements, rules attest.Rules, at time.Time) (attest.Claims, error)

func (c captured) Genuine() closed.Appraiser { return closed.VouchFor(c) }

func (captured) Platform() attest.Platform { return attest.TPM }

func (c captured) Appraise(raw []byte, endorsed attest.Endorsements, rules attest.Rules, at time.Time) (attest.Claims, error) {
	claims, err := c(raw, endorsed, rules, at)
	claims.Measurement.Platform = attest.TPM
	return claims, err
}

// bank is a PCR bank of the vectors.
type bank struct {
	alg  uint16 // TPM_ALG_ID
	hash crypto.Hash
	name string
}

var banks = []bank{{0x0004, crypto.SHA1, "sha1"}, {algSHA256, crypto.SHA256, "sha256"}, {0x000c, crypto.SHA384, "sha384"}}

// pcrClaims returns values in the form of vector.json.
func pcrClaims(pcrs []int, values []byte) map[string]any {
	out, size := map[string]any{}, len(values)/len(pcrs)
	for i, pcr := range pcrs {
		out[fmt.Sprint(pcr)] = hex.EncodeToString(values[i*size : (i+1)*size])
	}
	return out
}

// selectionText returns a selection in the form of vector.json.
func selectionText(bank string, pcrs []int) string {
	var parts []string
	for i := 0; i < len(pcrs); {
		j := i
		for j+1 < len(pcrs) && pcrs[j+1] == pcrs[j]+1 {
			j++
		}
		part := fmt.Sprint(pcrs[i])
		if j > i {
			part += fmt.Sprint("-", pcrs[j])
		}
		parts, i = append(parts, part), j+1
	}
	return bank + ":" + strings.Join(parts, ",")
}

// replayed verifies an event log against values of one bank.
func replayed(log []byte, hash crypto.Hash, pcrs []int, values []byte) (map[string]any, error) {
	var mrs []register.MR
	size := len(values) / len(pcrs)
	for i, pcr := range pcrs {
		mrs = append(mrs, register.PCR{Index: pcr, Digest: values[i*size : (i+1)*size], DigestAlg: hash})
	}
	events, err := replayEvents(log, mrs)
	if err != nil {
		return nil, err
	}
	return map[string]any{"events": len(events), "banks": bankNames(log)}, nil
}

func bankNames(log []byte) (names []any) {
	parsed, err := tcg.ParseEventLog(log, tcg.ParseOpts{})
	if err != nil {
		return nil
	}
	for _, b := range banks {
		for _, alg := range parsed.Algs {
			if alg.CryptoHash() == b.hash {
				names = append(names, b.name)
			}
		}
	}
	return names
}

// swtpmCaptured appraises the parts of a quote from separate files. The key is pinned, because
// the capture does not contain its activation.
func swtpmCaptured(raw []byte, e attest.Endorsements, rules attest.Rules, at time.Time) (attest.Claims, error) {
	if _, err := checkDevice(e["ek_cert"], append(bytes.Clone(e["ek_issuer"]), e["root"]...), rules.Roots, at); err != nil {
		return attest.Claims{}, err
	}
	key, err := parseKey(e["ak"])
	if err == nil && wire.Sum(e["ak"]) != rules.Roots[1] {
		err = wire.Refuse(wire.BadChain, "captured: key", "another", "the pinned one")
	}
	if err != nil {
		return attest.Claims{}, err
	}
	signature, err := ParseSignature(e["quote_signature"])
	if err != nil {
		return attest.Claims{}, err
	}
	q, err := VerifyQuote(key, raw, signature)
	if err != nil {
		return attest.Claims{}, err
	}
	if len(q.selections) != 1 {
		return attest.Claims{}, wire.Refuse(wire.BadDigest, "captured: banks of the quote", len(q.selections), 1)
	}
	pcrs := q.selections[0].PCRs // the PCRs that the vector quotes
	if err := q.Covers(algSHA256, pcrs, e["pcrs"]); err != nil {
		return attest.Claims{}, err
	}
	log, err := replayed(e["event_log"], crypto.SHA256, pcrs, e["pcrs"])
	return attest.Claims{Details: map[string]any{
		"nonce": hex.EncodeToString(q.ExtraData), "ak_public": hex.EncodeToString(e["ak"]),
		"pcr_selection": selectionText("sha256", pcrs), "pcr_digest": hex.EncodeToString(q.Digest),
		"pcrs": map[string]any{"sha256": pcrClaims(pcrs, e["pcrs"])}, "event_log": log,
	}}, err
}

func swtpmSubject(t *testing.T) vectortest.Subject {
	return vectortest.Subject{
		Platform: "tpm-swtpm", Appraiser: captured(swtpmCaptured),
		Rules: func(_ vectortest.Policy, files map[string][]byte) attest.Rules {
			root, err := maker.Certificates(roleCA, files["root"], maxCA)
			if err != nil {
				t.Fatal(err)
			}
			return attest.Rules{Roots: []attest.Digest{wire.Sum(root[0].RawSubjectPublicKeyInfo), wire.Sum(files["ak"])}}
		},
	}
}

// originals has unaltered evidence by its digest. Appraisal gets that digest as a root, and so
// finds the PCRs of the unaltered log that a log without a quote must lead to.
var originals sync.Map

func eventLogCaptured(raw []byte, _ attest.Endorsements, rules attest.Rules, _ time.Time) (attest.Claims, error) {
	original, _ := originals.Load(rules.Roots[0])
	want := trusted(original.([]byte))
	all := map[string]any{}
	events := 0
	for _, b := range banks {
		values, ok := want[b.hash]
		if !ok {
			continue
		}
		log, err := replayed(raw, b.hash, allPCRs, values)
		if err != nil {
			return attest.Claims{}, err
		}
		extended := map[string]any{}
		for pcr, value := range pcrClaims(allPCRs, values) {
			if strings.Trim(value.(string), "0") != "" {
				extended[pcr] = value
			}
		}
		all[b.name], events = extended, log["events"].(int)
	}
	return attest.Claims{Details: map[string]any{"pcrs": all, "events": events, "banks": bankNames(raw)}}, nil
}

var allPCRs = []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23}

// trusted computes the PCRs of a TPM after the events of a log, independently of the library's
// replay.
func trusted(log []byte) map[crypto.Hash][]byte {
	parsed, err := tcg.ParseEventLog(log, tcg.ParseOpts{})
	if err != nil {
		return nil
	}
	out := map[crypto.Hash][]byte{}
	for _, alg := range parsed.Algs {
		h, size := alg.CryptoHash(), alg.CryptoHash().Size()
		values := make([]byte, len(allPCRs)*size)
		for _, e := range parsed.Events(alg) {
			if e.Type == 0x03 { // EV_NO_ACTION extends nothing
				continue
			}
			pcr := values[e.Index*size : (e.Index+1)*size]
			d := h.New()
			d.Write(pcr)
			d.Write(e.Digest)
			copy(pcr, d.Sum(nil))
		}
		out[h] = values
	}
	return out
}

func eventLogSubject() vectortest.Subject {
	return vectortest.Subject{
		Platform: "tpm-eventlog", Appraiser: captured(eventLogCaptured),
		Rules: func(_ vectortest.Policy, files map[string][]byte) attest.Rules {
			log := files["evidence"]
			originals.Store(wire.Sum(log), log)
			return attest.Rules{Roots: []attest.Digest{wire.Sum(log)}}
		},
		Unsigned: unsignedLog,
	}
}

// unsignedLog implements the table of docs/spec/evidence-tpm.md: no signature covers the types
// and data of events. Nor does one cover an event's PCR if the event is the only one in one of
// the system's PCRs, or if all events from here on are the first of their PCRs or report that the
// loader exited.
func unsignedLog(log []byte, offset int) bool {
	index := false          // offset is in the PCR field of an event
	var before, after []int // PCRs of the events before and after the offset
	u32 := func(at int) int { return int(binary.LittleEndian.Uint32(log[at:])) }
	sizes := map[uint16]int{}
	agile := false
	for at := 0; at < len(log); {
		typ, next := at+4, at+8
		if !agile {
			next += 20 // one digest, SHA-1
		} else {
			count := u32(next)
			for next += 4; count > 0; count-- {
				next += 2 + sizes[binary.LittleEndian.Uint16(log[next:])]
			}
		}
		end := next + 4 + u32(next)
		action := u32(typ) == 3
		switch {
		case at <= offset && offset < end && action:
			return true // the whole event extends nothing
		case typ <= offset && offset < typ+4, next+4 <= offset && offset < end:
			return true
		}
		index = index || at <= offset && offset < typ
		exit := bytes.HasPrefix(log[next+4:end], []byte("Exit Boot Services ")) // go-eventlog adds these events if they are missing
		if !action && !exit && typ <= offset {
			before = append(before, u32(at))
		} else if !action && !exit {
			after = append(after, u32(at))
		}
		if at == 0 && action && bytes.HasPrefix(log[next+4:], []byte("Spec ID Event03\x00")) {
			agile = true
			spec := log[next+4:]
			for i := range int(binary.LittleEndian.Uint32(spec[24:])) {
				sizes[binary.LittleEndian.Uint16(spec[28+4*i:])] = int(binary.LittleEndian.Uint16(spec[30+4*i:]))
			}
		}
		at = end
	}
	others := func(pcr int) bool { return pcr <= lastLogged || slices.Contains(before, pcr) }
	alone := len(after) > 0 && !others(after[0]) && !slices.Contains(after[1:], after[0])
	return index && (alone || !slices.ContainsFunc(after, others))
}

func TestVectors(t *testing.T) {
	for _, s := range []vectortest.Subject{swtpmSubject(t), eventLogSubject(), gceSubject()} {
		t.Run(s.Platform, func(t *testing.T) { vectortest.Run(t, s) })
	}
}

func TestVectorMutations(t *testing.T) {
	for _, s := range []vectortest.Subject{swtpmSubject(t), eventLogSubject(), gceSubject()} {
		t.Run(s.Platform, func(t *testing.T) { vectortest.Mutate(t, s) })
	}
}
