package chunk

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// sealed are the chunks of a message, one for each part.
func sealed(parts ...string) [][]byte {
	s := NewWriter(testworld.Must(newAES(make([]byte, 32))))
	var chunks [][]byte
	for i, part := range parts {
		at := More
		if i == len(parts)-1 {
			at = Final
		}
		chunks = append(chunks, s.SealChunk(append(make([]byte, LengthSize), part...), at))
	}
	return chunks
}

// unsealed reads a message of chunks to its end.
func unsealed(b []byte) (parts []string, err error) {
	o := NewReader(bytes.NewReader(b), testworld.Must(newAES(make([]byte, 32))), nil)
	for {
		part, _, err := o.Next()
		if err == io.EOF {
			return parts, nil
		}
		if err != nil {
			return parts, err
		}
		parts = append(parts, string(part))
	}
}

func TestChunks(t *testing.T) {
	want := []string{"one", "two", string(make([]byte, MaxPlaintext)), ""}
	got, err := unsealed(slices.Concat(sealed(want...)...))
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %d parts, %v, want %d", len(got), err, len(want))
	}
}

// TestLentBuffers: a buffer that is given back holds nothing of a message, whatever
// was in it.
func TestLentBuffers(t *testing.T) {
	c := sealed("a longer one", string(bytes.Repeat([]byte{1}, 1000)), "two")
	var pool Pool
	s := NewPlaintext(bytes.NewReader(slices.Concat(c...)), testworld.Must(newAES(make([]byte, 32))), &pool)
	for range c {
		testworld.Must(s.Next())
	}
	lent := s.opener.(*Reader).buf
	whole := lent.b[:cap(lent.b)]
	if bytes.Equal(whole, make([]byte, len(whole))) {
		t.Fatal("got zeros before it was given back, want plaintext")
	}
	s.opener.Release()
	if !bytes.Equal(whole, make([]byte, len(whole))) {
		t.Errorf("got %q, want zeros", bytes.Trim(whole, "\x00"))
	}
}

func TestChunkRefusals(t *testing.T) {
	c := sealed("one", "two", "three")
	elsewhere := NewWriter(testworld.Must(newAES(bytes.Repeat([]byte{1}, 32))))
	elsewhere.increment()
	other := elsewhere.SealChunk(append(make([]byte, LengthSize), "two"...), Final)
	early := bytes.Clone(c[1])
	early[0] |= 0x80
	long := append(make([]byte, LengthSize), make([]byte, MaxPlaintext+1)...)
	long = NewWriter(testworld.Must(newAES(make([]byte, 32)))).SealChunk(long, Final)
	for _, tt := range []struct {
		name   string
		chunks [][]byte
		want   wire.Reason
	}{
		{"nothing", nil, wire.Truncated},
		{"without the final chunk", c[:2], wire.Truncated},
		{"cut in a chunk", [][]byte{c[0], c[1], c[2][:9]}, wire.Truncated},
		{"cut in a length", [][]byte{c[0], c[1], c[2][:3]}, wire.Truncated},
		{"in another order", [][]byte{c[1], c[0], c[2]}, wire.BadSignature},
		{"one left out", [][]byte{c[0], c[2]}, wire.BadSignature},
		{"one twice", [][]byte{c[0], c[0], c[1], c[2]}, wire.BadSignature},
		{"the final one of a message with another key", [][]byte{c[0], other}, wire.BadSignature},
		{"an inner one said to be the final one", [][]byte{c[0], early}, wire.BadSignature},
		{"more after the final one", append(slices.Clone(c), []byte{0}), wire.Malformed},
		{"an empty inner one", sealed("", "x"), wire.BadSignature},
		{"one of more than 64 KiB", [][]byte{long}, wire.BadSignature},
		{"one without room for its tag", [][]byte{{0x80, 0, 0, 15}, make([]byte, 15)}, wire.BadSignature},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := unsealed(slices.Concat(tt.chunks...))
			testworld.Refused(t, err, tt.want)
		})
	}
}

// TestEveryByteOfAMessage flips every bit of every byte of a message.
func TestEveryByteOfAMessage(t *testing.T) {
	b := slices.Concat(sealed("first part", "second part")...)
	for i := range b {
		for bit := range 8 {
			bad := bytes.Clone(b)
			bad[i] ^= 1 << bit
			if parts, err := unsealed(bad); err == nil {
				t.Fatalf("byte %d, bit %d: read as %q", i, bit, parts)
			}
		}
	}
}

// TestReadErrorsAreTruncations keeps the cause of a stream that breaks.
func TestReadErrorsAreTruncations(t *testing.T) {
	cause := errors.New("connection reset")
	o := NewReader(io.MultiReader(bytes.NewReader(sealed("a", "b")[0]), errorReader{cause}), testworld.Must(newAES(make([]byte, 32))), nil)
	if _, _, err := o.Next(); err != nil {
		t.Fatal(err)
	}
	_, _, err := o.Next()
	if !errors.Is(err, cause) || !errors.Is(err, ErrTruncated) || wire.ReasonOf(err) != wire.Truncated {
		t.Errorf("got %v, want %v because of %v", err, ErrTruncated, cause)
	}
}

type errorReader struct{ err error }

func (r errorReader) Read([]byte) (int, error) { return 0, r.err }

func FuzzChunks(f *testing.F) {
	f.Add(slices.Concat(sealed("one", "two")...))
	f.Add([]byte{0x80, 0, 0, 16})
	f.Fuzz(func(t *testing.T, b []byte) {
		parts, err := unsealed(b)
		if err == nil && !bytes.Equal(slices.Concat(sealed(parts...)...), b) {
			t.Errorf("another encoding was read: %x", b)
		}
	})
}

func newAES(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
