package channel

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/chunk"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// recorded returns the record of a request with a receipt, in a new session.
func (w *world) recorded(h *Host) unitauth.Record {
	w.T.Helper()
	s, _ := w.opened(h, w.byTask())
	const body = "how much?"
	x := testworld.Must(s.NewRequest(RequestConfig{Target: h.ID(), NotAfter: w.clock.Now().Add(time.Minute), Flags: wire.FlagReceipt}))
	raw := testworld.Must(x.Whole(bhttp.Head{Method: "POST", Scheme: "https", Authority: "scoring.clinic.example", Path: "/", Length: int64(len(body))}, strings.NewReader(body)))
	in := testworld.Must(h.Open([wire.HeaderSize]byte(raw), bytes.NewReader(raw[wire.HeaderSize:]), w.clock.Now()))
	testworld.Must(0, in.Authenticate(nil, w.unitClock))
	var response bytes.Buffer
	r := testworld.Must(in.Responder(&response))
	defer r.Release()
	r.BufferContent([]byte("7 pounds"))
	testworld.Must(r.Whole(bhttp.Head{Status: 200}, nil))
	testworld.Must(0, r.Finish())
	a := testworld.Must(x.Open(&response))
	testworld.Must(io.Copy(io.Discard, a.Content))
	record := *x.Record()
	record.Receipt = a.Receipt()
	return record
}

func TestReceiptRefusals(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	good := w.recorded(h)
	edit := func(field int, change func([]byte) []byte) func(*unitauth.Record, *unitauth.ReceiptExpect) {
		return func(r *unitauth.Record, _ *unitauth.ReceiptExpect) {
			f := testworld.Must(wire.Unframe(wire.LabelReceipt, r.Receipt, 9))
			f[field] = change(bytes.Clone(f[field]))
			r.Receipt = wire.Frame(wire.LabelReceipt, f...)
		}
	}
	other := w.recorded(h)
	for _, tt := range []struct {
		name string
		edit func(*unitauth.Record, *unitauth.ReceiptExpect)
		want wire.Reason
	}{
		{"no receipt", func(r *unitauth.Record, _ *unitauth.ReceiptExpect) { r.Receipt = nil }, wire.Malformed},
		{"too large", func(r *unitauth.Record, _ *unitauth.ReceiptExpect) { r.Receipt = make([]byte, unitauth.MaxReceipt+1) }, wire.TooLarge},
		{"a changed request", func(r *unitauth.Record, _ *unitauth.ReceiptExpect) { r.Request = flip(bytes.Clone(r.Request)) }, wire.BadDigest},
		{"a changed answer", func(r *unitauth.Record, _ *unitauth.ReceiptExpect) { r.Response = flip(bytes.Clone(r.Response)) }, wire.BadDigest},
		{"another session", edit(0, flip), wire.BadSignature},
		{"a short session", edit(0, func(b []byte) []byte { return b[1:] }), wire.Malformed},
		{"another number", edit(1, flip), wire.BadSignature},
		{"another request digest", edit(2, flip), wire.BadSignature},
		{"another answer digest", edit(3, flip), wire.BadSignature},
		{"another unit", edit(4, flip), wire.BadSignature},
		{"another time", edit(5, flip), wire.BadSignature},
		{"a time beyond 63 bits", edit(5, func([]byte) []byte { return bytes.Repeat([]byte{0xff}, 8) }), wire.Malformed},
		{"a short time", edit(5, func(b []byte) []byte { return b[1:] }), wire.Malformed},
		{"an unknown policy head", edit(6, flip), wire.Behind},
		{"no policy head", edit(6, func([]byte) []byte { return make([]byte, 32) }), wire.Behind},
		{"a short policy head", edit(6, func(b []byte) []byte { return b[1:] }), wire.Malformed},
		{"another unit's chain", edit(7, func([]byte) []byte { return w.host(Limits{}).credentials.chain }), wire.BadSignature},
		{"another signature", edit(8, flip), wire.BadSignature},
		{"another's receipt", func(r *unitauth.Record, _ *unitauth.ReceiptExpect) {
			r.Receipt = other.Receipt
			r.Request = []byte("x")
		}, wire.BadDigest},
		{"another pin", func(_ *unitauth.Record, e *unitauth.ReceiptExpect) { e.Pin.Task = "other" }, wire.WrongIdentity},
		{"an answer of another time", func(_ *unitauth.Record, e *unitauth.ReceiptExpect) { e.At = noon.Add(6 * time.Minute) }, wire.ClockSkew},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, e := good, unitauth.ReceiptExpect{Pin: w.byTask(), At: noon}
			tt.edit(&r, &e)
			_, err := unitauth.VerifyReceipt(r, w.trust(), e)
			testworld.Refused(t, err, tt.want)
		})
	}
	got, err := unitauth.VerifyReceipt(good, w.trust(), unitauth.ReceiptExpect{Pin: w.byTask(), At: noon})
	if err != nil {
		t.Fatal(err)
	}
	if id := got.Unit.UnitID(); id != h.ID() || got.Number != 1 {
		t.Errorf("got unit %v, number %d", id, got.Number)
	}
}

// TestReceiptAfterACut verifies receipts of a unit that is cut off later or at the same time. The
// time in the receipt counts; a later cut is only reported.
func TestReceiptAfterACut(t *testing.T) {
	for name, row := range map[string]struct {
		later time.Duration // from the receipt to the creation of the policy with the cut
		want  wire.Reason   // empty: accepted
	}{
		"a second later":   {time.Second, ""},
		"an hour later":    {time.Hour, ""},
		"at the same time": {0, wire.CutOff},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			h := w.host(Limits{})
			good, expect := w.recorded(h), unitauth.ReceiptExpect{Pin: w.byTask(), At: noon}
			w.clock.Advance(row.later)
			cut := w.cutOff(h.ID())
			check := func(what string) {
				t.Helper()
				got, err := unitauth.VerifyReceipt(good, w.trust(), expect)
				switch {
				case row.want != "":
					testworld.Refused(t, err, row.want)
				case err != nil:
					t.Errorf("%s: %v", what, err)
				case got.Later == nil || got.Later.Head != cut.PolicyHead() || got.Later.Sequence != 2 || !errors.Is(got.Later.Cause, wire.CutOff) || got.Later.Statement || !got.Later.Created.Equal(w.policy.Document().Created):
					t.Errorf("%s: got the later step %+v, want that of policy 2", what, got.Later)
				}
			}
			check("after the cut")
			w.adopt(fmt.Sprintf("cut_units = [%q]\n", h.ID()), "")
			check("taken back")
		})
	}
}

// TestReceiptOfTheTwin: a unit that was cut off has not received the cut, and signs a receipt
// that names a time after the cut and a policy before it. With the newer policy it is refused.
func TestReceiptOfTheTwin(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	before := w.trust()
	w.clock.Advance(time.Minute)
	w.cutOff(h.ID())
	after := w.trust()
	w.policy = before.Policy // the client has not received the cut either
	record, expect := w.recorded(h), unitauth.ReceiptExpect{Pin: w.byTask(), At: noon.Add(time.Minute)}
	if _, err := unitauth.VerifyReceipt(record, before, expect); err != nil {
		t.Errorf("by policy before the cut: %v", err)
	}
	_, err := unitauth.VerifyReceipt(record, after, expect)
	testworld.Refused(t, err, wire.CutOff)
}

// TestReceiptOfARelease: a receipt is verified by the policy that it names. It stays valid when
// the release is retired or removed later.
func TestReceiptOfARelease(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	record, expect := w.recorded(h), unitauth.ReceiptExpect{Pin: w.byTask(), At: noon}
	from := w.policy.PolicyHead()
	w.clock.Advance(time.Minute)
	w.adopt("[task.scoring.release.\"1\"]\n", "[task.scoring.release.\"1\"]\nretired = true\n")
	got, err := unitauth.VerifyReceipt(record, w.trust(), expect)
	if err != nil || got.Later != nil || got.Head != from || !got.At.Equal(noon) {
		t.Errorf("retired: got %+v, %v, want no later step", got, err)
	}
	w.adopt("[task.scoring.release.\"1\"]\nretired = true\nreference = [ { platform = \"soft\", program = \""+wire.Sum([]byte("scoring 1")).String()+"\" } ]\n", "", "continues = \"1\"\n", "")
	if got, err = unitauth.VerifyReceipt(record, w.trust(), expect); err != nil || got.Later == nil || got.Later.Sequence != 3 {
		t.Errorf("gone: got %+v, %v, want the later step of policy 3", got.Later, err)
	}
}

// TestNoReceipt: a response that ends without a receipt has no receipt.
func TestNoReceipt(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	s, _ := w.opened(h, w.byTask())
	x := testworld.Must(s.NewRequest(RequestConfig{NotAfter: noon.Add(time.Minute), Flags: wire.FlagReceipt}))
	in := &ServerRequest{host: h, raw: x.raw, keys: newKeys(&s.secret)}
	prefix, seal, err := in.responseWriter()
	if err != nil {
		t.Fatal(err)
	}
	b := append(make([]byte, chunk.LengthSize), (&ServerRequest{at: noon}).responsePrefix(KindResponse)...)
	b = testworld.Must(bhttp.AppendResponse(b, bhttp.Head{Status: 200}))
	a, err := x.Open(bytes.NewReader(append(prefix[:], seal.SealChunk(b, chunk.Final)...)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, a.Content); err != nil || a.Receipt() != nil {
		t.Errorf("got %d bytes of a receipt, %v, want none", len(a.Receipt()), err)
	}
}

func FuzzReceipt(f *testing.F) {
	w := newWorld(f)
	good := w.recorded(w.host(Limits{}))
	expect := unitauth.ReceiptExpect{Pin: w.byTask(), At: noon}
	want := testworld.Must(unitauth.VerifyReceipt(good, w.trust(), expect))
	f.Add(good.Receipt)
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := unitauth.VerifyReceipt(unitauth.Record{Request: good.Request, Response: good.Response, Receipt: b}, w.trust(), expect)
		if err == nil && (got.Session != want.Session || got.Number != want.Number || got.Unit.UnitID() != want.Unit.UnitID()) {
			t.Errorf("another receipt was accepted: %x", b)
		}
	})
}
