package bhttp

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// unending is a message that ends without saying so.
type unending struct{ pieces }

func (*unending) Done() bool { return false }

// TestLengthsOfParts puts lengths at both ends of their range in the place of each length of
// a message: it is refused, and no memory is taken for bytes that do not come.
func TestLengthsOfParts(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, length := range []uint64{1<<6 - 1, 1 << 6, 1<<14 - 1, 1 << 14, 1<<30 - 1, 1 << 30, 1<<32 - 1, 1<<62 - 1} {
		request := append([]byte{0}, AppendVarint(nil, length)...)
		if _, _, err := ParseRequest(append(request, "GET"...), Whole); err == nil {
			t.Errorf("a method of %d bytes was read", length)
		}
		good := testworld.Must(AppendRequest(nil, Head{Method: "POST", Scheme: "https", Path: "/", Length: 0}))
		h, rest, err := ParseRequest(append(AppendVarint(bytes.Clone(good[:len(good)-1]), length), 'x'), Whole)
		if err != nil {
			continue
		}
		c := NewContent(&unending{}, h, rest)
		if b, err := io.ReadAll(c); err == nil || len(b) > 1 {
			t.Errorf("content of %d bytes, of which one came: got %d bytes, %v", length, len(b), err)
		}
		for _, section := range [][]byte{AppendVarint(nil, length), append([]byte{1, 'a'}, AppendVarint(nil, length)...)} {
			c := &Content{chunks: &unending{}, buf: section, known: section[0] != 1}
			if err := c.trailers(); err == nil {
				t.Errorf("trailers of %d bytes were read", length)
			}
		}
	}
	runtime.ReadMemStats(&after)
	if taken := after.TotalAlloc - before.TotalAlloc; taken > 64<<20 {
		t.Errorf("took %d bytes of memory", taken)
	}
}

// TestContentLengths has the content-length of requests and responses beside their
// framing: it is the length, or refused.
func TestContentLengths(t *testing.T) {
	for _, c := range []struct {
		name, method string
		status       int
		framing      int64
		said         []string
		content      string
		length       int64 // -2: refused at the head
		end          bool  // the content ends in order
	}{
		{"none", "GET", 200, 2, nil, "hi", 2, true},
		{"the same", "GET", 200, 2, []string{"2"}, "hi", 2, true},
		{"another", "GET", 200, 2, []string{"5"}, "hi", -2, false},
		{"twice", "GET", 200, 2, []string{"2", "2"}, "hi", -2, false},
		{"not in its only form", "GET", 200, 2, []string{"02"}, "hi", -2, false},
		{"no number", "GET", 200, 2, []string{"x"}, "hi", -2, false},
		{"2^62", "GET", 200, Indeterminate, []string{"4611686018427387904"}, "hi", -2, false},
		{"in parts, none", "GET", 200, Indeterminate, nil, "hi", Indeterminate, true},
		{"in parts, the same", "GET", 200, Indeterminate, []string{"2"}, "hi", 2, true},
		{"in parts, more", "GET", 200, Indeterminate, []string{"3"}, "hi", 3, false},
		{"in parts, less", "GET", 200, Indeterminate, []string{"1"}, "hi", 1, false},
		{"of a HEAD", "HEAD", 200, 0, []string{"5"}, "", 5, true},
		{"of what has not changed", "GET", 304, 0, []string{"5"}, "", 5, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := Head{Status: c.status, Fields: http.Header{}, Length: c.framing}
			if c.said != nil {
				h.Fields["Content-Length"] = c.said
			}
			rest := []byte(c.content)
			if c.framing == Indeterminate {
				rest = append(AppendVarint(nil, uint64(len(rest))), rest...)
			}
			body := NewContent(&pieces{}, h, rest)
			r, err := h.Response(testworld.Must(http.NewRequest(c.method, "https://scoring.example", nil)), body)
			if c.length == -2 {
				testworld.Refused(t, err, wire.Malformed)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			_, err = io.ReadAll(r.Body)
			if r.ContentLength != c.length || (err == nil) != c.end || err != nil && wire.ReasonOf(err) != wire.Malformed {
				t.Errorf("got length %d and an end in %v, want %d, in order: %v", r.ContentLength, err, c.length, c.end)
			}
		})
	}
}

// TestHosts: the authority of a request stands in its control data; a host field says
// the same, or stands for one that is not there.
func TestHosts(t *testing.T) {
	for _, c := range []struct {
		authority string
		fields    []string
		want      string // empty: refused
	}{
		{"a", nil, "a"},
		{"a", []string{"a"}, "a"},
		{"", []string{"b"}, "b"},
		{"a", []string{"b"}, ""},
		{"", []string{"a", "b"}, ""},
		{"a", []string{"a", "a"}, ""},
	} {
		h := Head{Method: "GET", Scheme: "https", Authority: c.authority, Path: "/", Fields: http.Header{}}
		if c.fields != nil {
			h.Fields["Host"] = c.fields
		}
		r, err := h.Request(httptest.NewRequest("GET", "https://scoring.example", nil), &pieces{}, nil)
		if c.want == "" {
			testworld.Refused(t, err, wire.Malformed)
		} else if err != nil || r.Host != c.want {
			t.Errorf("authority %q, host %q: got %v, %v, want %q", c.authority, c.fields, r, err, c.want)
		}
	}
}
