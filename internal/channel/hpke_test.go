package channel

import (
	"bytes"
	"crypto/ecdh"
	"crypto/hpke"
	"encoding/hex"
	"testing"

	"github.com/cohort-tee/cohort/internal/testworld"
)

// TestExamplesOfRFC9180 opens the examples of RFC 9180, appendices A.1.1 and A.7.1, in base mode,
// the only mode in use here: with an AEAD, as for reports, and export-only, as for sessions.
func TestExamplesOfRFC9180(t *testing.T) {
	decode := func(s string) []byte { return testworld.Must(hex.DecodeString(s)) }
	for _, e := range []struct {
		name, key, enc string
		aead           hpke.AEAD
		sealed         []string // of "Beauty is truth, truth beauty" with "Count-0", "Count-1" …
		exports        [3]string
	}{
		{
			"A.1.1", "4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8",
			"37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431", hpke.AES128GCM(),
			[]string{
				"f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a96d8770ac83d07bea87e13c512a",
				"af2d7e9ac9ae7e270f46ba1f975be53c09f8d875bdc8535458c2494e8a6eab251c03d0c22a56b8ca42c2063b84",
			},
			[3]string{
				"3853fe2b4035195a573ffc53856e77058e15d9ea064de3e59f4961d0095250ee",
				"2e8f0b54673c7029649d4eb9d5e33bf1872cf76d623ff164ac185da9e88c21a5",
				"e9e43065102c3836401bed8c3c3c75ae46be1639869391d62c61f1ec7af54931",
			},
		},
		{
			"A.7.1", "33d196c830a12f9ac65d6e565a590d80f04ee9b19c83c87f2c170d972a812848",
			"e5e8f9bfff6c2f29791fc351d2c25ce1299aa5eaca78a757c0b4fb4bcd830918", hpke.ExportOnly(), nil,
			[3]string{
				"7a36221bd56d50fb51ee65edfd98d06a23c4dc87085aa5866cb7087244bd2a36",
				"d5535b87099c6c3ce80dc112a2671c6ec8e811a2f284f948cec6dd1708ee33f0",
				"ffaabc85a776136ca0c378e5d084c9140ab552b78f039d2e8775f26efff4c70e",
			},
		},
	} {
		key := testworld.Must(hpke.NewDHKEMPrivateKey(testworld.Must(ecdh.X25519().NewPrivateKey(decode(e.key)))))
		r, err := hpke.NewRecipient(decode(e.enc), key, hpke.HKDFSHA256(), e.aead, []byte("Ode on a Grecian Urn"))
		if err != nil {
			t.Fatal(err)
		}
		for i, sealed := range e.sealed {
			if got, err := r.Open([]byte{'C', 'o', 'u', 'n', 't', '-', '0' + byte(i)}, decode(sealed)); err != nil || string(got) != "Beauty is truth, truth beauty" {
				t.Errorf("%s, sequence number %d: got %q, %v", e.name, i, got, err)
			}
		}
		for i, context := range []string{"", "\x00", "TestContext"} {
			if got, err := r.Export(context, 32); err != nil || !bytes.Equal(got, decode(e.exports[i])) {
				t.Errorf("%s, exporter context %q: got %x, %v", e.name, context, got, err)
			}
		}
	}
}
