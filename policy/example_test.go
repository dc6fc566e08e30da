package policy_test

import (
	"fmt"
	"os"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

func read(name string) []byte {
	b, err := os.ReadFile("testdata/vectors/" + name)
	if err != nil {
		panic(err)
	}
	return b
}

// A history is replayed from the digest of its first policy, the one value that units and clients
// pin.
func ExampleReplay() {
	genesis := read("history/1.toml")
	pin := wire.Sum(genesis)
	approved, err := policy.Replay(pin, []policy.Step{
		{Policy: genesis, Signatures: []string{string(read("history/1.ana.sig")), string(read("history/1.ben.sig"))}},
		{Policy: read("history/2.toml"), Signatures: []string{string(read("history/2.ben.sig")), string(read("history/2.eva.sig"))}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(approved.Document().TrustDomain, "is at policy", approved.Document().Sequence)
	// Output: clinic.example is at policy 2
}
