package channel

import (
	"bytes"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// thief has a unit's signing key and certificates and its own ring keys, but no TEE that runs the
// unit's code.
type thief struct {
	*world
	host *Host
	// proof returns the thief's evidence when the client wants evidence; false means none.
	proof func(attest.ReportData) (attest.Evidence, bool)
}

func newThief(w *world, victim *Host) *thief {
	s := victim.credentials.UnitCredentials
	s.Ring = identity.Ring{Strict: identity.NewRingKeys(w.clock.Now(), time.Hour), Follow: identity.NewRingKeys(w.clock.Now(), time.Hour)}
	h := testworld.Must(NewHost(victim.key, Limits{}))
	testworld.Must(0, h.Update(s))
	return &thief{world: w, host: h}
}

// opened opens a session between a client and the thief.
func (f *thief) opened(wants SessionOptions) (*Session, error) {
	o := testworld.Must(NewClientHandshake(f.byTask(), wants))
	a := testworld.Must(f.host.Accept(OpenRequest{Body: o.Request(), Cookie: testworld.Must(f.host.Cookie(o.Request(), f.clock.Now())), Number: 1}, f.clock.Now()))
	var evidence attest.Evidence
	if data, wanted, err := a.Evidence(); err != nil {
		return nil, err
	} else if wanted {
		shown := false
		if evidence, shown = f.proof(data); !shown {
			a.opening.wants = 0 // sign that no evidence is included
		}
	}
	response, _, err := a.Finish(evidence, noon)
	if err != nil {
		return nil, err
	}
	return o.Finish(response, f.trust(), noon)
}

// TestLeakedSigningKey: a thief with a unit's signing key responds to new clients. A client that
// wants fresh evidence gets no session. A client that does not want it gets one, which shows what
// fresh evidence is for.
func TestLeakedSigningKey(t *testing.T) {
	w := newWorld(t)
	victim := w.host(Limits{})
	f := newThief(w, victim)
	attested := func(program string) func(attest.ReportData) (attest.Evidence, bool) {
		device := w.Device(program)
		return func(data attest.ReportData) (attest.Evidence, bool) {
			return testworld.Must(device.Attest(t.Context(), data)), true
		}
	}
	genuine := w.Device("scoring 1")
	ways := []struct {
		name string
		show func(attest.ReportData) (attest.Evidence, bool)
		want wire.Reason
	}{
		{"none", func(attest.ReportData) (attest.Evidence, bool) { return attest.Evidence{}, false }, wire.EvidenceMissing},
		{"the unit's, for the thief's own session", func(attest.ReportData) (attest.Evidence, bool) {
			o := testworld.Must(NewClientHandshake(w.byTask(), WantEvidence))
			a := testworld.Must(victim.Accept(OpenRequest{Body: o.Request(), Cookie: testworld.Must(victim.Cookie(o.Request(), noon))}, noon))
			data, _, err := a.Evidence()
			return testworld.Must(genuine.Attest(t.Context(), testworld.Must(data, err))), true
		}, wire.BadNonce},
		{"of code of its own", attested("theft"), wire.NotMeasured},
		{"of another task", attested("other"), wire.NotMeasured},
		{"of another release", attested("scoring 2"), wire.WrongIdentity},
	}
	clients := 1000
	if testing.Short() {
		clients = 50
	}
	for i := range clients {
		way := ways[i%len(ways)]
		f.proof = way.show
		if s, err := f.opened(WantEvidence); wire.ReasonOf(err) != way.want || s != nil {
			t.Fatalf("evidence: %s: got session %v, %v, want %q", way.name, s, err, way.want)
		}
	}
	if _, err := f.opened(0); err != nil {
		t.Errorf("without evidence: %v", err)
	}
}

// TestEveryByteOfAnOpenRequest changes each byte of an open request: the unit refuses it, or the
// client refuses the response.
func TestEveryByteOfAnOpenRequest(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	o := testworld.Must(NewClientHandshake(w.byTask(), 0))
	responded := 0
	for i := range o.Request() {
		b := bytes.Clone(o.Request())
		b[i] ^= 0x10
		a, err := h.Accept(OpenRequest{Body: b, Number: uint64(i)}, noon)
		if err != nil {
			continue
		}
		response, _, err := a.Finish(noEvidence, noon)
		if err != nil {
			t.Fatal(err)
		}
		responded++
		if _, err := o.Finish(response, w.trust(), noon); err == nil {
			t.Fatalf("byte %d: accepted", i)
		}
	}
	if responded < 32 {
		t.Errorf("got %d answers, want one for each byte of the nonce at least", responded)
	}
}

// TestEveryByteOfATombstone changes each byte of a tombstone. Each change is refused.
func TestEveryByteOfATombstone(t *testing.T) {
	w := newWorld(t)
	a, b := w.host(Limits{}), w.host(Limits{})
	s, sealed := w.opened(a, w.byTask())
	testworld.Must(b.ImportSession(sealed, noon))
	x := testworld.Must(s.newRequest(wire.UnitID{}, noon, wire.FlagClose))
	body := testworld.Must(x.Whole(bhttp.Head{}, nil))
	in := testworld.Must(a.findSession([wire.HeaderSize]byte(body), noon))
	testworld.Must(0, in.openFirst(bytes.NewReader(body[wire.HeaderSize:]), atNoon))
	tombstone := testworld.Must(in.Close())
	for i := range tombstone {
		bad := bytes.Clone(tombstone)
		bad[i] ^= 1 << (i % 8)
		if _, err := b.Terminate(bad, noon); err == nil {
			t.Fatalf("byte %d: accepted", i)
		}
	}
	if _, err := b.findSession(x.raw, noon); err != nil {
		t.Errorf("the session after all of them: %v", err)
	}
	if _, err := b.Terminate(tombstone, noon); err != nil {
		t.Errorf("unchanged: %v", err)
	}
	if in := testworld.Must(b.findSession(x.raw, noon)); !in.closed {
		t.Error("asked to close, the unit does not say that it is done")
	}
	x = testworld.Must(s.newRequest(wire.UnitID{}, noon, 0))
	_, err := b.findSession(x.raw, noon)
	testworld.Refused(t, err, wire.Rekey)
}
