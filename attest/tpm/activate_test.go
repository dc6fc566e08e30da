package tpm

import (
	"bytes"
	"testing"

	"github.com/cohort-tee/cohort/internal/wire"
)

// TestKeep: after a restart, a device opens a credential that was made for its earlier key. Keys
// of another TPM, and malformed keys, open nothing.
func TestKeep(t *testing.T) {
	s := newScene(t)
	first, other := s.launch("agent", "one"), newScene(t).launch("agent", "one")
	in := first.TPMKeys()
	want := secret(in)
	credential, err := new(quoteAppraiser).Credential(in, want)
	if err != nil {
		t.Fatal(err)
	}
	later := s.launch("agent", "one")
	if got, err := later.ActivateCredential(t.Context(), first.ExportKey(), credential); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %x, %v, want %x", got, err, want)
	}
	changed := bytes.Clone(first.ExportKey())
	changed[len(changed)-1] ^= 1 // the key's authorization value
	for _, r := range []struct {
		name             string
		by               *Device
		kept, credential []byte
		want             wire.Reason
	}{
		{"a later start's own key", later, later.ExportKey(), credential, wire.WrongChip},
		{"another TPM with the key", other, first.ExportKey(), credential, wire.WrongChip},
		{"another TPM's key", later, other.ExportKey(), credential, wire.WrongChip},
		{"another authorization", later, changed, credential, wire.WrongChip},
		{"no key", later, nil, credential, wire.Malformed},
		{"no credential", later, first.ExportKey(), nil, wire.Malformed},
	} {
		if got, err := r.by.ActivateCredential(t.Context(), r.kept, r.credential); wire.ReasonOf(err) != r.want || got != nil {
			t.Errorf("%s: got %x, %v, want %s", r.name, got, err, r.want)
		}
	}
}
