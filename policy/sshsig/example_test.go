package sshsig_test

import (
	"crypto/ed25519"
	"fmt"

	"github.com/cohort-tee/cohort/policy/sshsig"
	"golang.org/x/crypto/ssh"
)

// An owner signs with an SSH key; ssh-keygen can verify the signature.
func ExampleSign() {
	owner, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(make([]byte, 32)))
	if err != nil {
		fmt.Println(err)
		return
	}
	file := []byte("the policy as it stands")
	signature, err := sshsig.Sign(owner, sshsig.ForPolicy, file)
	if err != nil {
		fmt.Println(err)
		return
	}
	key, err := sshsig.Verify(signature, sshsig.ForPolicy, file)
	fmt.Println(key.Type(), err)
	_, err = sshsig.Verify(signature, sshsig.ForCancel, file)
	fmt.Println(err)
	// Output:
	// ssh-ed25519 <nil>
	// signature: signature: namespace: got "cohort-policy", want "cohort-cancel"
}
