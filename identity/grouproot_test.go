package identity

import (
	"fmt"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestGroupKeys: the keys of a roster depend on its secret and its digest alone. A sealed secret
// opens for its own roster only.
func TestGroupKeys(t *testing.T) {
	roster, other := attest.Digest{1}, attest.Digest{2}
	keys := testworld.Must(DeriveGroup(secretOf(1), roster))
	if again := testworld.Must(OpenGroup(SealedGroup(secretOf(1), roster), roster)); again.RootDigest() != keys.RootDigest() || again.Roster() != roster {
		t.Errorf("got root %v of %v after sealing, want %v of %v", again.RootDigest(), again.Roster(), keys.RootDigest(), roster)
	}
	for name, k := range map[string]*GroupKeys{
		"another secret": testworld.Must(DeriveGroup(secretOf(2), roster)),
		"another roster": testworld.Must(DeriveGroup(secretOf(1), other)),
	} {
		if k.RootDigest() == keys.RootDigest() {
			t.Errorf("%s gives the same root", name)
		}
	}
	if root := testworld.Must(Derive(secretOf(1))).RootDigest(); root == keys.RootDigest() {
		t.Error("the authority root of the same secret is the group root")
	}
	if got := fmt.Sprintf("%v %+v %#v %x", keys, *keys, keys, *keys); got != "keys keys keys keys" {
		t.Errorf("got %q, want no byte of the secret", got)
	}
}

// TestOpenGroupRefuses: each malformed secret is refused with its own reason.
func TestOpenGroupRefuses(t *testing.T) {
	roster := attest.Digest{1}
	sealed := SealedGroup(secretOf(1), roster)
	for _, tt := range []struct {
		name   string
		plain  []byte
		roster attest.Digest
		want   attest.Reason
	}{
		{"the secret of another roster", sealed, attest.Digest{2}, wire.StoreForeign},
		{"the root secret of an authority", wire.Frame(wire.LabelRoot, secretOf(1).Expose(), roster[:]), roster, wire.Malformed},
		{"nothing", nil, roster, wire.Malformed},
		{"a byte more", append(sealed, 0), roster, wire.Malformed},
		{"a short secret", wire.Frame(wire.LabelGroupSecret, make([]byte, 31), roster[:]), roster, wire.StoreForeign},
		{"a secret of zeros", wire.Frame(wire.LabelGroupSecret, make([]byte, 32), roster[:]), roster, wire.StoreForeign},
		{"no roster", wire.Frame(wire.LabelGroupSecret, secretOf(1).Expose(), make([]byte, 32)), attest.Digest{}, wire.StoreForeign},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := OpenGroup(tt.plain, tt.roster)
			testworld.Refused(t, err, tt.want)
		})
	}
	_, err := DeriveGroup(Secret{}, roster)
	testworld.Refused(t, err, wire.StoreForeign)
}
