package channel

import (
	"bytes"
	"context"
	"crypto/elliptic"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// exchanged is an open request and its response.
type exchanged struct {
	*world
	host    *Host
	opening *ClientHandshake
	answer  []byte
	trust   unitauth.Trust
	at      time.Time
}

// accepted opens a session up to the response. The device provides evidence if it is wanted.
func (w *world) accepted(h *Host, pin unitauth.Pin, wants SessionOptions, device *attesttest.Device) *exchanged {
	w.T.Helper()
	o := testworld.Must(NewClientHandshake(pin, wants))
	r := OpenRequest{Body: o.Request(), Number: 7}
	if wants&WantEvidence != 0 {
		r.Cookie = testworld.Must(h.Cookie(o.Request(), w.clock.Now()))
	}
	a := testworld.Must(h.Accept(r, w.clock.Now()))
	var evidence attest.Evidence
	if data, wanted, err := a.Evidence(); err != nil {
		w.T.Fatal(err)
	} else if wanted {
		evidence = testworld.Must(device.Attest(context.Background(), data))
	}
	response, _, err := a.Finish(evidence, w.clock.Now())
	if err != nil {
		w.T.Fatal(err)
	}
	return &exchanged{w, h, o, response, w.trust(), w.clock.Now()}
}

func (x *exchanged) finish() (*Session, error) { return x.opening.Finish(x.answer, x.trust, x.at) }

// edit changes one field of the response and frames it again.
func (x *exchanged) edit(field int, change func([]byte) []byte) {
	f := testworld.Must(wire.Unframe(wire.LabelSessionResponse, x.answer, 12))
	f[field] = change(bytes.Clone(f[field]))
	x.answer = wire.Frame(wire.LabelSessionResponse, f...)
}

func flip(b []byte) []byte { b[len(b)-1] ^= 1; return b }

func empty([]byte) []byte { return nil }

func TestOpen(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	x := w.accepted(h, w.byID(), WantEvidence|WantReceipts, w.Device("scoring 1"))
	s, err := x.finish()
	if err != nil {
		t.Fatal(err)
	}
	if s.ID().Range() != 7 || s.OpenedBy().UnitID() != h.ID() || !s.Evidence().Appraised() || s.PolicyHead() != w.policy.PolicyHead() || !s.Expires().After(noon) {
		t.Errorf("got %+v", s)
	}
	if got := h.Stats(noon); got.Sessions != 1 || got.Opened != 1 || got.Rings != 4 {
		t.Errorf("got %+v", got)
	}
}

// TestAnswerRefusals: each row is the smallest change of a good response that must give exactly
// this reason.
func TestAnswerRefusals(t *testing.T) {
	good := func(t *testing.T) *exchanged {
		w := newWorld(t)
		return w.accepted(w.host(Limits{}), w.byTask(), WantEvidence, w.Device("scoring 1"))
	}
	field := func(i int, change func([]byte) []byte) func(*exchanged) {
		return func(x *exchanged) { x.edit(i, change) }
	}
	evidence := func(program string, fault attesttest.Faults) func(*exchanged) {
		return func(x *exchanged) {
			d := x.Device(program)
			d.Faults = fault
			*x = *x.world.accepted(x.host, x.byTask(), WantEvidence, d)
		}
	}
	for _, c := range []struct {
		name string
		edit func(*exchanged)
		want wire.Reason
	}{
		{"nothing", func(x *exchanged) { x.answer = nil }, wire.Malformed},
		{"a field more", func(x *exchanged) { x.answer = wire.AppendField(x.answer, nil) }, wire.Malformed},
		{"too large", func(x *exchanged) { x.answer = make([]byte, MaxOpenResponse+1) }, wire.TooLarge},
		{"another KEM ciphertext", field(0, flip), wire.BadDigest},
		{"a short KEM ciphertext", field(0, func(b []byte) []byte { return b[1:] }), wire.Malformed},
		{"another session id", field(1, flip), wire.BadDigest},
		{"another range", field(1, func(b []byte) []byte { b[0] ^= 1; return b }), wire.BadSignature},
		{"another unit", field(2, flip), wire.WrongIdentity},
		{"another unit, and an expiry in the past", func(x *exchanged) {
			x.edit(2, flip)
			x.edit(6, func([]byte) []byte { return wire.Uint64(1) })
		}, wire.WrongIdentity},
		{"another identity", field(3, flip), wire.WrongIdentity},
		{"another ring", field(4, flip), wire.BadDigest},
		{"an unknown head", field(5, flip), wire.Behind},
		{"no head", field(5, func(b []byte) []byte { return make([]byte, 32) }), wire.Malformed},
		{"another expiry", field(6, func([]byte) []byte { return wire.Uint64(uint64(noon.Add(time.Minute).Unix())) }), wire.BadDigest},
		{"an expiry in the past", field(6, func([]byte) []byte { return wire.Uint64(uint64(noon.Unix())) }), wire.Expired},
		{"an expiry beyond the certificate", field(6, func([]byte) []byte { return wire.Uint64(uint64(noon.Add(61 * time.Minute).Unix())) }), wire.Expired},
		{"no chain", field(7, empty), wire.Malformed},
		{"a chain of one", field(7, func([]byte) []byte { return wire.Frame(wire.LabelChain, nil) }), wire.Malformed},
		{"a chain that is no certificates", field(7, func([]byte) []byte { return wire.Frame(wire.LabelChain, nil, nil) }), wire.BadChain},
		{"a chain too large", field(7, func([]byte) []byte { return make([]byte, unitauth.MaxChain+1) }), wire.TooLarge},
		{"another signature", field(8, flip), wire.BadSignature},
		{"the other signature that the key allows", field(8, highS), wire.BadSignature},
		{"no signature", field(8, empty), wire.BadSignature},
		{"wanted evidence left out", field(9, empty), wire.BadSignature},
		{"another ticket", field(10, flip), wire.BadSignature},
		{"for another request", func(x *exchanged) { x.opening = testworld.Must(NewClientHandshake(x.byTask(), WantEvidence)) }, wire.BadDigest},
		{"for other wants", func(x *exchanged) { x.opening.wants = 0 }, wire.BadDigest},
		{"for another pin", func(x *exchanged) { x.opening.pin = x.byID() }, wire.BadDigest},
		{"a pin of another release", func(x *exchanged) { x.opening.pin = unitauth.Pin{Genesis: x.policy.Genesis(), ID: x.id("2")} }, wire.WrongIdentity},
		{"a pin of another task", func(x *exchanged) { x.opening.pin.Task = "other" }, wire.WrongIdentity},
		{"a pin of no task", func(x *exchanged) { x.opening.pin.Task = "none" }, wire.NotFound},
		{"a pin of another history", func(x *exchanged) { x.opening.pin.Genesis = wire.Sum(nil) }, wire.WrongGenesis},
		{"under another history", func(x *exchanged) { x.trust.Policy = newWorld(x.T).policy }, wire.Behind},
		{"under another root", func(x *exchanged) { x.trust.Root = newWorld(x.T).root() }, wire.WrongRoot},
		{"past the certificate", func(x *exchanged) { x.at = noon.Add(2 * time.Hour) }, wire.Expired},
		{"without a verifier", func(x *exchanged) { x.trust.Verifier = nil }, wire.EvidenceMissing},
		{"evidence for another secret", evidence("scoring 1", attesttest.Faults{OtherReportData: true}), wire.BadNonce},
		{"evidence of an unknown vendor", evidence("scoring 1", attesttest.Faults{OtherRoot: true}), wire.UnknownRoot},
		{"evidence with debug on", evidence("scoring 1", attesttest.Faults{Debug: true}), wire.Debug},
		{"evidence of unknown code", evidence("mallory", attesttest.Faults{}), wire.NotMeasured},
		{"evidence of another release", evidence("scoring 2", attesttest.Faults{}), wire.WrongIdentity},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := good(t)
			c.edit(x)
			_, err := x.finish()
			testworld.Refused(t, err, c.want)
		})
	}
	if _, err := good(t).finish(); err != nil {
		t.Errorf("unchanged: %v", err)
	}
}

// highS returns the other valid signature of the same message: (r, n-s) for (r, s).
func highS(signature []byte) []byte {
	var pair struct{ R, S *big.Int }
	testworld.Must(asn1.Unmarshal(signature, &pair))
	pair.S.Sub(elliptic.P256().Params().N, pair.S)
	return testworld.Must(asn1.Marshal(pair))
}

// TestEveryByteOfAnAnswer flips a bit of every byte of a response. Each change is refused.
func TestEveryByteOfAnAnswer(t *testing.T) {
	w := newWorld(t)
	x := w.accepted(w.host(Limits{}), w.byTask(), WantEvidence, w.Device("scoring 1"))
	response := x.answer
	for i := range response {
		x.answer = bytes.Clone(response)
		x.answer[i] ^= 1 << (i % 8)
		if _, err := x.finish(); err == nil {
			t.Fatalf("byte %d: accepted", i)
		}
	}
}

// successor returns a unit of a release that continues the release with ring of, and its own
// ring.
func (w *world) successor(of identity.Ring) (*Host, identity.Ring) {
	w.T.Helper()
	own := identity.Ring{Strict: identity.NewRingKeys(noon, time.Hour), Follow: identity.NewRingKeys(noon, time.Hour),
		Inherited: identity.Inherited{Identity: w.id("1"), Keys: of.Follow}}
	key := newKey()
	s := w.standing(key, "2")
	s.Ring = copyRing(own)
	h := testworld.Must(NewHost(key, Limits{}))
	if err := h.Update(s); err != nil {
		w.T.Fatal(err)
	}
	return h, own
}

// TestKeysOfNewerReleases: a release that continues another can import its sessions by task name,
// but not those pinned to code.
func TestKeysOfNewerReleases(t *testing.T) {
	w := newWorld(t)
	old := w.host(Limits{})
	newer, _ := w.successor(w.ring)
	_, follows := w.opened(old, w.byTask())
	_, pinned := w.opened(old, w.byID())
	if _, err := newer.ImportSession(follows, noon); err != nil {
		t.Errorf("a session that follows: %v", err)
	}
	_, err := newer.ImportSession(pinned, noon)
	testworld.Refused(t, err, wire.UnknownRing)

	again, left, err := newer.Reseal(10, noon)
	if err != nil || len(again) != 1 || left != 0 {
		t.Fatalf("got %d sealed anew, %d left, %v, want 1", len(again), left, err)
	}
	if _, err := old.ImportSession(again[0], noon); wire.ReasonOf(err) != wire.UnknownRing {
		t.Errorf("the predecessor opens what its successor sealed: %v", err)
	}

	_, late := w.opened(old, w.byTask())
	if _, err := newer.ImportSession(late, noon); err != nil {
		t.Errorf("one that comes late: %v", err)
	}
	for i, want := range []int{1, 0} {
		if again, left, err := newer.Reseal(10, noon); err != nil || len(again) != want || left != 0 {
			t.Errorf("round %d after it: got %d sealed anew, %d left, %v, want %d", i, len(again), left, err, want)
		}
	}
}

// TestResealGoesOn: a session that would outlive the newest ring key cannot be resealed, and does
// not stop others from being resealed.
func TestResealGoesOn(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	const others = 20
	for range others {
		w.opened(h, w.byTask())
	}
	w.opened(h, w.byID())
	w.ring.Strict = drawn(w.ring.Strict, time.Minute) // a policy has shortened lifetimes, and the authority restarted
	w.ring.Follow = drawn(w.ring.Follow, time.Hour)
	w.ring.Strict.Previous = w.ring.Strict.Previous.Until(noon.Add(time.Hour))
	testworld.Must(0, h.Update(w.standing(h.key, "1")))
	sealed, left, err := h.Reseal(others+1, noon)
	testworld.Refused(t, err, wire.Expired)
	if len(sealed) != others || left != 0 {
		t.Errorf("got %d sealed anew, %d left, want %d and 0", len(sealed), left, others)
	}
}

func TestAcceptRefusals(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{Sessions: 4, Opened: 2, Cookies: 1})
	open := func(pin unitauth.Pin, wants SessionOptions) OpenRequest {
		return OpenRequest{Body: testworld.Must(NewClientHandshake(pin, wants)).Request(), Number: 1}
	}
	edit := func(field int, change func([]byte) []byte) OpenRequest {
		f := testworld.Must(wire.Unframe(wire.LabelSessionOpen, open(w.byTask(), 0).Body, 6))
		f[field] = change(bytes.Clone(f[field]))
		return OpenRequest{Body: wire.Frame(wire.LabelSessionOpen, f...)}
	}
	since := func(least []byte) OpenRequest {
		f := testworld.Must(wire.Unframe(wire.LabelSessionOpen, open(w.byTask(), 0).Body, 6))
		return OpenRequest{Body: wire.Frame(wire.LabelSessionOpen, append(f[:4], []byte{byte(wantHead)}, least)...)}
	}
	cookie := func(change func([]byte) []byte, of *Host) OpenRequest {
		r := open(w.byTask(), WantEvidence)
		r.Cookie = change(testworld.Must(of.Cookie(r.Body, noon)))
		return r
	}
	busy := open(w.byTask(), 0)
	busy.Pending = 2
	strange := newWorld(t)
	restarted := testworld.Must(NewHost(newKey(), Limits{}))
	standing := w.standing(restarted.key, "1")
	standing.Ring = strange.ring
	if err := restarted.Update(standing); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		r    OpenRequest
		want wire.Reason
	}{
		{"nothing", OpenRequest{}, wire.Malformed},
		{"too large", OpenRequest{Body: make([]byte, MaxOpenRequest+1)}, wire.TooLarge},
		{"another suite", edit(0, func([]byte) []byte { return []byte{2} }), wire.Malformed},
		{"a short KEM key", edit(1, func(b []byte) []byte { return b[1:] }), wire.Malformed},
		{"a KEM key that is none", edit(1, func(b []byte) []byte { return bytes.Repeat([]byte{0xff}, len(b)) }), wire.Malformed},
		{"a short nonce", edit(2, func(b []byte) []byte { return b[1:] }), wire.Malformed},
		{"a pin cut short", edit(3, func(b []byte) []byte { return b[1:] }), wire.WrongIdentity},
		{"unknown wants", edit(4, func([]byte) []byte { return []byte{8} }), wire.Malformed},
		{"a least head wanted and none", edit(4, func([]byte) []byte { return []byte{byte(wantHead)} }), wire.Malformed},
		{"a least head that is not wanted", edit(5, func([]byte) []byte { return bytes.Repeat([]byte{1}, 32) }), wire.Malformed},
		{"a short least head", since(bytes.Repeat([]byte{1}, 31)), wire.Malformed},
		{"the zero head as the least", since(make([]byte, 32)), wire.Malformed},
		{"a least head that is not known", since(bytes.Repeat([]byte{1}, 32)), wire.Behind},
		{"a pin of another release", open(unitauth.Pin{Genesis: w.policy.Genesis(), ID: w.id("2")}, 0), wire.WrongIdentity},
		{"a pin of another task", open(unitauth.Pin{Genesis: w.policy.Genesis(), Task: "other"}, 0), wire.WrongIdentity},
		{"a pin of another history", open(strange.byTask(), 0), wire.WrongIdentity},
		{"evidence without a cookie", open(w.byTask(), WantEvidence), wire.CookieWanted},
		{"a busy unit without a cookie", busy, wire.CookieWanted},
		{"a changed cookie", cookie(flip, h), wire.CookieWanted},
		{"a cookie of another minute", cookie(func(b []byte) []byte { b[7]++; return b }, h), wire.CookieWanted},
		{"a cookie under another ring key", cookie(slices.Clone[[]byte], restarted), wire.CookieWanted},
		{"a cookie under no ring key", cookie(func(b []byte) []byte { return b[:8] }, h), wire.CookieWanted},
		{"a cookie with a key too many", cookie(func(b []byte) []byte { return append(b, bytes.Repeat(b[8:40], 6)...) }, h), wire.CookieWanted},
		{"a cookie cut short", cookie(func(b []byte) []byte { return b[1:] }, h), wire.CookieWanted},
		{"a cookie of another client", OpenRequest{Body: open(w.byTask(), WantEvidence).Body, Cookie: testworld.Must(h.Cookie(busy.Body, noon))}, wire.CookieWanted},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := h.Accept(c.r, noon)
			testworld.Refused(t, err, c.want)
		})
	}
	for range 2 {
		s, _ := w.opened(h, w.byTask())
		testworld.Must(0, brought(h, asked(s, "GET", h.ID(), noon.Add(time.Minute)), noon)) // so that the session is not evicted
	}
	_, err := h.Accept(open(w.byTask(), 0), noon)
	testworld.Refused(t, err, wire.Overload)
	_, err = h.Accept(open(w.byTask(), 0), noon.Add(2*time.Hour))
	testworld.Refused(t, err, wire.CertExpired)
	fresh := testworld.Must(NewHost(newKey(), Limits{}))
	_, err = fresh.Accept(open(w.byTask(), 0), noon)
	testworld.Refused(t, err, wire.NotEnrolled)
}

// TestCookieOfAnotherUnit: another unit of the cluster accepts a cookie after one minute, and
// refuses it after two.
func TestCookieOfAnotherUnit(t *testing.T) {
	w := newWorld(t)
	a, b := w.host(Limits{}), w.host(Limits{})
	r := OpenRequest{Body: testworld.Must(NewClientHandshake(w.byTask(), WantEvidence)).Request()}
	r.Cookie = testworld.Must(a.Cookie(r.Body, noon))
	if _, err := b.Accept(r, noon.Add(time.Minute)); err != nil {
		t.Errorf("a minute later: %v", err)
	}
	_, err := b.Accept(r, noon.Add(2*time.Minute))
	testworld.Refused(t, err, wire.CookieWanted)
}

// TestCookieOfAnotherRelease: units accept cookies of a release that directly continues theirs,
// or that theirs continues, and of units before or after a ring was replaced.
func TestCookieOfAnotherRelease(t *testing.T) {
	w := newWorld(t)
	first := w.host(Limits{})
	second, ring := w.successor(w.ring)
	third, _ := w.successor(ring)
	w.ring.Strict, w.ring.Follow = drawn(w.ring.Strict, time.Hour), drawn(w.ring.Follow, time.Hour)
	cut := w.host(Limits{})
	for _, c := range []struct {
		name     string
		from, to *Host
		pin      unitauth.Pin
		want     wire.Reason
	}{
		{"the release after's", second, first, w.byTask(), ""},
		{"the release before's", first, second, w.byTask(), ""},
		{"the next release after's", third, second, w.byTask(), ""},
		{"the next release before's", second, third, w.byTask(), ""},
		{"that of two releases on", third, first, w.byTask(), wire.CookieWanted},
		{"after a cut", cut, first, w.byTask(), ""},
		{"before a cut", first, cut, w.byTask(), ""},
		{"after a cut, pinned to code", cut, first, w.byID(), ""},
	} {
		r := OpenRequest{Body: testworld.Must(NewClientHandshake(c.pin, WantEvidence)).Request()}
		r.Cookie = testworld.Must(c.from.Cookie(r.Body, noon))
		if _, err := c.to.Accept(r, noon); c.want == "" && err != nil || c.want != "" && wire.ReasonOf(err) != c.want {
			t.Errorf("%s: got %v, want reason %q", c.name, err, c.want)
		}
	}
}

// TestCookieOfAnotherRole: units of any role open sessions with the whole group, so each accepts
// another role's cookie for it. A session with one role is refused by units of other roles.
func TestCookieOfAnotherRole(t *testing.T) {
	w := newWorld(t)
	member := func(role string) *Host {
		key := newKey()
		s := w.standing(key, "1")
		s.Group, s.Role, s.Ring.Strict = "trial", role, identity.NewRingKeys(noon, time.Hour)
		h := testworld.Must(NewHost(key, Limits{}))
		if err := h.Update(s); err != nil {
			t.Fatal(err)
		}
		return h
	}
	bank, insurer := member("bank"), member("insurer")
	for _, c := range []struct {
		role string
		of   *Host
		want error
	}{{"", bank, nil}, {"", insurer, nil}, {"bank", bank, nil}, {"bank", insurer, wire.WrongIdentity}} {
		r := OpenRequest{Body: testworld.Must(NewClientHandshake(unitauth.Pin{Genesis: w.policy.Genesis(), Group: "trial", Role: c.role}, WantEvidence)).Request()}
		r.Cookie = testworld.Must(bank.Cookie(r.Body, noon))
		if _, err := c.of.Accept(r, noon); !errors.Is(err, c.want) {
			t.Errorf("pin to role %q: got %v, want %v", c.role, err, c.want)
		}
	}
}

func TestPinRefusals(t *testing.T) {
	d := wire.Sum(nil)
	for name, pin := range map[string]unitauth.Pin{
		"nothing": {}, "no genesis": {Task: "scoring"}, "neither": {Genesis: d}, "both": {Genesis: d, ID: d, Task: "scoring"}, "no name": {Genesis: d, Task: "A"},
	} {
		if _, err := NewClientHandshake(pin, 0); wire.ReasonOf(err) != wire.BadRequest {
			t.Errorf("%s: got %v, want %v", name, err, wire.BadRequest)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	w := newWorld(f)
	x := w.accepted(w.host(Limits{}), w.byTask(), 0, nil)
	f.Add(x.answer)
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, err := unverifiedResponse(b); err == nil && binary.BigEndian.Uint64(a.expiry) > 0 && !bytes.Equal(b, x.answer) {
			if _, err := x.opening.Finish(b, x.trust, noon); err == nil {
				t.Error("another answer was accepted")
			}
		}
	})
}

func FuzzOpenRequest(f *testing.F) {
	w := newWorld(f)
	h := w.host(Limits{})
	f.Add(testworld.Must(NewClientHandshake(w.byTask(), 0)).Request())
	f.Add(testworld.Must(NewClientHandshakeSince(w.byID(), WantReceipts, w.policy.PolicyHead())).Request())
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := h.Accept(OpenRequest{Body: b}, noon); err != nil && wire.ReasonOf(err) == wire.Internal {
			t.Errorf("got %v", err)
		}
		o, err := parseOpen(b)
		if err != nil {
			return
		}
		if again := wire.Frame(wire.LabelSessionOpen, []byte{envelope.Suite}, o.kemKey, o.nonce, o.pin, []byte{byte(o.wants)}, o.least); !bytes.Equal(again, b) {
			t.Errorf("another encoding was read: %x", b)
		}
		if (o.wants&wantHead != 0) != (len(o.least) > 0) {
			t.Errorf("got a least policy head of %d bytes with wants %b", len(o.least), o.wants)
		}
	})
}

// TestBehind: a unit has newer policy than the client. The client refuses the response, and
// accepts it once it has fetched that policy.
func TestBehind(t *testing.T) {
	w := newWorld(t)
	newer := w.next()
	key := newKey()
	h := testworld.Must(NewHost(key, Limits{}))
	s := w.standing(key, "1")
	s.Head = newer.PolicyHead()
	if err := h.Update(s); err != nil {
		t.Fatal(err)
	}
	x := w.accepted(h, w.byTask(), 0, nil)
	_, err := x.finish()
	testworld.Refused(t, err, wire.Behind)
	x.trust.Policy = newer
	if _, err := x.finish(); err != nil {
		t.Errorf("with newer policy: %v", err)
	}
}
