package dcap

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/internal/closed"
	"github.com/cohort-tee/cohort/attest/vectortest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/google/go-eventlog/register"
	"github.com/google/go-eventlog/tcg"
)

// intelRoot is the SHA-256 of the SubjectPublicKeyInfo of the Intel SGX Root CA, as policies name
// it.
const intelRoot = "sha256:a0af031289f5d5d4132f9186068a7fc13628633ba235777472e29b6b6c67a49e"

func intelRoots(t testing.TB) []attest.Digest {
	t.Helper()
	var d attest.Digest
	if err := d.UnmarshalText([]byte(intelRoot)); err != nil {
		t.Fatal(err)
	}
	return []attest.Digest{d}
}

// logged is the appraiser of a quote that may come with the firmware's event log, which must lead
// to the registers in the quote.
type logged struct{ *quoteAppraiser }

func (l logged) Genuine() closed.Appraiser { return closed.VouchFor(l) }

func (l logged) Appraise(raw []byte, endorsed attest.Endorsements, rules attest.Rules, at time.Time) (attest.Claims, error) {
	claims, err := l.quoteAppraiser.Appraise(raw, endorsed, rules, at)
	log, there := endorsed["event_log"]
	if err != nil || !there {
		return claims, err
	}
	claims.Details["event_log"], err = replayed(log, claims.Measurement)
	return claims, err
}

// replayed demands that an event log leads to the RTMRs of a TD. Register n+1 of the log is RTMR
// n; padding follows the events.
func replayed(log []byte, m attest.Measurement) (map[string]any, error) {
	parsed, err := tcg.ParseEventLog(log, tcg.ParseOpts{AllowPadding: true})
	if err != nil {
		return nil, wire.Refuse(wire.Malformed, "captured: event log", err, "events and padding")
	}
	var mrs []register.MR
	for _, r := range m.Registers {
		if number, ok := strings.CutPrefix(r.Name, "rtmr"); ok {
			index, err := strconv.Atoi(number)
			if err != nil {
				return nil, err
			}
			mrs = append(mrs, register.RTMR{Index: index, Digest: r.Value})
		}
	}
	events, err := parsed.Verify(mrs)
	if err != nil {
		return nil, wire.Refuse(wire.BadDigest, "captured: event log", err, "the quoted registers")
	}
	for _, mr := range mrs {
		silent := !slices.ContainsFunc(events, func(e tcg.Event) bool { return e.Index == mr.Idx() })
		if silent && len(bytes.Trim(mr.Dgst(), "\x00")) > 0 {
			return nil, wire.Refuse(wire.BadDigest, "captured: event log", "no event of a register", "those that extended it")
		}
	}
	return map[string]any{"banks": []any{"sha384"}, "events": len(events)}, nil
}

// subject returns the rules for the vectors' default policy, which states nothing about chips,
// evaluation numbers, enclave versions and service TDs.
func subject(t testing.TB, a *quoteAppraiser) vectortest.Subject {
	roots := intelRoots(t)
	return vectortest.Subject{
		Platform:  string(a.Platform()),
		Appraiser: logged{a},
		Rules: func(p vectortest.Policy, _ map[string][]byte) attest.Rules {
			rules := attest.Rules{Roots: roots, Debug: p.Debug, DCAP: attest.DCAPRules{
				Statuses:   p.TCBStatus,
				Advisories: p.Advisories,
				Chips:      attest.List{Any: true},
				ServiceTD:  attest.List{Any: true},
			}}
			if p.CRLIfPresent {
				rules.CRL = attest.CRLIfPresent
			}
			return rules
		},
		// Any number of zeros may follow the quote.
		Unsigned: func(evidence []byte, offset int) bool {
			return offset >= len(bytes.TrimRight(evidence, "\x00"))
		},
	}
}

func TestVectors(t *testing.T) {
	t.Run("tdx", func(t *testing.T) { vectortest.Run(t, subject(t, newTDX())) })
	t.Run("sgx", func(t *testing.T) { vectortest.Run(t, subject(t, newSGX())) })
}

func TestVectorMutations(t *testing.T) {
	t.Run("tdx", func(t *testing.T) { vectortest.Mutate(t, subject(t, newTDX())) })
	t.Run("sgx", func(t *testing.T) { vectortest.Mutate(t, subject(t, newSGX())) })
}
