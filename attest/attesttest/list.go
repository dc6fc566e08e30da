package attesttest

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
)

// signList signs a revocation list by its issuer's key; under another name where an
// edit of the list states so.
func signList(list *x509.RevocationList, issuer *x509.Certificate, key crypto.Signer) []byte {
	if name := list.Issuer; name.CommonName != "" {
		other := *issuer
		other.RawSubject, other.Subject = nil, name
		issuer = &other
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, issuer, key)
	if err != nil {
		panic(err) // templates of this package are right
	}
	return der
}
