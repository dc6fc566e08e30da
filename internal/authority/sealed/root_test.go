package sealed

import (
	"bytes"
	"testing"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestSealedRootForm: bytes that are no sealed root are refused.
func TestSealedRootForm(t *testing.T) {
	secret, draft := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	if _, got, err := openRoot(wire.Frame(wire.LabelRoot, secret, draft)); err != nil || !bytes.Equal(got[:], draft) {
		t.Errorf("got draft %v, %v, want the one that was sealed", got, err)
	}
	for _, row := range []struct {
		plain []byte
		want  wire.Reason
	}{
		{nil, wire.Malformed},
		{secret, wire.RootUnbound},
		{wire.Frame(wire.LabelRoot, secret), wire.Malformed},
		{wire.Frame(wire.LabelRoot, secret, draft, nil), wire.Malformed},
		{wire.Frame(wire.LabelRoot, secret, draft[:31]), wire.Malformed},
		{wire.Frame(wire.LabelRoot, secret, make([]byte, 32)), wire.Malformed},
		{wire.Frame(wire.LabelRoot, make([]byte, 32), draft), wire.StoreForeign},
		{wire.Frame(wire.LabelShare, secret, draft), wire.Malformed},
	} {
		_, _, err := openRoot(row.plain)
		testworld.Refused(t, err, row.want)
	}
}
