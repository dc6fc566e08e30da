package wire

import (
	"errors"
	"fmt"
	"testing"
)

func TestRefusalIsItsReason(t *testing.T) {
	err := fmt.Errorf("appraising: %w", Refuse(Debug, "debug", true, false))
	if !errors.Is(err, Debug) {
		t.Error("a wrapped refusal is not its reason")
	}
	if errors.Is(err, BadNonce) || errors.Is(err, errors.New("debug")) {
		t.Error("a refusal is something else too")
	}
	if got := ReasonOf(err); got != Debug {
		t.Errorf("got %v, want %v", got, Debug)
	}
}

func TestReasonOfOtherErrors(t *testing.T) {
	for _, err := range []error{nil, errors.New("disk on fire"), Debug} {
		if got := ReasonOf(err); got != Internal {
			t.Errorf("%v: got %v, want %v", err, got, Internal)
		}
	}
}

func TestRefusalText(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{Refuse(Debug, "debug", "on", "off"), `debug: debug: got "on", want "off"`},
		{Refuse(TooLarge, "size", 2, 1), `too-large: size: got "2", want "1"`},
		{Refuse(Internal, "rule", "", ""), `internal: rule`},
		{Refuse(Malformed, "name", "a\nb", ""), `malformed: name: got "a\nb"`},
	} {
		if got := c.err.Error(); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
	}
}
