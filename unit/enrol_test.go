package unit

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/unit/unittest"
)

// TestReportRefused: one change to the response of an honest authority, and the unit
// refuses it with the row's reason.
func TestReportRefused(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: what a unit refuses in a report is not shown; run without -short")
	}
	otherKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	testworld.NoError(t, err)
	otherPKCS8, err := x509.MarshalPKCS8PrivateKey(otherKey)
	testworld.NoError(t, err)
	otherSPKI, err := x509.MarshalPKIXPublicKey(otherKey.Public())
	testworld.NoError(t, err)
	evil := unittest.New(t, "1h")
	evilAuthority := evil.Authority(evil.AuthorityKeys)
	otherIssuer, _ := evilAuthority.Issuer()

	for _, row := range []struct {
		name string
		with func(*unittest.Authority)
		want wire.Reason
	}{
		{"ciphertext changed", func(f *unittest.Authority) {
			f.Faults.Sealed = func(s *api.SealedReport) { s.Ciphertext[10] ^= 1 }
		}, wire.BadSignature},
		{"encapsulated key cut", func(f *unittest.Authority) {
			f.Faults.Sealed = func(s *api.SealedReport) { s.Encapsulated = s.Encapsulated[1:] }
		}, wire.BadSignature},
		{"times of the collateral changed", func(f *unittest.Authority) {
			f.Faults.Report = func(r *api.Report) { r.Checked = []byte("not framed") }
		}, wire.Malformed},
		{"signature changed", func(f *unittest.Authority) {
			f.Faults.Signed = func(s *api.SignedReport) { s.Signature[len(s.Signature)-1] ^= 1 }
		}, wire.BadSignature},
		{"signature over another report", func(f *unittest.Authority) {
			f.Faults.Signed = func(s *api.SignedReport) {
				s.Report = bytes.Replace(s.Report, []byte(`"LANG":"C"`), []byte(`"LANG":"D"`), 1)
			}
		}, wire.BadSignature},
		{"signed by an authority of another root", func(f *unittest.Authority) {
			f.Faults.Signed = func(s *api.SignedReport) { *s = forged(t, evilAuthority, s.Report) }
		}, wire.WrongRoot},
		{"signed by another key", func(f *unittest.Authority) {
			f.Faults.Signed = func(s *api.SignedReport) {
				digest := sha256.Sum256(s.Report)
				s.Signature, _ = ecdsa.SignASN1(rand.Reader, otherKey, digest[:])
			}
		}, wire.BadSignature},
		{"signer's root left out", func(f *unittest.Authority) {
			f.Faults.Signed = func(s *api.SignedReport) { s.Chain = s.Chain[:1] }
		}, wire.BadChain},
		{"signed with a unit's certificate", func(f *unittest.Authority) {
			f.Faults.Signed = func(s *api.SignedReport) {
				var r api.Report
				testworld.NoError(t, json.Unmarshal(s.Report, &r))
				s.Chain[0] = r.Unit
			}
		}, wire.WrongKind},
		{"certificate that is none", func(f *unittest.Authority) {
			f.Faults.Signed = func(s *api.SignedReport) { s.Chain[0] = []byte("x") }
		}, wire.Malformed},
		{"another schema", func(f *unittest.Authority) {
			f.Faults.Report = func(r *api.Report) { r.Schema = "cohort/report/v2" }
		}, wire.Malformed},
		{"another task", func(f *unittest.Authority) {
			f.Faults.Report = func(r *api.Report) { r.Task = "other" }
		}, wire.WrongIdentity},
		{"another key mode", func(f *unittest.Authority) {
			f.Faults.Report = func(r *api.Report) { r.KeyMode = "unit" }
		}, wire.WrongKind},
		{"a release that policy does not name", func(f *unittest.Authority) {
			f.Faults.Report = func(r *api.Report) { r.Release = "2" }
		}, wire.NotFound},
		{"another identity", func(f *unittest.Authority) {
			f.Faults.Report = func(r *api.Report) { r.Identity[0] ^= 1 }
		}, wire.WrongIdentity},
		{"another authority root", func(f *unittest.Authority) {
			f.Faults.Report = func(r *api.Report) { r.Authority = otherIssuer.AuthorityRoot() }
		}, wire.WrongRoot},
		{"another identity's cross-certificate", func(f *unittest.Authority) {
			f.Faults.Report = func(r *api.Report) {
				i, _ := f.Issuer()
				id, err := i.Identity("other", "1")
				testworld.NoError(t, err)
				r.Cross = id.Cross
			}
		}, wire.BadChain},
		{"another's leaf", func(f *unittest.Authority) {
			f.Faults.Report = func(r *api.Report) { r.Leaf = r.Unit }
		}, wire.BadChain},
		{"signing key swapped on the way", func(f *unittest.Authority) {
			f.Faults.Request = func(r *api.CertificateRequest) { r.SigningKey = otherSPKI }
		}, wire.BadNonce},
		{"the leaf as unit certificate", func(f *unittest.Authority) {
			f.Faults.Report = func(r *api.Report) { r.Unit = r.Leaf }
		}, wire.BadChain},
		{"another's key", func(f *unittest.Authority) {
			f.Faults.Report = func(r *api.Report) { r.LeafKey = otherPKCS8 }
		}, wire.BadChain},
		{"a key that is none", func(f *unittest.Authority) {
			f.Faults.Report = func(r *api.Report) { r.LeafKey = nil }
		}, wire.Malformed},
		{"renewal after the end", func(f *unittest.Authority) {
			f.Faults.Report = func(r *api.Report) { r.RenewAfter, r.RenewBefore = r.NotAfter, r.NotAfter }
		}, wire.Malformed},
		{"renewal that ends before it begins", func(f *unittest.Authority) {
			f.Faults.Report = func(r *api.Report) { r.RenewBefore = r.RenewAfter.Add(-1) }
		}, wire.Malformed},
		{"HPKE key swapped on the way", func(f *unittest.Authority) {
			f.Faults.Request = func(r *api.CertificateRequest) { r.HPKEKey[0] ^= 1 }
		}, wire.BadNonce},
		{"history of another genesis", func(f *unittest.Authority) {
			f.Faults.History = func(h *api.History) { h.Entries = evil.Entries() }
		}, wire.WrongGenesis},
		{"history from elsewhere", func(f *unittest.Authority) {
			f.Faults.History = func(h *api.History) { h.From = 1 }
		}, wire.Malformed},
		{"history with a signature cut off", func(f *unittest.Authority) {
			f.Faults.History = func(h *api.History) { h.Entries = []api.HistoryEntry{{Policy: h.Entries[0].Policy}} }
		}, wire.NoQuorum},
		{"measurement refused", func(f *unittest.Authority) {
			f.Faults.Refusal = wire.Refuse(wire.NotMeasured, "measurement", "a", "b")
		}, wire.NotMeasured},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := unittest.New(t, "1h")
			f := w.Authority(w.AuthorityKeys)
			row.with(f)
			u, err := Start(testworld.ShortContext(t), configOf(w, "scoring", f))
			if u != nil {
				u.Close() // it asks the authority as long as it runs
				t.Error("got a unit beside the error")
			}
			testworld.Refused(t, err, row.want)
		})
	}
}

// forged returns a report under the signature of another authority.
func forged(t *testing.T, by *unittest.Authority, report []byte) api.SignedReport {
	t.Helper()
	i, _ := by.Issuer()
	leaf, err := i.AuthorityLeaf(time.Now())
	testworld.NoError(t, err)
	digest := sha256.Sum256(report)
	signature, err := ecdsa.SignASN1(rand.Reader, leaf.Key, digest[:])
	testworld.NoError(t, err)
	return api.SignedReport{Report: report, Signature: signature, Chain: [][]byte{leaf.DER, i.AuthorityRoot()}}
}

// TestReportOfAnotherRequest: an authority signs the report for another request and seals
// it to this one. The unit refuses it.
func TestReportOfAnotherRequest(t *testing.T) {
	w := unittest.New(t, "1h")
	f := w.Authority(w.AuthorityKeys)
	f.Faults.Signed = func(s *api.SignedReport) {
		i, _ := f.Issuer()
		leaf, err := i.AuthorityLeaf(time.Now())
		testworld.NoError(t, err)
		other := f.Requests[0]
		other.Nonce = []byte("another")
		digest := sha256.Sum256(api.ReportMessage(s.Report, other.Digest()))
		s.Signature, err = ecdsa.SignASN1(rand.Reader, leaf.Key, digest[:])
		testworld.NoError(t, err)
	}
	_, err := Start(testworld.ShortContext(t), configOf(w, "scoring", f))
	testworld.Refused(t, err, wire.BadSignature)
}

// TestAnotherUnitsCertificate: the authority sends one unit's certificate to the next unit,
// which refuses it.
func TestAnotherUnitsCertificate(t *testing.T) {
	w := unittest.New(t, "1h")
	f := w.Authority(w.AuthorityKeys)
	var first []byte
	f.Faults.Report = func(r *api.Report) {
		if first == nil {
			first = r.Unit
		}
		r.Unit = first
	}
	started(w, "scoring", f)
	_, err := Start(testworld.ShortContext(t), configOf(w, "scoring", f))
	testworld.Refused(t, err, wire.BadChain)
}

// TestFakeAuthority: an authority has the same code, genesis and policy, but a different
// root secret. The unit gets the right history and sends that authority nothing more.
func TestFakeAuthority(t *testing.T) {
	w, evil := unittest.New(t, "1h"), unittest.New(t, "1h")
	f := evil.Authority(evil.AuthorityKeys)
	f.Faults.History = func(h *api.History) { h.Entries, h.Head = w.Entries(), w.Policy().PolicyHead() }
	_, err := Start(testworld.ShortContext(t), configOf(w, "scoring", f))
	testworld.Refused(t, err, wire.WrongRoot)
	if len(f.Requests) != 0 {
		t.Errorf("got %d requests, want none: evidence went to a stranger", len(f.Requests))
	}
}

func TestKeyModeUnitRefusesAnotherKey(t *testing.T) {
	w := unittest.New(t, "1h")
	f := w.Authority(w.AuthorityKeys)
	u := started(w, "keys", f)
	first := f.Requests[0].CSR
	f.Set(func(f *unittest.Authority) { f.Faults.Request = func(r *api.CertificateRequest) { r.CSR = first } })
	testworld.Refused(t, u.Attempt(testworld.ShortContext(t)), wire.BadNonce)
}

func TestFreshKeysEachTime(t *testing.T) {
	w := unittest.New(t, "1h")
	f := w.Authority(w.AuthorityKeys)
	u := started(w, "keys", f)
	testworld.NoError(t, u.Attempt(testworld.ShortContext(t)))
	a, b := f.Requests[0], f.Requests[1]
	if bytes.Equal(a.HPKEKey, b.HPKEKey) || bytes.Equal(a.CSR, b.CSR) || bytes.Equal(a.Evidence, b.Evidence) {
		t.Error("a renewal reuses keys or evidence of the one before")
	}
	if !bytes.Equal(a.SigningKey, b.SigningKey) || wire.UnitIDOf(a.SigningKey) != u.ID() {
		t.Error("a renewal changes the unit")
	}
}

func TestUnitRefused(t *testing.T) {
	for _, row := range []struct {
		name   string
		change func(*unittest.World, *Config)
		want   wire.Reason
	}{
		{"another program", func(w *unittest.World, c *Config) {
			c.Attester = w.Vendor.Chip().Attester(attesttest.Measure("scoring", "an argument"))
		}, wire.NotMeasured},
		{"another genesis", func(_ *unittest.World, c *Config) { c.Genesis[0] ^= 1 }, wire.WrongGenesis},
		{"unknown task", func(_ *unittest.World, c *Config) { c.Task = "unheard-of" }, wire.NotFound},
		{"no such TEE", func(w *unittest.World, c *Config) {
			device := w.Vendor.Chip().Attester(attesttest.Measure("scoring"))
			device.Faults.Error = wire.Refuse(wire.NotThisDevice, "soft", "", "")
			c.Attester = device
		}, wire.NotThisDevice},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := unittest.New(t, "1h")
			c := configOf(w, "scoring", w.Authority(w.AuthorityKeys))
			row.change(w, &c)
			_, err := Start(testworld.ShortContext(t), c)
			testworld.Refused(t, err, row.want)
		})
	}
}

func TestClockSkew(t *testing.T) {
	// Validity windows of 1 h certificates begin every 40 minutes.
	begin := time.Now().Truncate(40 * time.Minute)
	for _, row := range []struct {
		name      string
		authority time.Duration // authority's time after the window's begin
		apart     time.Duration // unit's clock against the authority's
		want      wire.Reason   // empty: accepted
	}{
		{"none", 20 * time.Minute, 0, ""},
		{"unit a little behind a new window", time.Second, -4 * time.Minute, ""},
		{"unit a little ahead of an old window", 40*time.Minute - time.Second, 4 * time.Minute, ""},
		{"unit behind", time.Second, -6 * time.Minute, wire.ClockSkew},
		{"unit ahead", 40*time.Minute - time.Second, 6 * time.Minute, wire.ClockSkew},
		{"unit days behind", 20 * time.Minute, -48 * time.Hour, wire.ClockSkew},
		{"unit days ahead", 20 * time.Minute, 48 * time.Hour, wire.ClockSkew},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := unittest.New(t, "1h")
			f := w.Authority(w.AuthorityKeys)
			f.Clock = unittest.Ahead(time.Until(begin.Add(row.authority)))
			c := configOf(w, "scoring", f)
			c.Clock = machineAhead(time.Until(begin.Add(row.authority + row.apart)))
			u, err := Start(testworld.ShortContext(t), c)
			if row.want != "" {
				testworld.Refused(t, err, row.want)
				return
			}
			testworld.NoError(t, err)
			u.Close()
		})
	}
}

// TestClockSkewOfWindows: the unit compares a certificate's validity window with its own
// clock, independently of what else the authority shows of its time.
func TestClockSkewOfWindows(t *testing.T) {
	begin := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	leaf := &x509.Certificate{NotBefore: begin, NotAfter: begin.Add(time.Hour)}
	most := wire.MaxClockSkew - wire.WindowLead
	for _, row := range []struct {
		name      string
		now, want time.Time // want is zero if refused
	}{
		{"within", begin.Add(time.Minute), begin.Add(time.Minute)},
		{"a little behind", begin.Add(-most), begin},
		{"behind", begin.Add(-most - time.Second), time.Time{}},
		{"the last second", leaf.NotAfter.Add(-time.Second), leaf.NotAfter.Add(-time.Second)},
		{"ahead", leaf.NotAfter, time.Time{}},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := verificationTime(leaf, row.now)
			if row.want.IsZero() {
				testworld.Refused(t, err, wire.ClockSkew)
				return
			}
			testworld.NoError(t, err)
			if !got.Equal(row.want) {
				t.Errorf("got time %s, want %s", got, row.want)
			}
		})
	}
}

// TestHistory: a unit that knows the second policy follows no authority that does not, and
// pushes its history to that authority.
func TestHistory(t *testing.T) {
	old := unittest.New(t, "1h")
	w := old.Edited(`env = { LANG = "C" }`, `env = { LANG = "D" }`)
	fork := old.Edited(`env = { LANG = "C" }`, `env = { LANG = "E" }`)
	f := w.Authority(w.AuthorityKeys)
	u := started(w, "scoring", f)
	if got := u.Environment()["LANG"]; got != "D" {
		t.Fatalf("got LANG=%q, want that of the second policy", got)
	}
	attempt := func() error { return u.Attempt(testworld.ShortContext(t)) }
	u.stop() // the test makes each attempt itself
	<-u.done
	u.cluster.tasks.Wait()

	f.Set(func(f *unittest.Authority) { f.Steps, f.Faults.Deaf = old.Entries(), true })
	asked := len(f.Requests)
	testworld.Refused(t, attempt(), wire.Behind)
	testworld.Refused(t, attempt(), wire.Behind)
	if got := len(f.Requests); got != asked {
		t.Errorf("got %d requests to an authority that is behind, want none", got-asked)
	}

	f.Set(func(f *unittest.Authority) { f.Faults.Deaf = false })
	testworld.Refused(t, attempt(), wire.Behind)
	testworld.NoError(t, attempt()) // the authority has adopted the pushed history

	f.Set(func(f *unittest.Authority) { f.Steps = fork.Entries() })
	testworld.Refused(t, attempt(), wire.Behind)
	f.Set(func(f *unittest.Authority) { f.Steps = fork.Edited("LANG", "LANGUAGE").Entries() })
	testworld.Refused(t, attempt(), wire.Behind)
	testworld.NoError(t, u.Ready())

	f.Set(func(f *unittest.Authority) { f.Steps = w.Edited(`LANG = "D"`, `LANG = "F"`).Entries() })
	testworld.NoError(t, attempt())
	if got := u.Environment()["LANG"]; got != "F" {
		t.Errorf("got LANG=%q, want that of the third policy", got)
	}
}

// TestPolicyChangesUnderWay: a unit refuses a report under a policy that it has not
// verified.
func TestPolicyChangesUnderWay(t *testing.T) {
	w := unittest.New(t, "1h")
	f := w.Authority(w.AuthorityKeys)
	f.Faults.Report = func(r *api.Report) { r.Head[0] ^= 1 }
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err := Start(ctx, configOf(w, "scoring", f))
	testworld.Refused(t, err, wire.Behind)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the deadline beside it: behind is retried", err)
	}
}

func TestFailOver(t *testing.T) {
	w := unittest.New(t, "1h")
	dead, evil, good := w.Authority(w.AuthorityKeys), unittest.New(t, "1h"), w.Authority(w.AuthorityKeys)
	dead.Close()
	stranger := evil.Authority(evil.AuthorityKeys)
	u := started(w, "scoring", dead, stranger, good)
	testworld.NoError(t, u.Ready())
	if got := u.Stats(); got.Failures != 2 || got.LastFailure != wire.WrongGenesis {
		t.Errorf("got %+v, want 2 failures, the last by genesis", got)
	}
}
