package ohttp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// zeros is a cipher under a key of zeros.
func zeros() *ResponseCipher { return &ResponseCipher{aead: testworld.Must(newAEAD(make([]byte, 32)))} }

// readAll reads the chunks of a message.
func readAll(u *Reader) (parts [][]byte, err error) {
	for {
		b, _, err := u.Next()
		if err == io.EOF {
			return parts, nil
		}
		if err != nil {
			return parts, err
		}
		parts = append(parts, b)
	}
}

// pieces are the chunks of a message as the content of binary HTTP.
type pieces struct{ *Reader }

func (p *pieces) Next() ([]byte, error) { b, _, err := p.Reader.Next(); return b, err }
func (p *pieces) Release()              {}

// sealedParts is a message whose plaintext stands in these chunks, for a cipher
// of zeros, with its reader.
func sealedParts(f Form, parts ...[]byte) *Reader {
	var b []byte
	seal, open := zeros(), zeros()
	w := &Writer{Form: f, Seal: seal.Seal}
	for i, part := range parts {
		add := w.Append
		if i == len(parts)-1 {
			add = w.Finish
		}
		b = append(b, testworld.Must(add(part))...)
	}
	return &Reader{Form: f, From: bytes.NewReader(b), Open: open.Open}
}

// TestHeadsAcrossChunks: wherever chunks cut a head, it is understood, and what
// may be left out at a message's end may not be before.
func TestHeadsAcrossChunks(t *testing.T) {
	for name, raw := range map[string][]byte{
		"known":         testworld.Must(bhttp.AppendRequest(nil, bhttp.Head{Method: "GET", Scheme: "https", Authority: "a.example", Path: "/p", Fields: http.Header{"A": {"b"}}, Length: 3})),
		"indeterminate": append(testworld.Must(bhttp.AppendRequest(nil, bhttp.Head{Method: "GET", Scheme: "https", Authority: "a.example", Path: "/p", Fields: http.Header{"A": {"b"}}, Length: bhttp.Indeterminate})), 3),
	} {
		t.Run(name, func(t *testing.T) {
			whole := append(bytes.Clone(raw), "abc"...)
			for cut := range len(whole) + 1 {
				for other := cut; other <= len(whole); other++ {
					u := sealedParts(Chunks, whole[:cut], whole[cut:other], whole[other:])
					h, rest, err := u.ReadHead(bhttp.ParseRequest)
					if err != nil {
						t.Fatalf("cut at %d and %d: %v", cut, other, err)
					}
					content, err := io.ReadAll(bhttp.NewContent(&pieces{u}, h, rest))
					if h.Path != "/p" || h.Fields.Get("A") != "b" || string(content) != "abc" || err != nil {
						t.Fatalf("cut at %d and %d: got %v %q, %v", cut, other, h, content, err)
					}
				}
			}
		})
	}
}

func TestHeadsThatAreTooLong(t *testing.T) {
	raw := testworld.Must(bhttp.AppendRequest(nil, bhttp.Head{Method: "GET", Path: "/" + strings.Repeat("p", 2*maxChunk)}))
	var single [][]byte
	for _, b := range raw[:maxHeads+1] {
		single = append(single, []byte{b})
	}
	for name, u := range map[string]*Reader{
		"chunks": sealedParts(Chunks, single...),
		"bytes":  sealedParts(Chunks, raw),
	} {
		if _, _, err := u.ReadHead(bhttp.ParseRequest); !errors.Is(err, wire.TooLarge) {
			t.Errorf("%s: got %v, want %v", name, err, wire.TooLarge)
		}
	}
}

// TestChunksOfOneOffs: a chunk that is changed, left out, moved or cut off does
// not open, and only the final one ends a message.
func TestChunksOfOneOffs(t *testing.T) {
	parts := [][]byte{[]byte("one"), []byte("two"), []byte("three")}
	whole := testworld.Must(io.ReadAll(sealedParts(Chunks, parts...).From))
	one, two := 1+3+tagSize, 2*(1+3+tagSize)
	change := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(whole)) }
	for _, c := range []struct {
		name string
		b    []byte
		want wire.Reason
	}{
		{"nothing", nil, wire.Truncated},
		{"without the final chunk", whole[:two], wire.Truncated},
		{"a cut chunk", whole[:two-1], wire.Truncated},
		{"a cut length", append(bytes.Clone(whole[:two]), 0x40), wire.Truncated},
		{"a final chunk cut to nothing", whole[:two+1], wire.BadSignature},
		{"a cut final chunk", whole[:len(whole)-1], wire.BadSignature},
		{"an inner chunk said to be the final one", append([]byte{0}, whole[1:one]...), wire.BadSignature},
		{"the final chunk said to be an inner one", change(func(b []byte) []byte { b[two] = byte(len(b) - two - 1); return b }), wire.BadSignature},
		{"chunks exchanged", change(func(b []byte) []byte { copy(b, whole[one:two]); copy(b[one:], whole[:one]); return b }), wire.BadSignature},
		{"one left out", whole[one:], wire.BadSignature},
		{"one repeated", append(bytes.Clone(whole[:one]), whole...), wire.BadSignature},
		{"more after the end", append(bytes.Clone(whole), 0), wire.BadSignature},
		{"a changed byte", change(func(b []byte) []byte { b[one+1] ^= 1; return b }), wire.BadSignature},
		{"a short chunk", []byte{15}, wire.TooLarge},
		{"a long chunk", []byte{0x80, 1, 0, 17}, wire.TooLarge},
		{"a long final chunk", make([]byte, 1+maxChunk+tagSize+1), wire.TooLarge},
	} {
		open := zeros()
		_, err := readAll(&Reader{Form: Chunks, From: bytes.NewReader(c.b), Open: open.Open})
		if got := wire.ReasonOf(err); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
	long := bytes.Clone(whole)
	long = append([]byte{0xc0, 0, 0, 0, 0, 0, 0, long[0]}, long[1:]...)
	open := zeros()
	if got, err := readAll(&Reader{Form: Chunks, From: bytes.NewReader(long), Open: open.Open}); err != nil || fmt.Sprintf("%s", got) != "[one two three]" {
		t.Errorf("a longer encoding of a length: got %s, %v", got, err)
	}
}

// TestLengthsOfChunks puts lengths at both ends of their range in the place of a chunk's.
func TestLengthsOfChunks(t *testing.T) {
	for _, length := range []uint64{1, tagSize - 1, maxChunk + tagSize + 1, 1<<30 - 1, 1<<32 - 1, 1<<62 - 1} {
		u := &Reader{Form: Chunks, From: bytes.NewReader(append(bhttp.AppendVarint(nil, length), make([]byte, 64)...)), Open: func([]byte, []byte) ([]byte, error) { return nil, nil }}
		if _, _, err := u.Next(); err == nil {
			t.Errorf("a chunk of %d bytes was taken", length)
		}
	}
}

// FuzzOneOffPlaintext: whatever stands in the chunks of a message, it is
// understood or refused.
func FuzzOneOffPlaintext(f *testing.F) {
	raw := testworld.Must(bhttp.AppendRequest(nil, bhttp.Head{Method: "GET", Scheme: "https", Authority: "a", Path: "/", Fields: http.Header{"A": {"b"}}, Length: 1}))
	f.Add(append(raw, 'x'), 7, 12)
	parts := testworld.Must(bhttp.AppendRequest(nil, bhttp.Head{Method: "GET", Scheme: "https", Authority: "a", Path: "/long", Fields: http.Header{"A": {"b"}}, Length: bhttp.Indeterminate}))
	f.Add(append(parts, "\x02hi\x00\x00"...), 10, 20)
	f.Fuzz(func(t *testing.T, b []byte, one, two int) {
		one = min(max(one, 0), len(b))
		two = min(max(two, one), len(b))
		u := sealedParts(Chunks, b[:one], b[one:two], b[two:])
		h, rest, err := u.ReadHead(bhttp.ParseRequest)
		if err != nil {
			return
		}
		whole, left, err := bhttp.ParseRequest(b, bhttp.Whole)
		if err != nil || whole.Path != h.Path || whole.Length != h.Length || len(whole.Fields) != len(h.Fields) {
			t.Errorf("in chunks: got %v, whole %v, %v", h, whole, err)
		}
		got, errChunks := io.ReadAll(bhttp.NewContent(&pieces{u}, h, rest))
		want, errWhole := io.ReadAll(bhttp.NewContent(&pieces{sealedParts(Whole, left)}, whole, nil))
		if !bytes.Equal(got, want) || (errChunks == nil) != (errWhole == nil) {
			t.Errorf("content in chunks: got %x, %v, whole %x, %v", got, errChunks, want, errWhole)
		}
	})
}
