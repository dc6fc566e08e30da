package bench

import (
	"crypto/tls"
	"crypto/x509"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/testworld"
)

// BenchmarkHandshake measures the server's CPU time for one TLS handshake of a unit,
// against crypto/tls with the same chain.
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
