package tpm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/vectortest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/google/go-tpm/tpm2"
)

// point returns a public key as a TPM encodes it.
func point(t testing.TB) *tpm2.TPMSECCPoint {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: b[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: b[33:]}}
}

// reasoned fails the test if an error has no reason, and reports whether there is no error.
func reasoned(t *testing.T, err error) bool {
	t.Helper()
	var refusal *attest.Refusal
	if err != nil && !errors.As(err, &refusal) {
		t.Fatalf("refused without a reason: %v", err)
	}
	return err == nil
}

// FuzzEvidence: every accepted input encodes to the same bytes.
func FuzzEvidence(f *testing.F) {
	e := evidence{
		TPMKeys: attest.TPMKeys{Device: []byte("certificate"), Key: []byte("key")}, quote: []byte("quote"), signature: []byte("signature"),
		values: make([]byte, len(quotedPCRs)*pcrSize), log: launchLog{Launches: []Launch{program("agent", "one"), {Program: wire.Sum(nil), Dynamic: true}}},
	}
	f.Add(e.bytes())
	f.Add(e.bytes()[:100])
	f.Fuzz(func(t *testing.T, raw []byte) {
		if e, err := parse(raw); reasoned(t, err) && !bytes.Equal(e.bytes(), raw) {
			t.Fatalf("encoded again: got %x, want %x", e.bytes(), raw)
		}
	})
}

// FuzzLaunchLog: every accepted input encodes to the same bytes.
func FuzzLaunchLog(f *testing.F) {
	f.Add(launchLog{Base: wire.Sum(nil), Launches: []Launch{program("agent", "one")}}.Bytes())
	f.Fuzz(func(t *testing.T, raw []byte) {
		if l, err := parseLaunchLog(raw); reasoned(t, err) && !bytes.Equal(l.Bytes(), raw) {
			t.Fatalf("encoded again: got %x, want %x", l.Bytes(), raw)
		}
	})
}

// FuzzQuote: go-tpm parses every accepted quote with the same result, and encodes it to the same
// bytes.
func FuzzQuote(f *testing.F) {
	f.Add(tpm2.Marshal(tpm2.TPMSAttest{
		Magic: generated, Type: tpm2.TPMSTAttestQuote, ExtraData: tpm2.TPM2BData{Buffer: []byte("nonce")},
		Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{PCRSelect: selectPCRs(quotedPCRs), PCRDigest: tpm2.TPM2BDigest{Buffer: make([]byte, 32)}}),
	}))
	for _, raw := range vectortest.Seeds(f, "tpm-swtpm", 4<<10) {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		q, err := UnverifiedQuote(raw)
		if !reasoned(t, err) {
			return
		}
		theirs, err := tpm2.Unmarshal[tpm2.TPMSAttest](raw)
		if err != nil {
			t.Fatalf("go-tpm refuses it: %v", err)
		}
		if !bytes.Equal(theirs.ExtraData.Buffer, q.ExtraData) || !bytes.Equal(tpm2.Marshal(theirs), raw) {
			t.Fatalf("read otherwise: %+v, %+v", q, theirs)
		}
	})
}

// FuzzKey: go-tpm parses every accepted key, and encodes it to the same bytes.
func FuzzKey(f *testing.F) {
	public := keyTemplate
	public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, point(f))
	f.Add(tpm2.Marshal(public))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if _, err := parseKey(raw); !reasoned(t, err) {
			return
		}
		theirs, err := tpm2.Unmarshal[tpm2.TPMTPublic](raw)
		if err != nil || !bytes.Equal(tpm2.Marshal(theirs), raw) {
			t.Fatalf("go-tpm reads it otherwise: %v", err)
		}
	})
}

// FuzzSignature, FuzzCredential, FuzzEventLog and FuzzCertificates test the parsers for which
// this package has no encoder.
func FuzzSignature(f *testing.F) {
	f.Add([]byte{0, algECDSA, 0, algSHA256, 0, 1, 1, 0, 1, 1})
	f.Fuzz(func(t *testing.T, raw []byte) { _, err := ParseSignature(raw); reasoned(t, err) })
}

func FuzzCredential(f *testing.F) {
	f.Add([]byte{0, 1, 1, 0, 1, 1})
	f.Fuzz(func(t *testing.T, raw []byte) {
		object, encrypted, err := splitCredential(raw)
		if reasoned(t, err) && len(object)+len(encrypted)+4 != len(raw) {
			t.Fatal("bytes left over")
		}
	})
}

func FuzzEventLog(f *testing.F) {
	f.Add(make([]byte, 32))
	for _, raw := range vectortest.Seeds(f, "tpm-eventlog", 32<<10) {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, err := replayEvents(raw, sha256PCRs(make([]byte, len(quotedPCRs)*pcrSize)))
		reasoned(t, err)
	})
}

func FuzzCertificates(f *testing.F) {
	f.Add([]byte("der"), []byte("-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, leaf, bundle []byte) {
		_, err := parseEK(leaf)
		reasoned(t, err)
		_, err = maker.Certificates(roleCA, bundle, maxCA)
		reasoned(t, err)
	})
}

func FuzzSealed(f *testing.F) {
	f.Add(frameReferences([]attest.ReferenceValue{measurement(make([]byte, len(quotedPCRs)*pcrSize), make([]byte, pcrSize), program("a", "b"))}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		to, err := parseReferences(raw)
		if !reasoned(t, err) {
			return
		}
		if !bytes.Equal(frameReferences(to), raw) {
			t.Fatal("encoded otherwise")
		}
		_, _, err = policies(to)
		reasoned(t, err)
	})
}
