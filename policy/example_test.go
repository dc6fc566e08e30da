package policy_test

import (
	"crypto/ed25519"
	"fmt"
	"os"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"golang.org/x/crypto/ssh"
)

func read(name string) []byte {
	b, err := os.ReadFile("testdata/vectors/" + name)
	if err != nil {
		panic(err)
	}
	return b
}

// A history is replayed from the digest of its first policy, the one value that
// units and clients are given.
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

// All faults of a file are told at once.
func ExampleParse() {
	_, err := policy.Parse(read("policy/life-too-long.toml"))
	fmt.Println(err)
	// Output: policy: task.scoring.lifetime: value: got "24h1s", want "a duration from 3s to 24h0m0s"
}

// An owner signs with the SSH key he has; anybody can check it with ssh-keygen.
func ExampleSign() {
	owner, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(make([]byte, 32)))
	if err != nil {
		fmt.Println(err)
		return
	}
	file := []byte("the policy as it stands")
	signature, err := policy.Sign(owner, policy.ForPolicy, file)
	if err != nil {
		fmt.Println(err)
		return
	}
	key, err := policy.Verify(signature, policy.ForPolicy, file)
	fmt.Println(key.Type(), err)
	_, err = policy.Verify(signature, policy.ForCancel, file)
	fmt.Println(err)
	// Output:
	// ssh-ed25519 <nil>
	// signature: signature: namespace: got "cohort-policy", want "cohort-cancel"
}

// Only what takes away acts at once.
func ExampleDiff() {
	old, err := policy.Parse(read("history/1.toml"))
	if err != nil {
		fmt.Println(err)
		return
	}
	next, err := policy.Parse(read("history/2.toml"))
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, change := range policy.Diff(old, next) {
		fmt.Println(change)
	}
	// Output: ~ task.scoring.lifetime = "20m", was "30m" (tightens)
}
