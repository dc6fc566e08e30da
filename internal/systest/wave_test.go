package systest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hpke"
	cryptorand "crypto/rand"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestRenewalWave: of many units of a task one is cut off, so all others renew over the
// spread that the authority's proved head states. No renewal is refused, except that of the
// cut unit. The units are simulated, so that mostly enrolments are measured; the authority
// is a process of its own, so that its CPU time can be read. The long form has 1,000 units,
// and runs on PostgreSQL as well as SQLite.
func TestRenewalWave(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: an authority of a race build is too slow for a wave; run without -short")
	}
	units, stores := 50, []string{"SQLite"}
	if full() {
		units, stores = 1000, append(stores, "PostgreSQL")
	}
	for _, name := range stores {
		t.Run(name, func(t *testing.T) {
			if name == "PostgreSQL" {
				t.Setenv(onServer, "1")
			}
			renewalWave(t, units)
		})
	}
}

func renewalWave(t *testing.T, n int) {
	c := New(t, scoring(time.Hour))
	root := trust(t, c).AuthorityRoot()
	c.StopAuthority()
	serving := ""
	authority := startRole(t, "authority", authorityWish{c.dsn, c.addr, c.Steps[0], c.lend()(FirstBuild), ""}, &serving)
	w := &wave{Cluster: c, t: t, authority: authorityOf(t, c), slots: make(chan struct{}, 16)}
	defer w.authority.Close()

	began, spent := time.Now(), cpu(t, authority)
	units := make([]*simulated, n)
	w.all(n, func(i int) error { units[i] = &simulated{wave: w, signing: newSigner()}; return units[i].enrol() })
	took := time.Since(began)
	t.Logf("%d units enrolled in %v, %.0f a second; the authority: %v of CPU time", n, took.Round(time.Millisecond), float64(n)/took.Seconds(), cpu(t, authority)-spent)

	cut, others, before := units[0], units[1:], c.Approved()
	began, spent = time.Now(), cpu(t, authority)
	c.Adopt("[task.scoring]\n", fmt.Sprintf("[task.scoring]\ncut_units = [%q]\n", cut.id()))
	approved := c.Approved()
	h := testworld.Must(w.authority.PollHistory(t.Context(), before.PolicyHead(), 0))
	spread := testworld.Must(identity.ParseHead(h.ProvedHead, approved, root, time.Now())).Spread()
	renewed := make([]time.Duration, len(others)) // after the adoption
	w.all(len(others), func(i int) error {
		time.Sleep(rand.N(spread))
		err := others[i].enrol()
		renewed[i] = time.Since(began)
		return err
	})
	slices.Sort(renewed)
	last := renewed[len(renewed)-1]
	t.Logf("%d units renewed after the cut, over %v by the proved head: p50 %v, the last %v, %.0f a second; the authority: %v of CPU time",
		len(renewed), spread, renewed[len(renewed)/2].Round(time.Millisecond), last.Round(time.Millisecond), float64(len(renewed))/last.Seconds(), cpu(t, authority)-spent)
	for _, u := range others {
		if u.head != approved.PolicyHead() {
			t.Errorf("unit %v: its report is of head %v, want that of the cut, %v", u.id(), u.head, approved.PolicyHead())
		}
	}
	testworld.Refused(t, cut.enrol(), wire.CutOff)
	if cut.head != before.PolicyHead() {
		t.Errorf("the unit that was cut off has a report of head %v, want that of before, %v", cut.head, before.PolicyHead())
	}
}

// wave is an authority with many units.
type wave struct {
	*Cluster
	t         *testing.T
	authority *api.Authority
	slots     chan struct{} // one slot for each enrolment in progress: units share their connections
}

// all calls f for 0 to n-1, all at once, and fails the test with their errors.
func (w *wave) all(n int, f func(int) error) {
	w.t.Helper()
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			if err := f(i); err != nil {
				w.t.Errorf("unit %d: %v", i, err)
			}
		})
	}
	all.Wait()
	if w.t.Failed() {
		w.t.FailNow()
	}
}

// simulated is a unit that enrols with its own keys and evidence, and does nothing else.
type simulated struct {
	*wave
	signing *ecdsa.PrivateKey
	head    wire.Digest // policy head of its newest report
}

func newSigner() *ecdsa.PrivateKey {
	return testworld.Must(ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader))
}

func (s *simulated) spki() []byte {
	return testworld.Must(x509.MarshalPKIXPublicKey(&s.signing.PublicKey))
}

func (s *simulated) id() wire.UnitID { return wire.UnitIDOf(s.spki()) }

// enrol requests a report and opens it.
func (s *simulated) enrol() error {
	s.slots <- struct{}{}
	defer func() { <-s.slots }()
	ctx := s.t.Context()
	challenge, err := s.authority.Challenge(ctx)
	if err != nil {
		return err
	}
	key := testworld.Must(hpke.MLKEM768X25519().GenerateKey())
	r := api.CertificateRequest{Task: "scoring", Nonce: challenge.Nonce, Root: s.Root, HPKEKey: key.PublicKey().Bytes(), SigningKey: s.spki()}
	evidence := testworld.Must(s.Chip.Attester(attesttest.Measure("scoring 1")).Attest(ctx, attest.BindReportData(wire.LabelIssue, r.Bound()...)))
	r.Evidence = testworld.Must(evidence.MarshalJSON())
	sealed, err := s.authority.Certify(ctx, r)
	if err != nil {
		return err
	}
	plain, err := testworld.Must(hpke.NewRecipient(sealed.Encapsulated, key, hpke.HKDFSHA256(), hpke.AES256GCM(), api.SealInfo(r, sealed.GroupRoot))).Open(nil, sealed.Ciphertext)
	if err != nil {
		return err
	}
	var signed api.SignedReport
	var report api.Report
	if err := json.Unmarshal(plain, &signed); err != nil {
		return err
	}
	err = json.Unmarshal(signed.Report, &report)
	s.head = report.Head
	return err
}

// tick is the unit of times in /proc/PID/stat: Linux reports hundredths of a second.
const tick = time.Second / 100

// cpu returns the CPU time that a process has used: the user and system time, fields 14 and
// 15 of /proc/PID/stat. Field 2 is a name in parentheses.
func cpu(t *testing.T, p *process) time.Duration {
	t.Helper()
	b := testworld.Must(os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid)))
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	var user, system time.Duration
	if _, err := fmt.Sscan(fields[11]+" "+fields[12], &user, &system); err != nil {
		t.Fatal(err)
	}
	return (user + system) * tick
}
