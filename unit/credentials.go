package unit

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Credentials are the certificate and key that a unit serves TLS with, in PEM, for programs
// that read them from files.
type Credentials struct {
	Chain []byte // the chain that TLS serves
	Key   []byte // its private key, PKCS #8
	Root  []byte // the root that trusts this identity and no other

	// Replaced is closed when the unit has newer ones, and when it is closed.
	Replaced <-chan struct{}
}

// Credentials returns the newest ones, whatever [Unit.Ready] reports. It refuses with
// "not-enrolled" after Close.
func (u *Unit) Credentials() (Credentials, error) {
	e := u.enrolled.Load()
	if e == nil {
		return Credentials{}, wire.Refuse(wire.NotEnrolled, "unit: certificate", "no certificate", "an enrolled unit")
	}
	key, err := x509.MarshalPKCS8PrivateKey(e.leaf.PrivateKey)
	if err != nil {
		return Credentials{}, fmt.Errorf("encoding the key: %w", err)
	}
	c := Credentials{Key: pemOf("PRIVATE KEY", key), Root: pemOf("CERTIFICATE", e.identity.Root), Replaced: e.replaced}
	for _, der := range e.leaf.Certificate {
		c.Chain = append(c.Chain, pemOf("CERTIFICATE", der)...)
	}
	return c, nil
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
