package sshsig

import (
	"bytes"
	"crypto/rand"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"

	"github.com/cohort-tee/cohort/internal/wire"
	"golang.org/x/crypto/ssh"
)

// Namespace is the SSH signature namespace of one kind of statement, so that a
// signature over one kind is never one over another.
type Namespace string

// The namespaces.
const (
	ForPolicy   Namespace = "cohort-policy"   // a policy file
	ForCancel   Namespace = "cohort-cancel"   // a cancel statement
	ForApprove  Namespace = "cohort-approve"  // a party's approval of a group
	ForWithdraw Namespace = "cohort-withdraw" // a party's withdrawal from a group
	ForBackup   Namespace = "cohort-backup"   // a backup statement
)

// keyTypes are the SSH keys owners may have.
var keyTypes = []string{
	ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521,
	ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256,
}

// skApplication is the only application of hardware keys: OpenSSH's default.
const skApplication = "ssh:"

// The armor of an SSH signature: base64 in lines of 70 between two marks.
const (
	armorBegin = "-----BEGIN SSH SIGNATURE-----\n"
	armorEnd   = "-----END SSH SIGNATURE-----\n"
	armorWidth = 70
)

const sigMagic = "SSHSIG"

// envelope is an SSH signature after its magic (PROTOCOL.sshsig of OpenSSH).
type envelope struct {
	Version   uint32
	PublicKey []byte
	Namespace string
	Reserved  string
	Hash      string
	Signature []byte
}

// signed is the data that an SSH signature covers, after the same magic.
type signed struct {
	Namespace string
	Reserved  string
	Hash      string
	Digest    []byte
}

const sigHash = "sha512"

// covered returns the byte string that the key signs.
func covered(ns Namespace, message []byte) []byte {
	digest := sha512.Sum512(message)
	return append([]byte(sigMagic), ssh.Marshal(signed{string(ns), "", sigHash, digest[:]})...)
}

// Sign returns an armored SSH signature that [Verify] and `ssh-keygen -Y verify`
// accept. The signer may be a key file, an agent or a hardware key; with the
// latter Sign blocks until its owner touches it.
func Sign(signer ssh.Signer, ns Namespace, message []byte) (string, error) {
	if err := checkKey(signer.PublicKey()); err != nil {
		return "", err
	}
	sig, err := signer.Sign(rand.Reader, covered(ns, message))
	if err != nil {
		return "", fmt.Errorf("signing with the SSH key: %w", err)
	}
	e := envelope{1, signer.PublicKey().Marshal(), string(ns), "", sigHash, ssh.Marshal(sig)}
	armored := armor(append([]byte(sigMagic), ssh.Marshal(e)...))
	if _, err := Verify(armored, ns, message); err != nil {
		return "", fmt.Errorf("checking the signature just made: %w", err)
	}
	return armored, nil
}

// Verify verifies an armored SSH signature over a message and returns the key that made
// it. It does not decide who owns that key. It refuses with "too-large" and "malformed"
// every encoding but one, and with "signature" other namespaces, hashes and kinds of keys
// and every signature that does not verify. A hardware key's signature without user
// presence does not verify.
func Verify(armored string, ns Namespace, message []byte) (ssh.PublicKey, error) {
	if len(armored) > wire.MaxSignature {
		return nil, wire.Refuse(wire.TooLarge, "signature: size in bytes", len(armored), wire.MaxSignature)
	}
	e, err := openEnvelope(armored)
	if err != nil {
		return nil, err
	}
	if e.Version != 1 || e.Reserved != "" {
		return nil, wire.Refuse(wire.Malformed, "signature: version", e.Version, 1)
	}
	if ns == "" || e.Namespace != string(ns) {
		return nil, wire.Refuse(wire.BadSignature, "signature: namespace", e.Namespace, ns)
	}
	if e.Hash != sigHash {
		return nil, wire.Refuse(wire.BadSignature, "signature: hash", e.Hash, sigHash)
	}
	key, err := openKey(e.PublicKey)
	if err != nil {
		return nil, err
	}
	sig, err := openSignature(key, e.Signature)
	if err != nil {
		return nil, err
	}
	if err := key.Verify(covered(ns, message), sig); err != nil {
		return nil, wire.Refuse(wire.BadSignature, "signature: by "+ssh.FingerprintSHA256(key), err, "a signature over these bytes")
	}
	return key, nil
}

// openEnvelope decodes armor and envelope. It refuses every encoding but one.
func openEnvelope(armored string) (envelope, error) {
	var e envelope
	body := strings.TrimSuffix(strings.TrimPrefix(armored, armorBegin), armorEnd)
	blob, err := base64.StdEncoding.DecodeString(body)
	if err != nil || armor(blob) != armored {
		return e, wire.Refuse(wire.Malformed, "signature: armor", fmt.Sprintf("%.40q, of %d bytes", armored, len(armored)), "the output of ssh-keygen -Y sign, whole")
	}
	rest, ok := bytes.CutPrefix(blob, []byte(sigMagic))
	if !ok || ssh.Unmarshal(rest, &e) != nil {
		return e, wire.Refuse(wire.Malformed, "signature: envelope", fmt.Sprintf("%.16x, of %d bytes", blob, len(blob)), "an SSH signature")
	}
	return e, nil
}

func armor(blob []byte) string {
	var b strings.Builder
	b.WriteString(armorBegin)
	for line := range slices.Chunk([]byte(base64.StdEncoding.EncodeToString(blob)), armorWidth) {
		b.Write(line)
		b.WriteByte('\n')
	}
	b.WriteString(armorEnd)
	return b.String()
}

// openSignature reads the key's own signature. Its encoding is checked because
// the library accepts numbers with leading zeros.
func openSignature(key ssh.PublicKey, b []byte) (*ssh.Signature, error) {
	malformed := wire.Refuse(wire.Malformed, "signature: value", fmt.Sprintf("%.16x, of %d bytes", b, len(b)), "a signature of "+key.Type())
	sig := new(ssh.Signature)
	if ssh.Unmarshal(b, sig) != nil || sig.Format != key.Type() {
		return nil, malformed
	}
	if strings.Contains(key.Type(), "ecdsa") {
		var numbers struct{ R, S *big.Int }
		if ssh.Unmarshal(sig.Blob, &numbers) != nil || !bytes.Equal(ssh.Marshal(numbers), sig.Blob) {
			return nil, malformed
		}
	}
	rest := 0
	if strings.HasPrefix(key.Type(), "sk-") {
		rest = 5 // one byte of flags, four of a counter
	}
	if len(sig.Rest) != rest {
		return nil, malformed
	}
	return sig, nil
}

// openKey reads a public key of a type that owners may have.
func openKey(blob []byte) (ssh.PublicKey, error) {
	key, err := ssh.ParsePublicKey(blob)
	if err != nil {
		return nil, wire.Refuse(wire.Malformed, "SSH key", err, "a public key")
	}
	if err := checkKey(key); err != nil {
		return nil, err
	}
	return key, nil
}

// ParsePublicKey reads the first key of an OpenSSH public key file. It refuses,
// with "malformed" or "signature", keys that owners and parties cannot have: other types,
// and Ed25519 points of small order.
func ParsePublicKey(file []byte) (ssh.PublicKey, error) {
	key, _, _, _, err := ssh.ParseAuthorizedKey(file)
	if err != nil {
		return nil, wire.Refuse(wire.Malformed, "SSH key", err, "a public key file of OpenSSH")
	}
	return openKey(key.Marshal())
}

// checkKey refuses keys of other types (RSA, certificates), hardware keys made for
// another application, and Ed25519 keys that are points of small order.
func checkKey(key ssh.PublicKey) error {
	if !slices.Contains(keyTypes, key.Type()) {
		return wire.Refuse(wire.BadSignature, "SSH key: type", key.Type(), strings.Join(keyTypes, ", "))
	}
	if got := lastField(key.Marshal()); strings.HasPrefix(key.Type(), "sk-") && got != skApplication {
		return wire.Refuse(wire.BadSignature, "SSH key: application", got, skApplication)
	}
	if strings.Contains(key.Type(), "ed25519") {
		return checkPoint(key)
	}
	return nil
}

// lastField returns the last string of an SSH encoding. In a hardware key that is the
// application.
func lastField(b []byte) string {
	var field struct {
		Text string
		Rest []byte `ssh:"rest"`
	}
	for len(b) > 0 && ssh.Unmarshal(b, &field) == nil {
		b = field.Rest
	}
	return field.Text
}

var errKeyLine = errors.New("not the line of a .pub file")

// ParseKeyLine reads the line of a .pub file: type, base64, and an optional comment.
func ParseKeyLine(line string) (ssh.PublicKey, error) {
	fields := strings.SplitN(line, " ", 3)
	if len(fields) < 2 {
		return nil, errKeyLine
	}
	blob, err := base64.StdEncoding.DecodeString(fields[1])
	if err != nil || base64.StdEncoding.EncodeToString(blob) != fields[1] {
		return nil, errKeyLine
	}
	key, err := openKey(blob)
	if err != nil {
		return nil, err
	}
	if key.Type() != fields[0] {
		return nil, errKeyLine
	}
	return key, nil
}
