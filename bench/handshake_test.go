package bench

import (
	"crypto/tls"
	"crypto/x509"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/testworld"
)

// BenchmarkHandshake is a unit's TLS beside crypto/tls alone with the same
// chain: the CPU time of the server for one handshake.
func BenchmarkHandshake(b *testing.B) {
	p := start(b)
	config := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "scoring.clinic.example"}
	if !config.RootCAs.AppendCertsFromPEM(p.trust(b).RootPEM()) {
		b.Fatal("no roots")
	}
	const n = 96
	cost := func(address string) func() time.Duration {
		return func() time.Duration {
			return p.serving(func() { all(n, func() { testworld.Must(tls.Dial("tcp", address, config)).Close() }) }) / n
		}
	}
	Compare(b, Contender{"bare", cost(p.Bare)}, Contender{"unit", cost(p.Unit)})
}
