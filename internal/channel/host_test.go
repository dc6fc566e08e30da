package channel

import (
	"bytes"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// relabel changes one part of a sealed session (AD, nonce, ciphertext) and frames it again.
func relabel(sealed []byte, field int, change func([]byte) []byte) []byte {
	f := testworld.Must(wire.Unframe(wire.LabelSealedSession, sealed, 3))
	f[field] = change(bytes.Clone(f[field]))
	return wire.Frame(wire.LabelSealedSession, f...)
}

// inAD changes one field of the associated data.
func inAD(sealed []byte, field int, change func([]byte) []byte) []byte {
	return relabel(sealed, 0, func(ad []byte) []byte {
		f := testworld.Must(wire.Unframe(wire.LabelSealed, ad, 6))
		f[field] = change(bytes.Clone(f[field]))
		return wire.Frame(wire.LabelSealed, f...)
	})
}

// sealAs returns a sealed session as a unit with the ring could make it.
func sealAs(w *world, h *Host, edit func(*session, *envelope.Header, *ring)) []byte {
	w.T.Helper()
	r := h.credentials.follow
	s := &session{id: wire.SessionID{9}, expiry: uint64(noon.Add(time.Minute).Unix()), head: w.policy.PolicyHead(), opener: h.id, secret: [32]byte{5}}
	b := envelope.Header{For: h.credentials.Identity, Ring: r.key.ID(), Session: s.id, Expiry: s.expiry, Sealer: h.id}
	other := ringOfKey(nil, r.key, r.identity, r.pin)
	edit(s, &b, other)
	return testworld.Must(other.sealMessage(envelope.Session, b, sealedBody(s, other.pin)))
}

func TestJoinRefusals(t *testing.T) {
	w := newWorld(t)
	a := w.host(Limits{})
	_, sealed := w.opened(a, w.byTask())
	_, strict := w.opened(a, w.byID())
	in := func(d time.Duration) uint64 { return uint64(noon.Add(d).Unix()) }
	for _, c := range []struct {
		name   string
		sealed []byte
		at     time.Duration
		want   wire.Reason
	}{
		{"nothing", nil, 0, wire.Malformed},
		{"too large", make([]byte, envelope.MaxSealed+1), 0, wire.TooLarge},
		{"a tombstone", wire.Frame(wire.LabelTombstone, nil, nil, nil), 0, wire.Malformed},
		{"another suite", inAD(sealed, 0, flip), 0, wire.Malformed},
		{"another identity", inAD(sealed, 1, flip), 0, wire.WrongIdentity},
		{"an unknown ring", inAD(sealed, 2, flip), 0, wire.UnknownRing},
		{"the ring of sessions pinned otherwise", inAD(sealed, 2, func([]byte) []byte { id := a.credentials.strict.key.ID(); return id[:] }), 0, wire.BadSignature},
		{"another session id", inAD(sealed, 3, flip), 0, wire.BadSignature},
		{"another expiry", inAD(sealed, 4, flip), 0, wire.BadSignature},
		{"a nearer expiry", inAD(sealed, 4, func([]byte) []byte { return wire.Uint64(in(time.Minute)) }), 0, wire.BadSignature},
		{"another sealing unit", inAD(sealed, 5, flip), 0, wire.BadSignature},
		{"another nonce", relabel(sealed, 1, flip), 0, wire.BadSignature},
		{"a short nonce", relabel(sealed, 1, func(b []byte) []byte { return b[1:] }), 0, wire.Malformed},
		{"another ciphertext", relabel(sealed, 2, flip), 0, wire.BadSignature},
		{"the ciphertext of another", relabel(sealed, 2, func([]byte) []byte { return testworld.Must(wire.Unframe(wire.LabelSealedSession, strict, 3))[2] }), 0, wire.BadSignature},
		{"past its expiry", sealAs(w, a, func(s *session, b *envelope.Header, _ *ring) { b.Expiry = in(0) }), 0, wire.SessionOver},
		{"beyond an hour", sealAs(w, a, func(s *session, b *envelope.Header, _ *ring) { b.Expiry = in(66 * time.Minute) }), 0, wire.Expired},
		{"of another pin", sealAs(w, a, func(_ *session, _ *envelope.Header, r *ring) { r.pin = w.byID().Encode() }), 0, wire.WrongIdentity},
		{"past the certificate", sealed, 2 * time.Hour, wire.CertExpired},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := w.host(Limits{})
			_, err := h.ImportSession(c.sealed, noon.Add(c.at))
			testworld.Refused(t, err, c.want)
			if n := h.Stats(noon).Sessions; n != 0 {
				t.Errorf("got %d sessions, want 0", n)
			}
		})
	}
	h := w.host(Limits{})
	for _, good := range [][]byte{sealed, strict, sealed, sealAs(w, a, func(*session, *envelope.Header, *ring) {})} {
		if _, err := h.ImportSession(good, noon); err != nil {
			t.Errorf("unchanged: %v", err)
		}
	}
	if got := h.Stats(noon); got.Sessions != 3 || got.Opened != 0 {
		t.Errorf("got %+v, want 3 sessions of others", got)
	}
	_, err := h.ImportSession(sealAs(w, a, func(s *session, _ *envelope.Header, _ *ring) { s.secret[0]++ }), noon)
	testworld.Refused(t, err, wire.Replayed)
	_, err = h.ImportSession(sealAs(w, a, func(_ *session, b *envelope.Header, _ *ring) { b.Expiry++ }), noon)
	testworld.Refused(t, err, wire.Replayed)
}

// TestEveryByteOfASealedSession flips a bit in every byte of a sealed session. Each change is
// refused.
func TestEveryByteOfASealedSession(t *testing.T) {
	w := newWorld(t)
	a, b := w.host(Limits{}), w.host(Limits{})
	_, sealed := w.opened(a, w.byTask())
	for i := range sealed {
		for bit := range 8 {
			bad := bytes.Clone(sealed)
			bad[i] ^= 1 << bit
			if _, err := b.ImportSession(bad, noon); err == nil {
				t.Fatalf("byte %d, bit %d: joined", i, bit)
			}
		}
	}
	if _, err := b.ImportSession(sealed, noon); err != nil {
		t.Errorf("unchanged: %v", err)
	}
}

// TestSealingIsDeterministic: sealing the same session again gives the same bytes; a different
// session gets a different nonce.
func TestSealingIsDeterministic(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	nonce := func(b []byte) string { return string(testworld.Must(wire.Unframe(wire.LabelSealedSession, b, 3))[1]) }
	one, two := sealAs(w, h, func(*session, *envelope.Header, *ring) {}), sealAs(w, h, func(*session, *envelope.Header, *ring) {})
	if !bytes.Equal(one, two) {
		t.Error("the same session was sealed to other bytes")
	}
	for name, edit := range map[string]func(*session, *envelope.Header, *ring){
		"secret":  func(s *session, _ *envelope.Header, _ *ring) { s.secret[0]++ },
		"session": func(_ *session, b *envelope.Header, _ *ring) { b.Session[0]++ },
	} {
		if nonce(sealAs(w, h, edit)) == nonce(one) {
			t.Errorf("another %s was sealed under the same nonce", name)
		}
	}
}

// TestClocksThatGoBack: a host that sets its clock back cannot revive an expired session.
func TestClocksThatGoBack(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	sealed := sealAs(w, h, func(*session, *envelope.Header, *ring) {}) // for a minute
	if _, err := h.ImportSession(sealed, noon); err != nil {
		t.Fatal(err)
	}
	h.Stats(noon.Add(2 * time.Minute))
	_, err := h.ImportSession(sealed, noon)
	testworld.Refused(t, err, wire.SessionOver)
}

// TestTombstoneWhileClosing: another unit's tombstone arrives while a request that closes the
// session is read. The close is confirmed, and there is only one tombstone.
func TestTombstoneWhileClosing(t *testing.T) {
	w := newWorld(t)
	a, b := w.host(Limits{}), w.host(Limits{})
	s, sealed := w.opened(a, w.byTask())
	testworld.Must(b.ImportSession(sealed, noon))
	arrives := func(h *Host) *ServerRequest {
		x := testworld.Must(s.NewRequest(RequestConfig{Target: h.ID(), NotAfter: noon.Add(time.Minute), Flags: wire.FlagClose}))
		raw := testworld.Must(x.Whole(bhttp.Head{}, nil))
		return testworld.Must(h.Open([wire.HeaderSize]byte(raw), bytes.NewReader(raw[wire.HeaderSize:]), noon))
	}
	one, late, two := arrives(a), arrives(a), arrives(b)
	testworld.Must(0, late.Authenticate(nil, atNoon))
	testworld.Must(0, two.Authenticate(nil, atNoon))
	if _, err := a.Terminate(testworld.Must(two.Close()), noon); err != nil {
		t.Fatal(err)
	}
	if err := one.Authenticate(nil, atNoon); err != nil || !one.Closed() {
		t.Errorf("before it was read: got %v, closed %v, want it to be confirmed", err, one.Closed())
	}
	if tombstone, err := late.Close(); err != nil || tombstone != nil {
		t.Errorf("before it was closed: got %d bytes, %v, want no second tombstone", len(tombstone), err)
	}
}

// TestClosedKeepsNoSecret: for a closed session the unit keeps a record without its secret, and
// the client keeps nothing.
func TestClosedKeepsNoSecret(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	s, _ := w.opened(h, w.byTask())
	secret := s.secret
	raw := testworld.Must(testworld.Must(s.NewRequest(RequestConfig{Target: h.ID(), NotAfter: noon.Add(time.Minute), Flags: wire.FlagClose})).Whole(bhttp.Head{}, nil))
	x := testworld.Must(h.Open([wire.HeaderSize]byte(raw), bytes.NewReader(raw[wire.HeaderSize:]), noon))
	testworld.Must(0, x.Authenticate(nil, atNoon))
	testworld.Must(x.Close())
	if r := h.table.records[s.ID()]; h.table.byID[s.ID()] != nil || r == nil || r.key == secret {
		t.Error("a closed session has its entry or its secret still")
	}
	s.Close()
	if s.secret != [32]byte{} {
		t.Error("the client has the secret still")
	}
	if _, err := s.messageKey(wire.LabelRequestKey); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v, want %v", err, ErrClosed)
	}
}

// TestRingRolls rolls the ring several times under one session, whose opener is gone. The session
// is resealed each time and keeps its expiry. Erased ring keys open nothing.
func TestRingRolls(t *testing.T) {
	w := newWorld(t)
	key := newKey()
	h := testworld.Must(NewHost(key, Limits{}))
	now := noon
	update := func() {
		t.Helper()
		if err := h.Update(w.standing(key, "1")); err != nil {
			t.Fatal(err)
		}
	}
	update()
	gone := w.host(Limits{})
	_, first := w.opened(gone, w.byTask())
	if _, err := h.ImportSession(first, now); err != nil {
		t.Fatal(err)
	}
	if sealed, left, err := h.Reseal(10, now); len(sealed)+left > 0 || err != nil {
		t.Fatalf("sealed anew under the same ring: %d, %d, %v", len(sealed), left, err)
	}
	newest := first
	for range 3 {
		before := h.credentials.follow
		w.ring.Follow = w.ring.Follow.Rotate(now, time.Hour)
		update()
		sealed, left, err := h.Reseal(10, now)
		if err != nil || len(sealed) != 1 || left != 0 {
			t.Fatalf("got %d sealed anew, %d left, %v, want 1", len(sealed), left, err)
		}
		if before.key.ID() == h.credentials.follow.key.ID() {
			t.Fatal("the ring did not roll")
		}
		newest = sealed[0]
		if got, want := testworld.Must(envelope.ParseSealed(envelope.Session, newest)).Expiry, testworld.Must(envelope.ParseSealed(envelope.Session, first)).Expiry; got != want {
			t.Errorf("sealing anew moved the expiry: got %d, want %d", got, want)
		}
	}
	late := w.host(Limits{})
	_, err := late.ImportSession(first, now)
	testworld.Refused(t, err, wire.UnknownRing)
	if _, err := late.ImportSession(newest, now); err != nil {
		t.Errorf("a unit that came late: %v", err)
	}
}

// TestErasedRings: a session under an erased ring key loses its secret but keeps its window.
func TestErasedRings(t *testing.T) {
	w := newWorld(t)
	key := newKey()
	h := testworld.Must(NewHost(key, Limits{}))
	if err := h.Update(w.standing(key, "1")); err != nil {
		t.Fatal(err)
	}
	s, sealed := w.opened(h, w.byTask())
	raw := testworld.Must(s.newRequest(wire.UnitID{}, noon.Add(time.Minute), 0)).raw
	known := h.credentials.rings
	kept := w.ring
	w.ring.Follow = identity.NewRingKeys(noon, time.Hour)
	if err := h.Update(w.standing(key, "1")); err != nil {
		t.Fatal(err)
	}
	_, err := h.findSession(raw, noon)
	testworld.Refused(t, err, wire.TicketWanted)
	_, err = h.ImportSession(sealed, noon)
	testworld.Refused(t, err, wire.UnknownRing)
	erased := 0
	for id, r := range known {
		if h.credentials.rings[id] != nil {
			continue
		}
		erased++
		if b := r.key.Expose(); !slices.Equal(b, make([]byte, 32)) || len(r.seals) > 0 {
			t.Error("an erased ring key is still there")
		}
	}
	if erased != 2 {
		t.Errorf("got %d erased ring keys, want 2", erased)
	}
	w.ring = kept
	if err := h.Update(w.standing(key, "1")); err != nil {
		t.Fatal(err)
	}
	_, err = h.ImportSession(sealAs(w, h, func(s *session, b *envelope.Header, _ *ring) {
		*b = testworld.Must(envelope.ParseSealed(envelope.Session, sealed)).Header
	}), noon)
	testworld.Refused(t, err, wire.Replayed)
	if _, err = h.ImportSession(sealed, noon); err != nil {
		t.Errorf("the same secret: %v", err)
	}
	if _, err = h.findSession(raw, noon); err != nil {
		t.Errorf("after it came back: %v", err)
	}
}

func TestStandingRefusals(t *testing.T) {
	w := newWorld(t)
	key := newKey()
	h := testworld.Must(NewHost(key, Limits{}))
	for _, c := range []struct {
		name string
		edit func(*UnitCredentials)
		want wire.Reason
	}{
		{"no certificate", func(s *UnitCredentials) { s.Unit = nil }, wire.BadChain},
		{"another unit's certificate", func(s *UnitCredentials) { s.Unit = w.standing(newKey(), "1").Unit }, wire.WrongIdentity},
		{"no ring", func(s *UnitCredentials) { s.Ring = identity.Ring{} }, wire.UnknownRing},
		{"no ring of one kind", func(s *UnitCredentials) { s.Ring.Strict.Current = nil }, wire.UnknownRing},
	} {
		s := w.standing(key, "1")
		c.edit(&s)
		if err := h.Update(s); wire.ReasonOf(err) != c.want {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
	if err := h.Update(w.standing(key, "1")); err != nil {
		t.Errorf("unchanged: %v", err)
	}
}

func FuzzJoin(f *testing.F) {
	w := newWorld(f)
	h := w.host(Limits{})
	s, sealed := w.opened(w.host(Limits{}), w.byTask())
	f.Add(sealed)
	f.Add(wire.Frame(wire.LabelTombstone, nil, nil, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if id, err := h.ImportSession(b, noon); err == nil && (id != s.ID() || !bytes.Equal(b, sealed)) {
			t.Error("another encoding was joined")
		}
		if _, err := h.Terminate(b, noon); err == nil {
			t.Error("a tombstone nobody made")
		}
	})
}
