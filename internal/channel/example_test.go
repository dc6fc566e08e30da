package channel_test

import (
	"bytes"
	"crypto/hpke"
	"fmt"
)

// A KEM with a bound transcript from RFC 9180: base mode, export only.
func Example_kem() {
	key, _ := hpke.MLKEM768X25519().GenerateKey()
	enc, sender, _ := hpke.NewSender(key.PublicKey(), hpke.HKDFSHA256(), hpke.ExportOnly(), []byte("info"))
	recipient, _ := hpke.NewRecipient(enc, key, hpke.HKDFSHA256(), hpke.ExportOnly(), []byte("info"))
	one, _ := sender.Export("secret", 32)
	two, _ := recipient.Export("secret", 32)
	fmt.Println(len(key.PublicKey().Bytes()), len(enc), bytes.Equal(one, two))
	// Output: 1216 1120 true
}
