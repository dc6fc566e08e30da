package unit

import (
	"bytes"
	"crypto/x509"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/hostclock"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/testworld/bubble"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/unit/unittest"
)

// open opens a session at the unit and returns its sealed copy.
func open(w *unittest.World, u *Unit) (*channel.Session, []byte) {
	w.T.Helper()
	o, err := channel.NewClientHandshake(unitauth.Pin{Genesis: w.Genesis(), Task: u.config.Task}, 0)
	testworld.NoError(w.T, err)
	a, err := u.cluster.host.Accept(channel.OpenRequest{Body: o.Request(), Number: u.cluster.relay.Number()}, time.Now())
	testworld.NoError(w.T, err)
	answer, sealed, err := a.Finish(attest.Evidence{}, time.Now())
	testworld.NoError(w.T, err)
	s, err := o.Finish(answer, unitauth.Trust{Policy: w.Policy(), Root: u.authorityRoot()}, time.Now())
	testworld.NoError(w.T, err)
	return s, sealed
}

// TestStapled: evidence for clients comes with the vendors' documents, and with the fetch
// times that the authority signed. Fetch times that were added outside of the signed report
// are dropped.
func TestStapled(t *testing.T) {
	said := attest.FrameFetched([]attest.Fetched{{Role: "crl", Digest: wire.Sum(nil), At: time.Unix(1, 0), Until: time.Unix(2, 0)}})
	forged := attest.FrameFetched(nil)
	for name, row := range map[string]struct{ report, beside, want []byte }{
		"as signed":       {said, nil, said},
		"another beside":  {said, forged, said},
		"only one beside": {nil, forged, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := unittest.New(t, "1h")
			f := w.Authority(w.AuthorityKeys)
			f.Faults.Report = func(r *api.Report) { r.Checked, r.DevicesChecked = row.report, [][]byte{row.report} }
			f.Faults.Sealed = func(s *api.SealedReport) {
				s.Endorsements = map[string][]byte{"crl": []byte("of the TEE's vendor")}
				s.DeviceEndorsements = []map[string][]byte{{"root_crl": []byte("of the GPU's vendor")}}
				if row.beside != nil {
					s.Endorsements[attest.RoleChecked], s.DeviceEndorsements[0][attest.RoleChecked] = row.beside, row.beside
				}
			}
			u := started(w, "scoring", f)
			u.tee.Attester = attest.WithDevices(u.tee.Attester, attesttest.NewNVIDIAVendor(time.Now()).GPU("GH100")) // a device for which the fake has no rules
			got, err := staplingAttester{u}.Attest(t.Context(), attest.ReportData{1})
			testworld.NoError(t, err)
			if !bytes.Equal(got.Endorsed[attest.RoleChecked], row.want) || string(got.Endorsed["crl"]) != "of the TEE's vendor" {
				t.Errorf("got %q, want %q and the vendor's document", got.Endorsed, row.want)
			}
			gpu := got.Devices[0].Endorsed
			if !bytes.Equal(gpu[attest.RoleChecked], row.want) || string(gpu["root_crl"]) != "of the GPU's vendor" || gpu["cert_chain"] == nil {
				t.Errorf("beside the GPU's evidence: got %q, want %q, the vendor's document and the GPU's chain", gpu, row.want)
			}
		})
	}
}

// TestStapledInPart: the unit refuses a response with documents of other devices than the
// report lists.
func TestStapledInPart(t *testing.T) {
	w := unittest.New(t, "1h")
	f := w.Authority(w.AuthorityKeys)
	f.Faults.Report = func(r *api.Report) { r.DevicesChecked = [][]byte{nil} }
	_, err := Start(t.Context(), configOf(w, "scoring", f))
	testworld.Refused(t, err, wire.Malformed)
}

// TestOldRingKept: an authority that restarted issues different ring keys. The unit still
// opens sessions under the former key, and reseals them.
func TestOldRingKept(t *testing.T) {
	w := unittest.New(t, "1h")
	f := w.Authority(w.AuthorityKeys)
	u := started(w, "scoring", f)
	_, sealed := open(w, u)
	f.Set(func(f *unittest.Authority) {
		f.Faults.Report = func(r *api.Report) {
			r.Rings = api.Rings{Strict: unittest.RingKeys(0x40, time.Now()), Follow: unittest.RingKeys(0x50, time.Now())}
			r.Rings.Strict.Previous, r.Rings.Follow.Previous = nil, nil
		}
	})
	for range 2 { // also through the next renewal
		testworld.NoError(t, u.Attempt(testworld.ShortContext(t)))
		if _, err := u.cluster.host.ImportSession(sealed, time.Now()); err != nil {
			t.Errorf("a session under the ring key before: %v", err)
		}
	}
	testworld.Within(t, 5*time.Second, "sessions sealed again", func() bool {
		_, left, err := u.cluster.host.Reseal(0, time.Now())
		return err == nil && left == 0
	})
}

// TestOldInheritedRingKept: the unit also keeps the former keys of the previous release.
func TestOldInheritedRingKept(t *testing.T) {
	w, inherited := continued(t)
	f := w.Authority(w.AuthorityKeys)
	f.Faults.Report = func(r *api.Report) { r.Rings.Inherited = inherited }
	u := started(w, "scoring", f)
	old := u.enrolled.Load().ring.Inherited.Keys.Current.ID()
	inherited.RingKeys = unittest.RingKeys(0x60, time.Now())
	inherited.Previous = nil
	testworld.NoError(t, u.Attempt(testworld.ShortContext(t)))
	if got := u.enrolled.Load().ring.Inherited.Keys.Previous; got == nil || got.ID() != old {
		t.Errorf("got %v as the former inherited key, want %v", got != nil, old)
	}
}

func TestKeep(t *testing.T) {
	now := time.Now()
	a, b, c := identity.NewRingKey(now.Add(time.Hour)), identity.NewRingKey(now.Add(time.Hour)), identity.NewRingKey(now.Add(time.Hour))
	ended := identity.NewRingKey(now)
	for _, row := range []struct {
		name         string
		before, next identity.RingKeys
		want         *identity.RingKey // expected previous key
	}{
		{"other keys", identity.RingKeys{Current: a, Previous: b}, identity.RingKeys{Current: c}, a},
		{"the same again, one kept", identity.RingKeys{Current: c, Previous: a}, identity.RingKeys{Current: c}, a},
		{"rolled", identity.RingKeys{Current: a}, identity.RingKeys{Current: b, Previous: c}, c},
		{"the same", identity.RingKeys{Current: a}, identity.RingKeys{Current: a}, nil},
		{"ended", identity.RingKeys{Current: ended, Previous: ended}, identity.RingKeys{Current: a}, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			got := withOldKeys(row.before, row.next, now).Previous
			if (got == nil) != (row.want == nil) || got != nil && got.ID() != row.want.ID() {
				t.Errorf("got %v, want %v", got != nil, row.want != nil)
			}
		})
	}
}

// TestRenewSoon: a missing ring key makes a unit renew within a second. A second one has no
// effect for the next half minute.
func TestRenewSoon(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		u := idle(hostclock.New(bubbleClock))
		u.cluster.renewNow = make(chan struct{}, 1)
		after := time.Now().Add(time.Hour)
		u.enrolled.Store(&enrolment{renewAfter: after, renewBefore: after.Add(5 * time.Minute)})
		waited := func() time.Duration {
			begin := time.Now()
			testworld.NoError(t, u.awaitRenewal(t.Context()))
			return time.Since(begin)
		}
		u.renewSoon()
		if got := waited(); got >= hastenSpread {
			t.Errorf("renewed after %v, want within %v", got, hastenSpread)
		}
		u.renewSoon()
		if got := waited(); got < 10*time.Minute {
			t.Errorf("renewed after %v, want at its time", got)
		}
		u.renewSoon()
		if got := waited(); got >= hastenSpread {
			t.Errorf("much later: renewed after %v, want within %v", got, hastenSpread)
		}
	})
}

// TestManagerConfig: a configuration without a valid manager URL or unit address is
// refused.
func TestManagerConfig(t *testing.T) {
	w := unittest.New(t, "1h")
	for _, row := range []struct {
		name   string
		change func(*Config)
	}{
		{"plain text", func(c *Config) { c.Manager.URL = "nats://manager.example:4222" }},
		{"no port", func(c *Config) { c.Manager.URL = "tls://manager.example" }},
		{"address without a port", func(c *Config) { c.Address = "unit.example" }},
		{"address without a host", func(c *Config) { c.Address = ":8443" }},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := configOf(w, "scoring", w.Authority(w.AuthorityKeys))
			row.change(&c)
			_, err := Start(testworld.ShortContext(t), c)
			testworld.Refused(t, err, wire.BadRequest)
		})
	}
}

// TestNoManager: a unit starts although its manager is unreachable.
func TestNoManager(t *testing.T) {
	w := unittest.New(t, "1h")
	c := configOf(w, "scoring", w.Authority(w.AuthorityKeys))
	c.Manager = Manager{URL: "tls://127.0.0.1:1", CA: x509.NewCertPool()}
	u, err := Start(testworld.ShortContext(t), c)
	testworld.NoError(t, err)
	defer u.Close()
	testworld.NoError(t, u.Ready())
	open(w, u)
	if u.Stats().Manager {
		t.Error("connected to nobody")
	}
}
