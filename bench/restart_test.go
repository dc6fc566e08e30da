package bench

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/testworld"
)

// BenchmarkRestart is G18: the wall time from the start of an authority to its first
// issuance over a new TLS connection. The floor is a process start, the unsealing of the
// root, and the evidence of the authority and of the unit. Both sides start this test
// binary.
func BenchmarkRestart(b *testing.B) {
	f := found(b, newVendors(time.Now()))
	first := func() time.Duration {
		begin := time.Now()
		e, stop := f.start(b)
		nonce := e.challenges(b.Context(), 1)[0]
		took := time.Since(begin)
		a := e.applicant(b.Context(), attest.SNP, "own", nonce) // the unit's time
		begin = time.Now()
		a.report(b.Context(), e)
		took += time.Since(begin)
		stop()
		return took
	}
	first() // fetches collateral and adopts the genesis
	floor := newFloors().evidence(attest.SNP)
	db := testworld.Must(store.Open(b.Context(), f.dsn))
	sealed := testworld.Must(db.RootRow(b.Context())).Content
	db.Close()
	Compare(b,
		Contender{"floor", func() time.Duration {
			begin := time.Now()
			testworld.Must(f.config.Sealer.Unseal(b.Context(), sealed))
			floor()
			floor()
			return time.Since(begin) + processStart()
		}},
		Contender{"restart", func() time.Duration { return first() + processStart() }},
		Contender{"process", processStart})
}

// processStart returns the wall time of a process that does nothing.
func processStart() time.Duration {
	const n = 4
	begin := time.Now()
	for range n {
		if err := exec.Command(os.Args[0], "-test.run=^$").Run(); err != nil {
			panic(err)
		}
	}
	return time.Since(begin) / n
}
