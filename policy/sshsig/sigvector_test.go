package sshsig

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/policy/policytest"
	"golang.org/x/crypto/ssh"
)

// TestSignatureVectors verifies files with a header, an empty line and an armored signature over
// the file "message".
func TestSignatureVectors(t *testing.T) {
	if *policytest.Update {
		writeSignatureVectors(t)
	}
	message := policytest.ReadVector(t, "signature", "message")
	for _, path := range policytest.Files(t, "signature/*.txt") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			head, armored, _ := strings.Cut(policytest.ReadVector(t, "signature", filepath.Base(path)), "\n\n")
			fields := policytest.Header(t, head)
			key, err := Verify(armored, Namespace(fields["namespace"][0]), []byte(message))
			if got, want := policytest.Verdict(err), fields["expect"][0]; got != want {
				t.Fatalf("got %s (%v), want %s", got, err, want)
			}
			if err == nil && policytest.KeyLine(key) != fields["key"][0] {
				t.Errorf("got key %s, want %s", policytest.KeyLine(key), fields["key"][0])
			}
		})
	}
}

func writeSignatureVectors(t *testing.T) {
	policytest.WriteVector(t, "m", "signature", "message")
	write := func(name, note string, signer ssh.Signer, armored string) {
		_, err := Verify(armored, ForPolicy, []byte("m"))
		policytest.WriteVector(t, fmt.Sprintf("expect: %s\nnote: %s\nnamespace: %s\nkey: %s\n\n%s", policytest.Verdict(err), note, ForPolicy, policytest.KeyLine(signer.PublicKey()), armored), "signature", name+".txt")
	}
	skEd, skEC, ana := policytest.NewToken(ssh.KeyAlgoSKED25519), policytest.NewToken(ssh.KeyAlgoSKECDSA256), policytest.Fixed("ana")
	for name, signer := range map[string]ssh.Signer{
		"ed25519": ana, "ecdsa-256": policytest.ECKey(t, "256"), "ecdsa-384": policytest.ECKey(t, "384"), "ecdsa-521": policytest.ECKey(t, "521"), "sk-ed25519": skEd, "sk-ecdsa-256": skEC,
	} {
		write(name, "each kind of key that owners may have", signer, forge(t, signer, nil))
	}
	write("text-after", "one encoding: nothing follows the armor", ana, forge(t, ana, nil)+"\n")
	write("namespace", "made for a cancel statement", ana, forge(t, ana, func(e *envelope) { e.Namespace = string(ForCancel) }))
	write("sha256", "sha512 only", ana, forge(t, ana, func(e *envelope) { e.Hash = "sha256" }))
	write("other-key", "the key of somebody who did not sign", policytest.Fixed("ben"), forge(t, ana, func(e *envelope) { e.PublicKey = policytest.Fixed("ben").PublicKey().Marshal() }))
	rsa, foreign := policytest.RSAKey(t), policytest.NewTokenFor(ssh.KeyAlgoSKED25519, "ssh:work")
	write("rsa", "no RSA", rsa, forge(t, rsa, nil))
	write("sk-application", "a hardware key made for another application than ssh:", foreign, forge(t, foreign, nil))
	write("small-order", "a point of order 1, under which anybody signs", ana, forge(t, ana, func(e *envelope) {
		e.PublicKey = policytest.PointKey(t, ssh.KeyAlgoED25519, policytest.SmallPoints(t)[2]).Marshal()
		e.Signature = ssh.Marshal(ssh.Signature{Format: ssh.KeyAlgoED25519, Blob: append([]byte{1}, make([]byte, 63)...)})
	}))
	skEd.Flags = 0
	write("sk-presence", "a hardware key that nobody touched", skEd, forge(t, skEd, nil))
}
