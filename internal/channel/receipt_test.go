package channel

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// recorded is a request with a receipt, and the trust to judge it by.
func recorded(t testing.TB, c *cluster) Record {
	t.Helper()
	rt := c.client(c.byTask(), WantReceipts)
	var record Record
	r := must(http.NewRequest("POST", base+"/", bytes.NewReader([]byte("how much?"))))
	answer, err := rt.RoundTrip(r.WithContext(WithRecord(t.Context(), &record)))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if _, err := new(bytes.Buffer).ReadFrom(answer.Body); err != nil {
		t.Fatal(err)
	}
	return record
}

func TestReceiptRefusals(t *testing.T) {
	c := newCluster(t, 2, echo)
	good := recorded(t, c)
	edit := func(field int, change func([]byte) []byte) func(*Record, *ReceiptExpect) {
		return func(r *Record, _ *ReceiptExpect) {
			f := must(wire.Unframe(wire.LabelReceipt, r.Receipt, 7))
			f[field] = change(bytes.Clone(f[field]))
			r.Receipt = wire.Frame(wire.LabelReceipt, f...)
		}
	}
	other := recorded(t, c)
	for _, tt := range []struct {
		name string
		edit func(*Record, *ReceiptExpect)
		want wire.Reason
	}{
		{"no receipt", func(r *Record, _ *ReceiptExpect) { r.Receipt = nil }, wire.Malformed},
		{"too large", func(r *Record, _ *ReceiptExpect) { r.Receipt = make([]byte, maxReceipt+1) }, wire.TooLarge},
		{"a changed request", func(r *Record, _ *ReceiptExpect) { r.Request = flip(bytes.Clone(r.Request)) }, wire.BadDigest},
		{"a changed answer", func(r *Record, _ *ReceiptExpect) { r.Answer = flip(bytes.Clone(r.Answer)) }, wire.BadDigest},
		{"another session", edit(0, flip), wire.BadSignature},
		{"a short session", edit(0, func(b []byte) []byte { return b[1:] }), wire.Malformed},
		{"another number", edit(1, flip), wire.BadSignature},
		{"another request digest", edit(2, flip), wire.BadSignature},
		{"another answer digest", edit(3, flip), wire.BadSignature},
		{"another unit", edit(4, flip), wire.BadSignature},
		{"another unit's chain", edit(5, func([]byte) []byte { return c.host(Limits{}).standing.chain }), wire.BadSignature},
		{"another signature", edit(6, flip), wire.BadSignature},
		{"another's receipt", func(r *Record, _ *ReceiptExpect) { r.Receipt = other.Receipt; r.Request = []byte("x") }, wire.BadDigest},
		{"another pin", func(_ *Record, e *ReceiptExpect) { e.Pin.Task = "other" }, wire.WrongIdentity},
		{"another time", func(_ *Record, e *ReceiptExpect) { e.At = noon.Add(3 * time.Hour) }, wire.Expired},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, e := good, ReceiptExpect{Pin: c.byTask(), At: noon}
			tt.edit(&r, &e)
			_, err := VerifyReceipt(r, c.trust(), e)
			refused(t, err, tt.want)
		})
	}
	got, err := VerifyReceipt(good, c.trust(), ReceiptExpect{Pin: c.byTask(), At: noon})
	if err != nil {
		t.Fatal(err)
	}
	if id := got.Unit.UnitID(); id != c.units[0].ID() && id != c.units[1].ID() || got.Number != 1 {
		t.Errorf("got unit %v, number %d", id, got.Number)
	}
}

// TestReceiptLeftOut is a unit that gives a whole answer without its receipt: the
// client refuses it.
func TestReceiptLeftOut(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	s, _ := w.opened(h, w.byTask())
	x := must(s.begin(wire.UnitID{}, noon.Add(time.Minute), wire.FlagReceipt))
	in := &inbound{host: h, raw: x.raw, keys: newKeys(&s.secret)}
	prefix, seal, err := in.answerSealer()
	if err != nil {
		t.Fatal(err)
	}
	b := append(make([]byte, lengthSize), kindResponse)
	b = must(appendResponse(b, head{status: 200}))
	a, err := x.open(bytes.NewReader(append(prefix[:], seal.seal(b, final)...)))
	if err != nil {
		t.Fatal(err)
	}
	c := &call{t: must(NewTransport(TransportConfig{Gateway: noGateway, Inner: http.DefaultTransport, Pin: w.byTask(), Trust: w, Clock: w.clock}))}
	a.content.after = func(error) error { return c.prove(x, a, noon) }
	_, err = a.content.Read(make([]byte, 1))
	refused(t, err, wire.EvidenceMissing)
}

// shut is the body of an outer request as net/http gives it: no more to be read
// once it was closed.
type shut struct {
	io.ReadCloser
	closed bool
}

func (s *shut) Read(p []byte) (int, error) {
	if s.closed {
		return 0, http.ErrBodyReadAfterClose
	}
	return s.ReadCloser.Read(p)
}

func (s *shut) Close() error {
	s.closed = true
	return s.ReadCloser.Close()
}

// TestReceiptOfUnreadRequest: an app that closes a request without reading it, as
// a reverse proxy does with one that has no content, still gives a receipt.
func TestReceiptOfUnreadRequest(t *testing.T) {
	c := newCluster(t, 1, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body.Close()
		io.WriteString(w, "fine")
	}))
	inner := roundTrip(func(r *http.Request) (*http.Response, error) {
		if r.Body != nil {
			r.Body = &shut{ReadCloser: r.Body}
		}
		return c.RoundTrip(r)
	})
	rt := must(NewTransport(TransportConfig{Gateway: noGateway, Inner: inner, Pin: c.byTask(), Wants: WantReceipts, Trust: c.world, Clock: c.clock}))
	defer rt.Close(t.Context())
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		var record Record
		r := must(http.NewRequest(method, base+"/", strings.NewReader("a few words")))
		answer, err := rt.RoundTrip(r.WithContext(WithRecord(t.Context(), &record)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(answer.Body); err != nil {
			t.Errorf("%s: %v", method, err)
		}
		answer.Body.Close()
		if _, err := VerifyReceipt(record, c.trust(), ReceiptExpect{Pin: c.byTask(), At: noon}); err != nil {
			t.Errorf("%s: verifying the receipt: %v", method, err)
		}
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func FuzzReceipt(f *testing.F) {
	c := newCluster(f, 1, echo)
	good := recorded(f, c)
	expect := ReceiptExpect{Pin: c.byTask(), At: noon}
	want := must(VerifyReceipt(good, c.trust(), expect))
	f.Add(good.Receipt)
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := VerifyReceipt(Record{good.Request, good.Answer, b}, c.trust(), expect)
		if err == nil && (got.Session != want.Session || got.Number != want.Number || got.Unit.UnitID() != want.Unit.UnitID()) {
			t.Errorf("another receipt was accepted: %x", b)
		}
	})
}
