package tpm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/google/go-tpm/tpm2"
	"golang.org/x/crypto/cryptobyte"
)

// Credential hides a secret (TPM2_MakeCredential): only the TPM that holds the
// endorsement key of the certificate gives it, and only while it holds the
// attestation key. Whether the certificate is worth anything is checked with the
// evidence. The credential is a TPM2B_ID_OBJECT and a TPM2B_ENCRYPTED_SECRET.
func (*quoteAppraiser) Credential(in attest.TPMKeys, secret []byte) ([]byte, error) {
	if len(in.Device) > maxCertificate {
		return nil, wire.Refuse(wire.TooLarge, "tpm: certificate of the endorsement key: size in bytes", len(in.Device), maxCertificate)
	}
	leaf, err := parseEK(in.Device)
	if err != nil {
		return nil, err
	}
	if _, err := parseKey(in.Key); err != nil {
		return nil, err
	}
	to, err := endorsementKey(leaf.PublicKey)
	if err != nil {
		return nil, err
	}
	name := nameOf(in.Key)
	object, encrypted, err := tpm2.CreateCredential(rand.Reader, to, append([]byte{0, algSHA256}, name[:]...), secret)
	if err != nil {
		return nil, wire.Refuse(wire.BadChain, "tpm: endorsement key", err, "one that encrypts")
	}
	return append(tpm2.Marshal(tpm2.TPM2BIDObject{Buffer: object}), tpm2.Marshal(tpm2.TPM2BEncryptedSecret{Buffer: encrypted})...), nil
}

// splitCredential is the inverse of what Credential ends with.
func splitCredential(credential []byte) (object, encrypted []byte, err error) {
	var first, second cryptobyte.String
	s := cryptobyte.String(credential)
	if !s.ReadUint16LengthPrefixed(&first) || !s.ReadUint16LengthPrefixed(&second) || !s.Empty() {
		return nil, nil, wire.Refuse(wire.Malformed, "tpm: credential", fmt.Sprintf("%d bytes of another structure", len(credential)), "an id object and an encrypted secret")
	}
	return first, second, nil
}

// endorsementKey is an endorsement key as the profile's templates make it: which
// hash and cipher it uses follows from its size.
func endorsementKey(key crypto.PublicKey) (tpm2.LabeledEncapsulationKey, error) {
	public := endorsementTemplate(key)
	switch key := key.(type) {
	case *rsa.PublicKey:
		public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: key.N.Bytes()})
	case *ecdsa.PublicKey:
		if point, err := key.Bytes(); err == nil {
			half := len(point) / 2
			public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
				X: tpm2.TPM2BECCParameter{Buffer: point[1 : 1+half]}, Y: tpm2.TPM2BECCParameter{Buffer: point[1+half:]},
			})
		}
	}
	if public.Type != 0 {
		if to, err := tpm2.ImportEncapsulationKey(&public); err == nil {
			return to, nil
		}
	}
	return nil, wire.Refuse(wire.BadChain, "tpm: endorsement key", fmt.Sprintf("a key of type %T", key), "RSA of 2048 or 3072 bits, or ECC on P-256 or P-384")
}

// endorsementTemplate is the template of an endorsement key of a kind and size
// (TCG EK credential profile 2.5: L-1, L-2, H-3, H-6); another has none.
func endorsementTemplate(key crypto.PublicKey) tpm2.TPMTPublic {
	switch key := key.(type) {
	case *rsa.PublicKey:
		switch key.N.BitLen() {
		case 2048:
			return tpm2.RSAEKTemplate
		case 3072:
			t := strong(tpm2.RSAEKTemplate)
			t.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{Symmetric: aes256, KeyBits: 3072})
			return t
		}
	case *ecdsa.PublicKey:
		switch key.Curve {
		case elliptic.P256():
			return tpm2.ECCEKTemplate
		case elliptic.P384():
			t := strong(tpm2.ECCEKTemplate)
			t.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{Symmetric: aes256, CurveID: tpm2.TPMECCNistP384})
			t.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
			return t
		}
	}
	return tpm2.TPMTPublic{}
}

// aes256 is the cipher of the stronger templates.
var aes256 = tpm2.TPMTSymDefObject{
	Algorithm: tpm2.TPMAlgAES,
	KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(256)),
	Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
}

// strong makes a template one of the high range: SHA-384, and a policy under
// which the key's own authorization, which is empty, suffices.
func strong(t tpm2.TPMTPublic) tpm2.TPMTPublic {
	t.NameAlg = tpm2.TPMAlgSHA384
	t.ObjectAttributes.UserWithAuth = true
	t.AuthPolicy = tpm2.TPM2BDigest{Buffer: policyB384}
	return t
}

// policyB384 is the profile's PolicyB with SHA-384.
var policyB384 = []byte{
	0xB2, 0x6E, 0x7D, 0x28, 0xD1, 0x1A, 0x50, 0xBC, 0x53, 0xD8, 0x82, 0xBC, 0xF5, 0xFD, 0x3A, 0x1A,
	0x07, 0x41, 0x48, 0xBB, 0x35, 0xD3, 0xB4, 0xE4, 0xCB, 0x1C, 0x0A, 0xD9, 0xBD, 0xE4, 0x19, 0xCA,
	0xCB, 0x47, 0xBA, 0x09, 0x69, 0x96, 0x46, 0x15, 0x0F, 0x9F, 0xC0, 0x00, 0xF3, 0xF8, 0x0E, 0x12,
}
