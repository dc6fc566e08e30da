package bench

import (
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// BenchmarkJoin is G10: a unit joins a session that another unit sealed, against the bare
// decryption of as many bytes with AES-256-GCM. BenchmarkSessionMemory of internal/channel
// measures a session's memory.
func BenchmarkJoin(b *testing.B) {
	p := start(b)
	sealed := p.sealed(b, 4096)
	var f [3][]byte // associated data, nonce, ciphertext
	if err := wire.UnframeInto(f[:], wire.LabelSealedSession, sealed[0]); err != nil {
		b.Fatal(err)
	}
	aead := newAEAD()
	ciphertext := aead.Seal(nil, f[1], make([]byte, len(f[2])-aead.Overhead()), f[0])
	plaintext := make([]byte, 0, len(ciphertext))
	const units = 4 // in sequence, so that a round is long enough
	Compare(b,
		Contender{"aead", Repeat(units*len(sealed), func() { testworld.Must(aead.Open(plaintext, f[1], ciphertext, f[0])) })},
		Contender{"join", func() (cost time.Duration) {
			for range units {
				h, i := p.estate.host(b), 0
				cost += Repeat(len(sealed), func() { testworld.Must(h.ImportSession(sealed[i], time.Now())); i++ })()
			}
			return cost / units
		}})
}

// sealed returns sessions that a unit of the cluster has opened and sealed.
func (p *peer) sealed(b *testing.B, n int) [][]byte {
	b.Helper()
	h := p.estate.host(b)
	var all [][]byte
	for i := range n {
		o := testworld.Must(channel.NewClientHandshake(unitauth.Pin{Genesis: p.Genesis, Task: "scoring"}, 0)) // its KEM key is used once
		a := testworld.Must(h.Accept(channel.OpenRequest{Body: o.Request(), Number: uint64(i)}, time.Now()))
		_, sealed, err := a.Finish(attest.Evidence{}, time.Now())
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, sealed)
	}
	return all
}
