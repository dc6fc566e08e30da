package systest

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/testworld"
)

// search finds secrets of at least 16 bytes: raw, in hexadecimal, in base64 at each of the
// three offsets in a group, and in the forms in which logs print bytes, quoted or number by
// number.
type search struct {
	first   [1 << 16]bool // index by the first two bytes of a pattern
	pattern map[[8]byte][]pattern
	longest int
}

// pattern is one encoding of a secret.
type pattern struct {
	text []byte
	name string
}

func newSearch() *search { return &search{pattern: map[[8]byte][]pattern{}} }

// add searches for a secret, whose findings it counts under a name.
func (s *search) add(name string, secret []byte) {
	s.text(name, "raw", bytes.Clone(secret))
	digits := hex.EncodeToString(secret)
	s.text(name, "hex", []byte(digits))
	s.text(name, "HEX", []byte(strings.ToUpper(digits)))
	for at := range 3 {
		s.text(name, fmt.Sprint("base64+", at), within(base64.RawStdEncoding, at, secret))
		s.text(name, fmt.Sprint("base64url+", at), within(base64.RawURLEncoding, at, secret))
	}
	quoted, numbers := strconv.Quote(string(secret)), strings.Trim(fmt.Sprint(secret), "[]")
	s.text(name, "quoted", []byte(quoted[1:len(quoted)-1]))
	s.text(name, "numbers", []byte(numbers))
	s.text(name, "JSON numbers", []byte(strings.ReplaceAll(numbers, " ", ",")))
}

// within returns the part of an encoding that depends on the secret alone, when the secret
// begins at offset at of a group of three bytes.
func within(e *base64.Encoding, at int, secret []byte) []byte {
	padded := append(make([]byte, at), secret...)
	encoded := e.EncodeToString(padded)
	return []byte(encoded[(8*at+5)/6 : 8*len(padded)/6])
}

// text searches for one encoding of a secret, unless another encoding has the same bytes.
func (s *search) text(name, form string, text []byte) {
	key := [8]byte(text)
	if slices.ContainsFunc(s.pattern[key], func(p pattern) bool { return bytes.Equal(p.text, text) }) {
		return
	}
	s.first[binary.LittleEndian.Uint16(text)] = true
	s.pattern[key] = append(s.pattern[key], pattern{text, name + " (" + form + ")"})
	s.longest = max(s.longest, len(text))
}

// found counts findings by name and form.
type found map[string]int

// of returns the number of findings of a secret in any form.
func (f found) of(name string) (n int) {
	for what, times := range f {
		if strings.HasPrefix(what, name+" (") {
			n += times
		}
	}
	return n
}

// in adds the findings in b.
func (s *search) in(b []byte, f found) {
	for i := 0; i+8 <= len(b); i++ {
		if !s.first[uint16(b[i])|uint16(b[i+1])<<8] {
			continue
		}
		for _, p := range s.pattern[[8]byte(b[i:])] {
			if bytes.HasPrefix(b[i:], p.text) {
				f[p.name]++
			}
		}
	}
}

// bytes returns the findings in b.
func (s *search) bytes(b []byte) found {
	f := found{}
	s.in(b, f)
	return f
}

// files returns the findings in all files below the directories.
func (s *search) files(t *testing.T, dirs ...string) found {
	t.Helper()
	f := found{}
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path)
			s.in(b, f)
			s.in([]byte(path), f)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// memory returns the findings in all readable memory of a process.
func (s *search) memory(t *testing.T, pid int) found {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	f, total := found{}, int64(0)
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var rights string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &rights); err != nil || rights[0] != 'r' {
			continue
		}
		total += s.region(io.NewSectionReader(memory, from, to-from), f)
	}
	if total < 1<<20 {
		t.Fatalf("process %d: %d bytes of memory could be read", pid, total)
	}
	return f
}

// region adds the findings in r up to the first read error, and returns the number of bytes
// read. A secret that spans two reads is counted once.
func (s *search) region(r io.Reader, f found) (total int64) {
	b := make([]byte, 1<<20)
	kept := 0
	for {
		n, err := r.Read(b[kept:])
		total += int64(n)
		s.in(b[:kept+n], f)
		if n == 0 || err != nil {
			return total
		}
		tail := b[max(0, kept+n-s.longest+1) : kept+n]
		for name, times := range s.bytes(tail) {
			f[name] -= times // the next read finds them again
		}
		kept = copy(b, tail)
	}
}

// TestSearch: a search finds a secret in each form and place, and no other secret.
func TestSearch(t *testing.T) {
	secret := []byte("0123456789abcdef\xf0\xfb\xff~~~>>>???????")
	s := newSearch()
	s.add("secret", secret)
	for at := range 4 {
		before, after := strings.Repeat("x", at), "yz"
		plain := before + string(secret) + after
		var numbers []int
		for _, b := range []byte(plain) {
			numbers = append(numbers, int(b))
		}
		for form, text := range map[string]string{
			"raw": plain, "hex": hex.EncodeToString([]byte(plain)), "HEX": strings.ToUpper(hex.EncodeToString([]byte(plain))),
			"quoted": strconv.Quote(plain), "numbers": fmt.Sprint([]byte(plain)), "JSON numbers": string(testworld.Must(json.Marshal(numbers))),
			"base64": base64.StdEncoding.EncodeToString([]byte(plain)), "base64url": base64.URLEncoding.EncodeToString([]byte(plain)),
		} {
			if n := s.bytes([]byte(text)).of("secret"); n != 1 {
				t.Errorf("%s at %d: found %d times, want 1", form, at, n)
			}
		}
	}
	secret[31] ^= 1
	if n := s.bytes(secret).of("secret"); n != 0 {
		t.Errorf("another secret: found %d times, want none", n)
	}
	f := found{}
	text := append(make([]byte, 1<<20-16), append([]byte("0123456789abcdef\xf0\xfb\xff~~~>>>???????"), make([]byte, 1<<20)...)...)
	if s.region(bytes.NewReader(text), f); f.of("secret") != 1 {
		t.Errorf("across two reads: found %d times, want 1", f.of("secret"))
	}
}
