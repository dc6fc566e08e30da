package systest

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/api"
)

// sealers is the number of units that seal under each ring key. It is large, so that chance
// cannot have overwritten everything that must be erased.
const sealers = 200

// ringStory searches for a cluster's ring keys until after their end, in the memory of a
// unit that erases them and of a unit that cannot.
type ringStory struct {
	*apart
	spy     *spy
	channel *client.Channel
	plain   *unitProcess // built without runtimesecret
	erasing *unitProcess

	used   [][]byte // ring keys that sealed sessions
	secret *search  // finds these keys, and all derived from them
}

// TestErasedRings is the end of case 17: once a ring key is erased, the memory of a unit
// built like the released binaries contains neither it nor a key derived from it. A unit
// built without runtimesecret still contains some of them.
func TestErasedRings(t *testing.T) {
	waits(t)
	rolls := 1
	if full() {
		rolls = 20
	}
	a := newApart(t, 3*time.Second) // a ring key is current for 6 s
	s := &ringStory{apart: a, spy: newSpy(t, a), secret: newSearch()}
	s.plain, s.erasing = a.start(buildUnit(t, "")), a.start(buildUnit(t, "runtimesecret"))
	var err error
	if s.channel, err = client.Open(t.Context(), client.OpenConfig{Trust: a.trust, Gateway: "http://" + a.gateway.Gateway}); err != nil {
		t.Fatal(err)
	}
	defer s.channel.Close(context.Background())
	for range rolls {
		s.use()
		s.ask("the next ring key", func(r api.Report) bool { return !s.holds(r.Rings.Follow.Current) })
	}
	s.ask("the end of all ring keys used", func(r api.Report) bool {
		for _, key := range ringKeys(r.Rings) {
			if s.holds(key) {
				return false
			}
		}
		return true
	})
	s.judge()
}

// use seals sessions under the current ring key, and requires that the search then finds it
// and the keys derived from it in both units.
func (s *ringStory) use() {
	s.t.Helper()
	report := s.spy.report()
	conn := s.spy.listen(report) // the previous certificate has expired
	defer conn.Close()
	key := report.Rings.Follow.Current
	s.used = append(s.used, key.Key)
	now := newSearch()
	for _, to := range []*search{now, s.secret} {
		to.add("ring key", key.Key)
	}
	for range sealers {
		sealer, secret := s.spy.seal(conn, report)
		aesKey, nonceKey := sealKeys(key, sealer)
		for _, to := range []*search{now, s.secret} {
			to.add("session secret", secret)
			to.add("AES key", aesKey)
			to.add("nonce key", nonceKey)
		}
	}
	for name, u := range s.units() {
		s.wantInUse(name, u, now)
	}
}

// wantInUse waits until a search finds the keys in a unit's memory.
func (s *ringStory) wantInUse(name string, u *unitProcess, now *search) {
	s.t.Helper()
	for end := time.Now().Add(4 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		f := now.memory(s.t, u.pid)
		if f.of("ring key") > 0 && min(f.of("session secret"), f.of("AES key"), f.of("nonce key")) >= sealers {
			return
		}
		if time.Now().After(end) {
			s.t.Errorf("%s, in use: found %v, want the ring key and %d of the others", name, f, sealers)
			return
		}
	}
}

func (s *ringStory) units() map[string]*unitProcess {
	return map[string]*unitProcess{"plain": s.plain, "erasing": s.erasing}
}

// holds reports whether a ring key is among those used.
func (s *ringStory) holds(key *api.RingKey) bool {
	for _, used := range s.used {
		if bytes.Equal(used, key.Key) {
			return true
		}
	}
	return false
}

// ask keeps a session busy until a certificate report meets the condition, and then for one
// certificate lifetime, after which every unit has renewed.
func (s *ringStory) ask(what string, wanted func(api.Report) bool) {
	s.t.Helper()
	begun, since := time.Now(), time.Time{}
	for since.IsZero() || time.Since(since) < 3*time.Second {
		if err := ask(s.t.Context(), s.channel, []byte("a request that is 32 bytes long.")); err != nil {
			s.t.Error(err)
		}
		if since.IsZero() && wanted(s.spy.report()) {
			since = time.Now()
		}
		if time.Since(begun) > 30*time.Second {
			s.t.Fatalf("not within 30 s: %s", what)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// judge searches both units for the keys that should be erased.
func (s *ringStory) judge() {
	s.t.Helper()
	for name, u := range s.units() {
		u.collect(s.t)
		f := s.secret.memory(s.t, u.pid)
		s.t.Logf("%s: of %d erased ring keys with %d sealing units each found %v", name, len(s.used), sealers, f)
		if u == s.plain && len(f) == 0 {
			s.t.Errorf("%s: found nothing, so the search shows nothing", name)
		}
		if u == s.erasing && len(f) != 0 {
			s.t.Errorf("%s: found %v, want nothing", name, f)
		}
	}
}
