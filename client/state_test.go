package client_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

func state(t testing.TB) []byte {
	w := newWorld(t, "1")
	w.adopt("1", "2")
	return w.fetch(nil).State().Bytes()
}

func TestParseState(t *testing.T) {
	good := state(t)
	s, err := client.ParseState(good)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(s.Bytes(), good) {
		t.Errorf("got %s, want %s", s.Bytes(), good)
	}
	if got := s.Policy().Document().Sequence; got != 2 {
		t.Errorf("got sequence %d, want 2", got)
	}
	if got := (client.State{}).Bytes(); got != nil {
		t.Errorf("the zero state: got %q, want nothing", got)
	}
}

func TestParseStateRefuses(t *testing.T) {
	good := string(state(t))
	replace := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("the good state has no %q", old)
		}
		return strings.Replace(good, old, new, 1)
	}
	head := testworld.Must(client.ParseState([]byte(good))).Policy().PolicyHead().Hex()
	tests := []struct {
		name, text string
		reason     error
	}{
		{"empty", "", wire.Malformed},
		{"not JSON", "{", wire.Malformed},
		{"another schema", replace("/v1", "/v2"), wire.Malformed},
		{"another genesis", replaceDigit(good, `"genesis":"sha256:`), wire.WrongGenesis},
		{"another head", strings.Replace(good, head, flip(head), 1), wire.Malformed},
		{"another sequence", replace(`"sequence":2`, `"sequence":3`), wire.Malformed},
		{"a space", replace(`,"head"`, `, "head"`), wire.Malformed},
		{"a field more", replace(`,"head"`, `,"more":1,"head"`), wire.Malformed},
		{"trailing byte", good + "\n", wire.Malformed},
		{"no step", good[:strings.Index(good, `"steps":`)] + `"steps":[]}`, wire.TooLarge},
		{"a signature less", replace(`"signatures":["`, `"signatures":[],"x":["`), wire.NoQuorum},
		{"too large", good + strings.Repeat(" ", wire.MaxResponse), wire.TooLarge},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, err := client.ParseState([]byte(tt.text))
			if got := wire.ReasonOf(err); got != tt.reason {
				t.Errorf("got %v, want reason %q", err, tt.reason)
			}
			if s.Policy().Genuine() {
				t.Error("got a state beside the error")
			}
		})
	}
}

// flip changes the first digit of a digest.
func flip(digits string) string {
	if digits[0] == '0' {
		return "1" + digits[1:]
	}
	return "0" + digits[1:]
}

func replaceDigit(s, before string) string {
	i := strings.Index(s, before) + len(before)
	return s[:i] + flip(s[i:])
}

func FuzzParseState(f *testing.F) {
	f.Add(state(f))
	f.Add([]byte(`{"schema":"cohort/client-state/v1"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := client.ParseState(b)
		if err == nil && !bytes.Equal(s.Bytes(), b) {
			t.Errorf("got %q, want what was read", s.Bytes())
		}
	})
}
