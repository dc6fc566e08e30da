package identity_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log"
	"time"

	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/policy"
)

// A client of the task "scoring" takes the accepted identities from the approved policy, at every
// handshake. Without a policy it accepts none.
func Example() {
	var approved policy.Approved // from policy.Replay, from the pinned genesis on
	var root *x509.Certificate   // the authority root, from the trust response

	expect := func() identity.Expect {
		ids, err := identity.LiveIDs(approved, "scoring")
		if err != nil {
			fmt.Println(err)
			return identity.Expect{} // refuses every server
		}
		return identity.Expect{
			Policy: approved,
			Kinds:  []identity.Kind{identity.KindShared, identity.KindUnit},
			Use:    identity.UseTLS,
			IDs:    ids,
			At:     time.Now(),
		}
	}
	config := identity.ClientTLS("scoring.clinic.example", func() *x509.Certificate { return root }, expect)
	fmt.Println(config.VerifyConnection(tls.ConnectionState{}))
	// Output:
	// policy: identity: policy: got "an unapproved one", want "an approved policy"
	// policy: expect: policy: got "not set", want "a value"
}

// The root secret exists only inside the authority's TEE. The owners name the digest of its
// derived root in their policy.
func ExampleDerive() {
	secret := identity.NewSecret()
	keys, err := identity.Derive(secret)
	if err != nil {
		log.Fatal(err)
	}
	again, err := identity.Derive(secret)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(keys.RootDigest() == again.RootDigest())
	fmt.Println(secret, keys)
	// Output:
	// true
	// secret keys
}
