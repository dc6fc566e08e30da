package bhttp

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"maps"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// The examples of RFC 9292, section 5, and RFC 9458, appendix A.
const (
	rfcKnownRequest = `00034745 54056874 74707300 0a2f6865 6c6c6f2e 74787440 6c0a7573 65722d61
		67656e74 34637572 6c2f372e 31362e33 206c6962 6375726c 2f372e31 362e3320 4f70656e 53534c2f 302e392e 376c207a
		6c69622f 312e322e 3304686f 73740f77 77772e65 78616d70 6c652e63 6f6d0f61 63636570 742d6c61 6e677561 67650665
		6e2c206d 690000`
	rfcIndeterminateRequest = `02034745 54056874 74707300 0a2f6865 6c6c6f2e 7478740a 75736572 2d616765
		6e743463 75726c2f 372e3136 2e33206c 69626375 726c2f37 2e31362e 33204f70 656e5353 4c2f302e 392e376c 207a6c69
		622f312e 322e3304 686f7374 0f777777 2e657861 6d706c65 2e636f6d 0f616363 6570742d 6c616e67 75616765 06656e2c
		206d6900 00000000 00000000 00000000`
	rfcInformational = `03406607 72756e6e 696e670a 22736c65 65702031 35220040 67046c69 6e6b233c
		2f737479 6c652e63 73733e3b 2072656c 3d707265 6c6f6164 3b206173 3d737479 6c65046c 696e6b24 3c2f7363 72697074
		2e6a733e 3b207265 6c3d7072 656c6f61 643b2061 733d7363 72697074 0040c804 64617465 1d4d6f6e 2c203237 204a756c
		20323030 39203132 3a32383a 35332047 4d540673 65727665 72064170 61636865 0d6c6173 742d6d6f 64696669 65641d57
		65642c20 3232204a 756c2032 30303920 31393a31 353a3536 20474d54 04657461 67142233 34616133 38372d64 2d313536
		38656230 30220d61 63636570 742d7261 6e676573 05627974 65730e63 6f6e7465 6e742d6c 656e6774 68023531 04766172
		790f4163 63657074 2d456e63 6f64696e 670c636f 6e74656e 742d7479 70650a74 6578742f 706c6169 6e003348 656c6c6f
		20576f72 6c642120 4d792063 6f6e7465 6e742069 6e636c75 64657320 61207472 61696c69 6e672043 524c462e 0d0a0000`
	rfcTrailer = `0140c800 1d546869 7320636f 6e74656e 7420636f 6e746169 6e732043 524c462e 0d0a0d07 74726169 6c657204 74657874`
)

func unhex(s string) []byte {
	return testworld.Must(hex.DecodeString(strings.Join(strings.Fields(s), "")))
}

// message is a whole message as it is understood.
type message struct {
	Head
	content string
	trailer http.Header
}

// pieces are a message, in chunks that were decrypted.
type pieces [][]byte

func (p *pieces) Next() ([]byte, error) {
	if len(*p) == 0 {
		return nil, io.EOF
	}
	next := (*p)[0]
	*p = (*p)[1:]
	return next, nil
}

func (p *pieces) Done() bool { return len(*p) == 0 }
func (p *pieces) Release()   {}

// understand reads a message in chunks; the head lies in the first.
func understand(parse Parse, parts ...[]byte) (message, error) {
	h, c, err := begun(parse, parts...)
	if err != nil {
		return message{}, err
	}
	content, err := io.ReadAll(c)
	return message{h, string(content), c.trailer}, err
}

// begun is a message in chunks of which the head was read.
func begun(parse Parse, parts ...[]byte) (Head, *Content, error) {
	s := (*pieces)(&parts)
	first, err := s.Next()
	if err != nil {
		return Head{}, nil, err
	}
	h, rest, err := parse(first, Whole)
	return h, NewContent(s, h, rest), err
}

func TestExamplesOfRFC9292(t *testing.T) {
	curl := http.Header{"User-Agent": {"curl/7.16.3 libcurl/7.16.3 OpenSSL/0.9.7l zlib/1.2.3"}, "Host": {"www.example.com"}, "Accept-Language": {"en, mi"}}
	apache := http.Header{
		"Date": {"Mon, 27 Jul 2009 12:28:53 GMT"}, "Server": {"Apache"}, "Last-Modified": {"Wed, 22 Jul 2009 19:15:56 GMT"},
		"Etag": {`"34aa387-d-1568eb00"`}, "Accept-Ranges": {"bytes"}, "Content-Length": {"51"}, "Vary": {"Accept-Encoding"}, "Content-Type": {"text/plain"},
	}
	get := Head{Method: "GET", Scheme: "https", Path: "/hello.txt", Fields: curl}
	unknown := get
	unknown.Length = Indeterminate
	bare := Head{Method: "GET", Scheme: "https", Authority: "example.com", Path: "/", Fields: http.Header{}}
	for _, c := range []struct {
		name  string
		bytes string
		cut   int // bytes that may be left out at the end
		parse Parse
		want  message
	}{
		{"figure 8", rfcKnownRequest, 2, ParseRequest, message{Head: get}},
		{"figure 9", rfcIndeterminateRequest, 12, ParseRequest, message{Head: unknown}},
		{"figure 11", rfcInformational, 2, ParseResponse, message{Head{Status: 200, Fields: apache, Length: Indeterminate}, "Hello World! My content includes a trailing CRLF.\r\n", nil}},
		{"figure 13", rfcTrailer, 0, ParseResponse, message{Head{Status: 200, Fields: http.Header{}, Length: 29}, "This content contains CRLF.\r\n", http.Header{"Trailer": {"text"}}}},
		{"RFC 9458 request", "00034745540568747470730b6578616d706c652e636f6d012f", 0, ParseRequest, message{Head: bare}},
		{"RFC 9458 response", "0140c8", 0, ParseResponse, message{Head: Head{Status: 200, Fields: http.Header{}}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := unhex(c.bytes)
			for cut := range c.cut + 1 {
				got, err := understand(c.parse, b[:len(b)-cut])
				if err != nil {
					t.Fatalf("without %d bytes: %v", cut, err)
				}
				same(t, got, c.want)
			}
			if c.cut > 0 {
				if _, err := understand(c.parse, b[:len(b)-c.cut-1]); !errors.Is(err, wire.Malformed) {
					t.Errorf("without %d bytes: got %v, want %v", c.cut+1, err, wire.Malformed)
				}
			}
		})
	}
}

// same compares messages; an absent header is an empty one.
func same(t *testing.T, got, want message) {
	t.Helper()
	g, w := got.Head, want.Head
	if g.Method != w.Method || g.Scheme != w.Scheme || g.Authority != w.Authority || g.Path != w.Path || g.Status != w.Status || g.Length != w.Length {
		t.Errorf("got %+v, want %+v", g, w)
	}
	if got.content != want.content {
		t.Errorf("got content %q, want %q", got.content, want.content)
	}
	for what, pair := range map[string][2]http.Header{"fields": {g.Fields, w.Fields}, "trailer": {got.trailer, want.trailer}} {
		if !maps.EqualFunc(pair[0], pair[1], slices.Equal) {
			t.Errorf("got %s %v, want %v", what, pair[0], pair[1])
		}
	}
}

// TestMessagesInPieces reads a message that is cut into chunks at every place
// behind its head.
func TestMessagesInPieces(t *testing.T) {
	for name, b := range map[string][]byte{"indeterminate": unhex(rfcInformational), "known": unhex(rfcTrailer)} {
		want := testworld.Must(understand(ParseResponse, b))
		_, rest, err := ParseResponse(b, Whole)
		if err != nil {
			t.Fatal(err)
		}
		for at := len(b) - len(rest); at < len(b); at++ {
			got, err := understand(ParseResponse, b[:at], b[at:])
			if err != nil {
				t.Fatalf("%s, cut at %d: %v", name, at, err)
			}
			same(t, got, want)
		}
	}
}

// TestWrittenAsRead: content that is written is what is read, and ends alike,
// wherever its message is cut into chunks, and cut off.
func TestWrittenAsRead(t *testing.T) {
	for name, b := range map[string][]byte{"indeterminate": unhex(rfcInformational), "known": unhex(rfcTrailer)} {
		_, rest, err := ParseResponse(b, Whole)
		if err != nil {
			t.Fatal(err)
		}
		for at := len(b) - len(rest); at <= len(b); at++ {
			for end := at; end <= len(b); end++ {
				want, wantErr := understand(ParseResponse, b[:at], b[at:end])
				h, c, err := begun(ParseResponse, b[:at], b[at:end])
				if err != nil {
					t.Fatal(err)
				}
				var got strings.Builder
				n, err := c.WriteTo(&got)
				if wire.ReasonOf(err) != wire.ReasonOf(wantErr) || (err == nil) != (wantErr == nil) || n != int64(got.Len()) {
					t.Errorf("%s, cut at %d and off at %d: got %d of %d bytes, %v, want %v", name, at, end, n, got.Len(), err, wantErr)
				}
				same(t, message{h, got.String(), c.trailer}, want)
			}
		}
	}
}

// short takes some bytes and no more.
type short struct{ left int }

func (s *short) Write(p []byte) (int, error) {
	n := min(len(p), s.left)
	s.left -= n
	if n < len(p) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

// TestWrittenInPart: what a writer does not take is read after it.
func TestWrittenInPart(t *testing.T) {
	b := unhex(rfcTrailer)
	want := testworld.Must(understand(ParseResponse, b)).content
	for size := range len(want) {
		_, c, err := begun(ParseResponse, b)
		if err != nil {
			t.Fatal(err)
		}
		n, err := c.WriteTo(&short{size})
		if n != int64(size) || err != io.ErrShortWrite {
			t.Errorf("got %d bytes, %v, want %d and an error", n, err, size)
		}
		if got, err := io.ReadAll(c); err != nil || string(got) != want[size:] {
			t.Errorf("after %d bytes: got %q, %v, want %q", size, got, err, want[size:])
		}
	}
}

var update = flag.Bool("update", false, "write what is read of the accepted messages anew")

// vectors is testdata/vectors/messages.json. Bytes are hexadecimal.
type vectors struct {
	Accepted []accepted `json:"accepted"`
	Refused  []struct {
		Name    string      `json:"name"`
		Kind    string      `json:"kind"` // request or response
		Message string      `json:"message"`
		Reason  wire.Reason `json:"reason"`
	} `json:"refused"`
}

type accepted struct {
	Name    string `json:"name"`
	Kind    string `json:"kind"`
	Message string `json:"message"`
	Head    struct {
		Method    string      `json:"method,omitempty"`
		Scheme    string      `json:"scheme,omitempty"`
		Authority string      `json:"authority,omitempty"`
		Path      string      `json:"path,omitempty"`
		Status    int         `json:"status,omitempty"`
		Fields    http.Header `json:"fields"` // names in lower case
		Length    int64       `json:"length"` // of the content; -1: not known
	} `json:"head"`
	Content string      `json:"content"`
	Trailer http.Header `json:"trailer"`
}

// lower returns a header with names in lower case.
func lower(h http.Header) http.Header {
	out := http.Header{}
	for name, values := range h {
		out[strings.ToLower(name)] = values
	}
	return out
}

// TestVectors: every message of the vectors is read as they say, or refused with its reason.
func TestVectors(t *testing.T) {
	const path = "testdata/vectors/messages.json"
	var v vectors
	testworld.Must(0, json.Unmarshal(testworld.Must(os.ReadFile(path)), &v))
	parses := map[string]Parse{"request": ParseRequest, "response": ParseResponse}
	for i, c := range v.Accepted {
		got, err := understand(parses[c.Kind], unhex(c.Message))
		if err != nil {
			t.Errorf("%s: %v", c.Name, err)
			continue
		}
		read := accepted{Name: c.Name, Kind: c.Kind, Message: c.Message, Content: hex.EncodeToString([]byte(got.content)), Trailer: lower(got.trailer)}
		read.Head.Method, read.Head.Scheme, read.Head.Authority, read.Head.Path = got.Method, got.Scheme, got.Authority, got.Path
		read.Head.Status, read.Head.Fields, read.Head.Length = got.Status, lower(got.Fields), got.Length
		if *update {
			v.Accepted[i] = read
		} else if !reflect.DeepEqual(read, c) {
			t.Errorf("%s: got %+v, want %+v", c.Name, read, c)
		}
	}
	for _, c := range v.Refused {
		t.Run(c.Name, func(t *testing.T) {
			_, err := understand(parses[c.Kind], unhex(c.Message))
			testworld.Refused(t, err, c.Reason)
		})
	}
	if *update {
		testworld.Must(0, os.WriteFile(path, append(testworld.Must(json.MarshalIndent(v, "", "  ")), '\n'), 0o644))
	}
}

func TestTrailersTooLarge(t *testing.T) {
	_, err := understand(ParseResponse, unhex("0140c80000"), AppendVarint(nil, MaxTrailers+1))
	testworld.Refused(t, err, wire.TooLarge)
}

func TestEncodingRefusals(t *testing.T) {
	good := Head{Method: "GET", Scheme: "https", Authority: "a", Path: "/"}
	for name, edit := range map[string]func(*Head){
		"no method":               func(h *Head) { h.Method = "" },
		"a space in the path":     func(h *Head) { h.Path = "/ " },
		"a break in a value":      func(h *Head) { h.Fields = http.Header{"A": {"b\r\nc"}} },
		"a space in a field name": func(h *Head) { h.Fields = http.Header{"A b": {"c"}} },
		"a space around a value":  func(h *Head) { h.Fields = http.Header{"A": {"b "}} },
	} {
		h := good
		edit(&h)
		if _, err := AppendRequest(nil, h); wire.ReasonOf(err) != wire.BadRequest {
			t.Errorf("%s: got %v, want %v", name, err, wire.BadRequest)
		}
	}
}

func TestVarintBoundaries(t *testing.T) {
	for v, want := range map[uint64]string{
		0: "00", 63: "3f", 64: "4040", 16383: "7fff", 16384: "80004000", 1<<30 - 1: "bfffffff", 1 << 30: "c000000040000000", 1<<62 - 1: "ffffffffffffffff",
	} {
		b := AppendVarint(nil, v)
		if got := hex.EncodeToString(b); got != want {
			t.Errorf("%d: got %s, want %s", v, got, want)
		}
		if got, rest, err := parseVarint(append(b, 7)); err != nil || got != v || len(rest) != 1 {
			t.Errorf("%d: got %d, %x, %v", v, got, rest, err)
		}
	}
}

// FuzzBinaryHTTP holds that whatever is read is written to bytes that are read
// as the same.
func FuzzBinaryHTTP(f *testing.F) {
	for _, s := range []string{rfcKnownRequest, rfcIndeterminateRequest, rfcInformational, rfcTrailer, "0140c8"} {
		f.Add(unhex(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 32<<10 {
			return
		}
		for _, side := range []struct {
			parse  Parse
			append func([]byte, Head) ([]byte, error)
		}{{ParseRequest, AppendRequest}, {ParseResponse, AppendResponse}} {
			got, err := understand(side.parse, b)
			if err != nil {
				if !errors.Is(err, wire.Malformed) && !errors.Is(err, wire.TooLarge) {
					t.Fatalf("got %v", err)
				}
				continue
			}
			host := got.Fields["Host"] // enters control data, not fields
			delete(got.Fields, "Host")
			delete(got.trailer, "Host")
			again, err := side.append(nil, got.Head)
			if err != nil {
				t.Fatalf("writing what was read: %v (host %q)", err, host)
			}
			if got.Length == Indeterminate {
				if got.content != "" {
					again = appendString(again, got.content)
				}
				again = append(again, 0)
			} else {
				again = append(again, got.content...)
			}
			again, err = AppendTrailers(again, got.trailer, got.Length)
			if err != nil {
				t.Fatal(err)
			}
			second, err := understand(side.parse, again)
			if err != nil {
				t.Fatalf("reading what was written: %v", err)
			}
			same(t, second, got)
		}
	})
}
