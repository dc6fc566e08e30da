package sshsig

import (
	"crypto/ed25519"
	"testing"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policytest"
	"golang.org/x/crypto/ssh"
)

// TestSmallOrder: a key of small order, for which anyone can make signatures without a private
// key, is refused wherever a key is parsed: in a line, in a file and in a signature.
func TestSmallOrder(t *testing.T) {
	message := []byte("message")
	anybody := 0
	for _, point := range policytest.SmallPoints(t) {
		for _, kind := range []string{ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519} {
			key := policytest.PointKey(t, kind, point)
			line := policytest.KeyLine(key)
			policytest.Refused(t, checkKey(key), wire.BadSignature)
			if _, err := ParseKeyLine(line); err == nil {
				t.Errorf("%s is read as the key of an owner", line)
			}
			_, err := ParsePublicKey([]byte(line + "\n"))
			policytest.Refused(t, err, wire.BadSignature)
		}
		// R is the identity and S is 0: this verifies when the hash times the point is the
		// identity, which is so for some of these messages.
		signature := append([]byte{1}, make([]byte, 63)...)
		for i := range 64 {
			if ed25519.Verify(point, covered(ForPolicy, []byte{byte(i)}), signature) {
				anybody++
				break
			}
		}
		sig := ssh.Marshal(ssh.Signature{Format: ssh.KeyAlgoED25519, Blob: signature})
		e := envelope{1, policytest.PointKey(t, ssh.KeyAlgoED25519, point).Marshal(), string(ForPolicy), "", sigHash, sig}
		_, err := Verify(armor(append([]byte(sigMagic), ssh.Marshal(e)...)), ForPolicy, message)
		policytest.Refused(t, err, wire.BadSignature)
	}
	if anybody < 8 {
		t.Errorf("%d of the points verify what nobody signed, want at least the 8 in their first spelling", anybody)
	}
	for _, y := range []byte{0xef, 0xff} { // coordinates above p: further encodings of 2 and 18
		point := append([]byte{y}, make([]byte, 31)...)
		for i := range 31 {
			point[i+1] = 0xff
		}
		point[31] = 0x7f
		policytest.Refused(t, checkKey(policytest.PointKey(t, ssh.KeyAlgoED25519, point)), wire.BadSignature)
	}
	if err := checkKey(policytest.Fixed("ana").PublicKey()); err != nil {
		t.Errorf("a key that ssh-keygen makes: %v", err)
	}
}
