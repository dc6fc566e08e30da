package sshsig

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policytest"
	"golang.org/x/crypto/ssh"
)

func sshKeygen(t *testing.T, stdin []byte, args ...string) {
	t.Helper()
	cmd := exec.Command("ssh-keygen", args...)
	cmd.Stdin = bytes.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// TestSSHKeygen: ssh-keygen and this package verify each other's signatures.
func TestSSHKeygen(t *testing.T) {
	if _, err := exec.LookPath("ssh-keygen"); err != nil {
		t.Skip("SKIPPED: no ssh-keygen; install openssh-client")
	}
	message := []byte("a policy\n")
	for _, kind := range [][]string{{"-t", "ed25519"}, {"-t", "ecdsa", "-b", "256"}, {"-t", "ecdsa", "-b", "384"}, {"-t", "ecdsa", "-b", "521"}} {
		t.Run(strings.Join(kind, ""), func(t *testing.T) {
			dir := t.TempDir()
			key, file := filepath.Join(dir, "key"), filepath.Join(dir, "file")
			sshKeygen(t, nil, append(kind, "-N", "", "-q", "-C", "ana", "-f", key)...)
			private, err := os.ReadFile(key)
			if err != nil {
				t.Fatal(err)
			}
			signer, err := ssh.ParsePrivateKey(private)
			if err != nil {
				t.Fatal(err)
			}

			if err := os.WriteFile(file, message, 0o600); err != nil {
				t.Fatal(err)
			}
			sshKeygen(t, nil, "-Y", "sign", "-q", "-f", key, "-n", string(ForPolicy), file)
			theirs, err := os.ReadFile(file + ".sig")
			if err != nil {
				t.Fatal(err)
			}
			got, err := Verify(string(theirs), ForPolicy, message)
			if err != nil {
				t.Fatalf("verifying the signature of ssh-keygen: %v", err)
			}
			if !bytes.Equal(got.Marshal(), signer.PublicKey().Marshal()) {
				t.Error("got another key than the one that signed")
			}

			ours, err := Sign(signer, ForPolicy, message)
			if err != nil {
				t.Fatal(err)
			}
			allowed := filepath.Join(dir, "allowed")
			if err := os.WriteFile(file+".ours", []byte(ours), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(allowed, []byte("ana "+policytest.KeyLine(signer.PublicKey())+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			sshKeygen(t, message, "-Y", "verify", "-f", allowed, "-I", "ana", "-n", string(ForPolicy), "-s", file+".ours")
		})
	}
}

// TestSSHKeygenHashSHA256: a valid ssh-keygen signature with a hash that policies do not accept
// is refused.
func TestSSHKeygenHashSHA256(t *testing.T) {
	if _, err := exec.LookPath("ssh-keygen"); err != nil {
		t.Skip("SKIPPED: no ssh-keygen; install openssh-client")
	}
	key := filepath.Join(t.TempDir(), "key")
	sshKeygen(t, nil, "-t", "ed25519", "-N", "", "-q", "-f", key)
	file := key + ".message"
	if err := os.WriteFile(file, []byte("m"), 0o600); err != nil {
		t.Fatal(err)
	}
	sshKeygen(t, nil, "-Y", "sign", "-q", "-O", "hashalg=sha256", "-f", key, "-n", string(ForPolicy), file)
	armored, err := os.ReadFile(file + ".sig")
	if err != nil {
		t.Fatal(err)
	}
	_, err = Verify(string(armored), ForPolicy, []byte("m"))
	policytest.Refused(t, err, wire.BadSignature)
}

func TestHardwareKeys(t *testing.T) {
	message := []byte("a policy\n")
	for _, algorithm := range []string{ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256} {
		t.Run(algorithm, func(t *testing.T) {
			k := policytest.NewToken(algorithm)
			sig, err := Sign(k, ForPolicy, message)
			if err != nil {
				t.Fatal(err)
			}
			key, err := Verify(sig, ForPolicy, message)
			if err != nil || !bytes.Equal(key.Marshal(), k.PublicKey().Marshal()) {
				t.Fatalf("got %v, %v", key, err)
			}
			k.Flags = 5 // user presence and user verification
			if _, err := Sign(k, ForPolicy, message); err != nil {
				t.Errorf("with user verification: %v", err)
			}
			k.Flags = 0
			_, err = Verify(forge(t, k, nil), ForPolicy, []byte("m"))
			policytest.Refused(t, err, wire.BadSignature)
			_, err = Verify(forge(t, policytest.NewTokenFor(algorithm, "ssh:work"), nil), ForPolicy, []byte("m"))
			policytest.Refused(t, err, wire.BadSignature)
			_, err = Sign(policytest.NewTokenFor(algorithm, "ssh:work"), ForPolicy, message)
			policytest.Refused(t, err, wire.BadSignature)
		})
	}
}

// TestApplicationHiddenInAnother: a key whose application ends like the encoding of the accepted
// one is refused.
func TestApplicationHiddenInAnother(t *testing.T) {
	k := policytest.NewTokenFor(ssh.KeyAlgoSKED25519, "x\x00\x00\x00\x04ssh:")
	policytest.Refused(t, checkKey(k.PublicKey()), wire.BadSignature)
}

// forge signs "m" for policies like Sign, but without its checks. change may edit the envelope
// after signing.
func forge(t testing.TB, signer ssh.Signer, change func(*envelope)) string {
	t.Helper()
	sig, err := signer.Sign(rand.Reader, covered(ForPolicy, []byte("m")))
	if err != nil {
		t.Fatal(err)
	}
	e := envelope{1, signer.PublicKey().Marshal(), string(ForPolicy), "", sigHash, ssh.Marshal(sig)}
	if change != nil {
		change(&e)
	}
	return armor(append([]byte(sigMagic), ssh.Marshal(e)...))
}

func TestVerifyRefusals(t *testing.T) {
	ana, ec := policytest.Fixed("ana"), policytest.ECKey(t, "256")
	good := forge(t, ana, nil)
	if _, err := Verify(good, ForPolicy, []byte("m")); err != nil {
		t.Fatal(err)
	}
	blob, err := base64.StdEncoding.DecodeString(strings.TrimSuffix(strings.TrimPrefix(good, armorBegin), armorEnd))
	if err != nil {
		t.Fatal(err)
	}
	inner := func(signer ssh.Signer, change func(*ssh.Signature)) string {
		return forge(t, signer, func(e *envelope) {
			var sig ssh.Signature
			if err := ssh.Unmarshal(e.Signature, &sig); err != nil {
				t.Fatal(err)
			}
			change(&sig)
			e.Signature = ssh.Marshal(sig)
		})
	}
	paddedNumbers := func(sig *ssh.Signature) {
		var numbers struct{ R, S []byte }
		if err := ssh.Unmarshal(sig.Blob, &numbers); err != nil {
			t.Fatal(err)
		}
		numbers.R = append([]byte{0}, numbers.R...)
		sig.Blob = ssh.Marshal(numbers)
	}
	for _, row := range []struct {
		name    string
		armored string
		want    attest.Reason
	}{
		{"empty", "", wire.Malformed},
		{"no end", strings.TrimSuffix(good, armorEnd), wire.Malformed},
		{"no final line end", strings.TrimSuffix(good, "\n"), wire.Malformed},
		{"text before", "x" + good, wire.Malformed},
		{"text after", good + "\n", wire.Malformed},
		{"CR LF", strings.ReplaceAll(good, "\n", "\r\n"), wire.Malformed},
		{"other line width", armorBegin + base64.StdEncoding.EncodeToString(blob) + "\n" + armorEnd, wire.Malformed},
		{"trailing bytes", armor(append(bytes.Clone(blob), 0)), wire.Malformed},
		{"cut", armor(blob[:len(blob)-1]), wire.Malformed},
		{"other magic", armor(append([]byte("SSHSIX"), blob[6:]...)), wire.Malformed},
		{"version 2", forge(t, ana, func(e *envelope) { e.Version = 2 }), wire.Malformed},
		{"reserved bytes", forge(t, ana, func(e *envelope) { e.Reserved = "x" }), wire.Malformed},
		{"too large", armor(make([]byte, wire.MaxSignature)), wire.TooLarge},
		{"namespace of another statement", forge(t, ana, func(e *envelope) { e.Namespace = string(ForCancel) }), wire.BadSignature},
		{"hash sha256", forge(t, ana, func(e *envelope) { e.Hash = "sha256" }), wire.BadSignature},
		{"another key", forge(t, ana, func(e *envelope) { e.PublicKey = policytest.Fixed("ben").PublicKey().Marshal() }), wire.BadSignature},
		{"key with trailing bytes", forge(t, ana, func(e *envelope) { e.PublicKey = append(e.PublicKey, 0) }), wire.Malformed},
		{"no key", forge(t, ana, func(e *envelope) { e.PublicKey = nil }), wire.Malformed},
		{"RSA", forge(t, policytest.RSAKey(t), nil), wire.BadSignature},
		{"certificate", forge(t, ana, func(e *envelope) { e.PublicKey = policytest.Certificate(t).Marshal() }), wire.BadSignature},
		{"format of another key", inner(ana, func(s *ssh.Signature) { s.Format = ssh.KeyAlgoSKED25519 }), wire.Malformed},
		{"bytes after the value", inner(ana, func(s *ssh.Signature) { s.Rest = []byte{1, 0, 0, 0, 9} }), wire.Malformed},
		{"one byte after the value", inner(ana, func(s *ssh.Signature) { s.Rest = []byte{1} }), wire.Malformed},
		{"hardware without counter", inner(policytest.NewToken(ssh.KeyAlgoSKED25519), func(s *ssh.Signature) { s.Rest = s.Rest[:1] }), wire.Malformed},
		{"hardware with more than a counter", inner(policytest.NewToken(ssh.KeyAlgoSKECDSA256), func(s *ssh.Signature) { s.Rest = append(s.Rest, 0) }), wire.Malformed},
		{"short value", inner(ana, func(s *ssh.Signature) { s.Blob = s.Blob[:63] }), wire.BadSignature},
		{"one bit of the value", inner(ana, func(s *ssh.Signature) { s.Blob[5] ^= 1 }), wire.BadSignature},
		{"numbers with leading zeros", inner(ec, paddedNumbers), wire.Malformed},
		{"bytes after the numbers", inner(ec, func(s *ssh.Signature) { s.Blob = append(s.Blob, 0) }), wire.Malformed},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := Verify(row.armored, ForPolicy, []byte("m"))
			policytest.Refused(t, err, row.want)
		})
	}
	_, err = Verify(good, ForPolicy, []byte("n"))
	policytest.Refused(t, err, wire.BadSignature)
	_, err = Verify(good, ForCancel, []byte("m"))
	policytest.Refused(t, err, wire.BadSignature)
	_, err = Sign(ana, "", []byte("m"))
	policytest.Refused(t, err, wire.BadSignature)
	_, err = Sign(policytest.RSAKey(t), ForPolicy, []byte("m"))
	policytest.Refused(t, err, wire.BadSignature)
}

// TestNamespaceIsSigned: a valid signature whose envelope names a different namespace is refused,
// because the namespace is signed too.
func TestNamespaceIsSigned(t *testing.T) {
	moved := forge(t, policytest.Fixed("ana"), func(e *envelope) { e.Namespace = string(ForCancel) })
	_, err := Verify(moved, ForCancel, []byte("m"))
	policytest.Refused(t, err, wire.BadSignature)
}

func FuzzVerify(f *testing.F) {
	f.Add(forge(f, policytest.Fixed("ana"), nil))
	f.Add(forge(f, policytest.ECKey(f, "521"), nil))
	f.Add(forge(f, policytest.NewToken(ssh.KeyAlgoSKED25519), nil))
	f.Add(forge(f, policytest.NewToken(ssh.KeyAlgoSKECDSA256), nil))
	f.Add(forge(f, policytest.RSAKey(f), nil))
	f.Fuzz(func(t *testing.T, armored string) {
		if e, err := openEnvelope(armored); err == nil {
			if again := armor(append([]byte(sigMagic), ssh.Marshal(e)...)); again != armored {
				t.Fatalf("got two encodings of one signature: %q and %q", armored, again)
			}
		}
		key, err := Verify(armored, ForPolicy, []byte("m"))
		if err == nil && checkKey(key) != nil {
			t.Fatalf("accepted a key of kind %s", key.Type())
		}
		if err != nil && wire.ReasonOf(err) == wire.Internal {
			t.Fatalf("got %v, want a refusal", err)
		}
	})
}
