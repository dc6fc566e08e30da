package attesttest

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
)

// signList signs a revocation list with its issuer's key, under a different issuer name if
// an edit of the list sets one.
func signList(list *x509.RevocationList, issuer *x509.Certificate, key crypto.Signer) []byte {
	if name := list.Issuer; name.CommonName != "" {
		other := *issuer
		other.RawSubject, other.Subject = nil, name
		issuer = &other
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, issuer, key)
	if err != nil {
		panic(err) // templates of this package are valid
	}
	return der
}
