package channel

import (
	"bytes"
	"crypto/hpke"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/wire"
)

// readVector reads one file of testdata/vectors.
func readVector(t testing.TB, name string) (v vector, bytesOf func(string) []byte) {
	t.Helper()
	if err := json.Unmarshal(must(os.ReadFile(filepath.Join("testdata", "vectors", name+".json"))), &v); err != nil {
		t.Fatal(err)
	}
	return v, func(field string) []byte {
		t.Helper()
		text, ok := v.In[field]
		if !ok {
			text, ok = v.Out[field]
		}
		if !ok {
			t.Fatalf("%s has no %s", name, field)
		}
		return must(hex.DecodeString(text))
	}
}

// readAll reads the chunks of a message.
func readAll(u *uncutter) (parts [][]byte, err error) {
	for {
		b, _, err := u.next()
		if err == io.EOF {
			return parts, nil
		}
		if err != nil {
			return parts, err
		}
		parts = append(parts, b)
	}
}

// TestExamplesOfOHTTP holds the code to the examples of RFC 9458, appendix A, and
// of the draft of its chunks: what is said in them is understood, and the answer
// is sealed to the same bytes. The secret that a sender encapsulates is random,
// so that ours is opened instead.
func TestExamplesOfOHTTP(t *testing.T) {
	for _, c := range []struct {
		name string
		form form
	}{{"ohttp-rfc9458", wholeForm}, {"ohttp-chunked-draft", chunkForm}} {
		t.Run(c.name, func(t *testing.T) {
			_, bytesOf := readVector(t, c.name)
			one := bytesOf("key_configuration")
			keys := must(UnverifiedOneOffKeys(append(binary.BigEndian.AppendUint16(nil, uint16(len(one))), one...)))
			private := must(kems[1].NewPrivateKey(bytesOf("private_key")))
			if got := keys.key.capsule; got != (capsule{1, 0x0020, 1, 1}) || !bytes.Equal(keys.key.public.Bytes(), private.PublicKey().Bytes()) {
				t.Errorf("got key %v", got)
			}
			request := bytesOf("encapsulated_request")
			header, enc := parseCapsule([7]byte(request)), request[7:39]
			recipient := must(hpke.NewRecipient(enc, private, hpke.HKDFSHA256(), hpke.AES128GCM(), c.form.info(header)))
			u := &uncutter{r: bytes.NewReader(request[39:]), form: c.form, open: recipient.Open}
			parts, err := readAll(u)
			if got := bytes.Join(parts, nil); err != nil || !bytes.Equal(got, bytesOf("request")) {
				t.Errorf("request: got %x, %v", got, err)
			}
			nonce := bytesOf("response_nonce")
			seal := must(c.form.answerCipher(recipient.Export, header, enc, nonce))
			out, answer := &cutter{form: c.form, seal: seal.seal}, nonce
			for i, at := range []place{inner, inner, final} { // the draft's example has three chunks
				part := bytesOf("response")
				switch {
				case !c.form.chunked && i < 2:
					continue
				case c.form.chunked && i < 2:
					part = part[i : i+1+i]
				case c.form.chunked:
					part = nil
				}
				answer = append(answer, must(out.add(part, at))...)
			}
			if want := bytesOf("encapsulated_response"); !bytes.Equal(answer, want) {
				t.Errorf("answer: got %x, want %x", answer, want)
			}
			open := must(c.form.answerCipher(recipient.Export, header, enc, nonce))
			parts, err = readAll(&uncutter{r: bytes.NewReader(answer[len(nonce):]), form: c.form, open: open.open})
			if got := bytes.Join(parts, nil); err != nil || !bytes.Equal(got, bytesOf("response")) {
				t.Errorf("opened answer: got %x, %v", got, err)
			}
			theirs(t, c.form, keys, private)
		})
	}
}

// theirs opens, with the private key of an example, what our client sends for its
// key configuration.
func theirs(t *testing.T, f form, keys OneOffKeys, private hpke.PrivateKey) {
	t.Helper()
	o := must(NewOneOffs(OneOffConfig{URL: noGateway, Inner: http.DefaultTransport, Keys: keys, Whole: !f.chunked}))
	sent := must(io.ReadAll(must(o.encapsulate(must(http.NewRequest(http.MethodGet, "https://example.com/", nil))))))
	header := parseCapsule([7]byte(sent))
	recipient := must(hpke.NewRecipient(sent[7:39], private, hpke.HKDFSHA256(), hpke.AES128GCM(), f.info(header)))
	h, _, err := (&uncutter{r: bytes.NewReader(sent[39:]), form: f, open: recipient.Open}).head((*parser).request)
	if err != nil || h.method != "GET" || h.authority != "example.com" || h.path != "/" {
		t.Errorf("our request: got %v, %v", h, err)
	}
}

// sealedParts is a message whose plaintext stands in these chunks, for a cipher
// of zeros, with its reader.
func sealedParts(f form, parts ...[]byte) *uncutter {
	var b []byte
	seal, open := &answerCipher{aead: must(newAEAD(make([]byte, 32)))}, &answerCipher{aead: must(newAEAD(make([]byte, 32)))}
	c := &cutter{form: f, seal: seal.seal}
	for i, part := range parts {
		at := inner
		if i == len(parts)-1 {
			at = final
		}
		b = append(b, must(c.add(part, at))...)
	}
	return &uncutter{r: bytes.NewReader(b), form: f, open: open.open}
}

// TestHeadsAcrossChunks: wherever chunks cut a head, it is understood, and what
// may be left out at a message's end may not be before.
func TestHeadsAcrossChunks(t *testing.T) {
	for name, raw := range map[string][]byte{
		"known":         must(appendRequest(nil, head{method: "GET", scheme: "https", authority: "a.example", path: "/p", fields: http.Header{"A": {"b"}}, length: 3})),
		"indeterminate": append(must(appendRequest(nil, head{method: "GET", scheme: "https", authority: "a.example", path: "/p", fields: http.Header{"A": {"b"}}, length: indeterminate})), 3),
	} {
		t.Run(name, func(t *testing.T) {
			whole := append(bytes.Clone(raw), "abc"...)
			for cut := range len(whole) + 1 {
				for other := cut; other <= len(whole); other++ {
					u := sealedParts(chunkForm, whole[:cut], whole[cut:other], whole[other:])
					h, rest, err := u.head((*parser).request)
					if err != nil {
						t.Fatalf("cut at %d and %d: %v", cut, other, err)
					}
					content, err := io.ReadAll(newContent(&source{opener: u}, h, rest))
					if h.path != "/p" || h.fields.Get("A") != "b" || string(content) != "abc" || err != nil {
						t.Fatalf("cut at %d and %d: got %v %q, %v", cut, other, h, content, err)
					}
				}
			}
		})
	}
}

func TestHeadsThatAreTooLong(t *testing.T) {
	raw := must(appendRequest(nil, head{method: "GET", path: "/" + strings.Repeat("p", 2*maxPlaintext)}))
	var single [][]byte
	for _, b := range raw[:maxHeads+1] {
		single = append(single, []byte{b})
	}
	for name, u := range map[string]*uncutter{
		"chunks": sealedParts(chunkForm, single...),
		"bytes":  sealedParts(chunkForm, raw),
	} {
		if _, _, err := u.head((*parser).request); !errors.Is(err, wire.TooLarge) {
			t.Errorf("%s: got %v, want %v", name, err, wire.TooLarge)
		}
	}
}

// TestChunksOfOneOffs: a chunk that is changed, left out, moved or cut off does
// not open, and only the final one ends a message.
func TestChunksOfOneOffs(t *testing.T) {
	parts := [][]byte{[]byte("one"), []byte("two"), []byte("three")}
	whole := must(io.ReadAll(sealedParts(chunkForm, parts...).r))
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
		{"a long final chunk", make([]byte, 1+maxPlaintext+tagSize+1), wire.TooLarge},
	} {
		open := &answerCipher{aead: must(newAEAD(make([]byte, 32)))}
		_, err := readAll(&uncutter{r: bytes.NewReader(c.b), form: chunkForm, open: open.open})
		if got := wire.ReasonOf(err); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
	long := bytes.Clone(whole)
	long = append([]byte{0xc0, 0, 0, 0, 0, 0, 0, long[0]}, long[1:]...)
	open := &answerCipher{aead: must(newAEAD(make([]byte, 32)))}
	if got, err := readAll(&uncutter{r: bytes.NewReader(long), form: chunkForm, open: open.open}); err != nil || fmt.Sprintf("%s", got) != "[one two three]" {
		t.Errorf("a longer encoding of a length: got %s, %v", got, err)
	}
}
