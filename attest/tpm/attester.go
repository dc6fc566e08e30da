//go:build linux

package tpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// maxEventLog is how much of an event log evidence has room for. A longer one is
// left out: it is for people.
const maxEventLog = 128 << 10

// Config states what is launched, and on which machine.
type Config struct {
	Machine Machine
	// CA is the certificates above the endorsement key's, PEM.
	CA []byte
	// EventLog is the file of the firmware's event log
	// (/sys/kernel/security/tpm0/binary_bios_measurements), or empty.
	EventLog string
	// Launch is what the caller measured; Launch makes its Key.
	Launch Launch
}

// Device is a TPM as one launch uses it. It implements [attest.CredentialActivator] and
// [attest.Sealer] and is safe for concurrent use. Its attestation key dies with it
// where it is not exported: the TPM keeps none.
type Device struct {
	machine  Machine
	ca       []byte
	eventLog []byte
	launch   Launch
	in       attest.TPMKeys

	ekHandle tpm2.TPMHandle   // where it is persistent, or 0
	ek       tpm2.TPMTPublic  // or its template
	storage  tpm2.TPMSContext // of the storage root key
	ak       tpm2.TPMSContext // of the attestation key
	private  []byte           // of the attestation key, as the TPM alone reads it
	auth     []byte           // of the attestation key: no other process quotes with it
}

var (
	_ attest.CredentialActivator = (*Device)(nil)
	_ attest.Sealer              = (*Device)(nil)
)

// NewDevice makes an attestation key for a launch and enters the launch into the
// log and PCR 14, which nothing takes back until the machine boots. The caller
// starts the program after that. It refuses with "not-this-device" where there is
// no TPM with the certificate of an endorsement key.
func NewDevice(c Config) (*Device, error) {
	d := &Device{machine: c.Machine, ca: c.CA, launch: c.Launch, auth: make([]byte, 16)}
	rand.Read(d.auth)
	if c.EventLog != "" {
		log, err := os.ReadFile(c.EventLog)
		if err != nil {
			return nil, fmt.Errorf("reading the event log: %w", err)
		}
		if len(log) <= maxEventLog {
			d.eventLog = log
		}
	}
	return d, d.machine.withTPM(func(t transport.TPM) error {
		if err := d.findEndorsement(t); err != nil {
			return err
		}
		if err := d.makeKey(t); err != nil {
			return absent(err)
		}
		return d.machine.addLaunch(t, d.launch)
	})
}

// findEndorsement reads the certificate of the endorsement key and finds the key.
func (d *Device) findEndorsement(t transport.TPM) error {
	for _, e := range endorsements {
		raw, err := readNV(t, e.certificate)
		if err != nil || raw == nil {
			continue
		}
		var der cryptobyte.String // some indices are longer than what they hold
		whole := cryptobyte.String(raw)
		if !whole.ReadASN1Element(&der, asn1.SEQUENCE) {
			continue
		}
		leaf, err := parseEK(der)
		if err != nil {
			continue
		}
		d.in.Device, d.ek = bytes.Clone(der), endorsementTemplate(leaf.PublicKey)
		if persistent, err := (tpm2.ReadPublic{ObjectHandle: e.key}).Execute(t); err == nil {
			public, err := persistent.OutPublic.Contents()
			if err == nil && samePublic(public, leaf.PublicKey) {
				d.ekHandle, d.ek = e.key, *public
			}
		}
		return nil
	}
	return absent(errors.New("it holds no certificate of an endorsement key"))
}

func samePublic(public *tpm2.TPMTPublic, key crypto.PublicKey) bool {
	got, err := tpm2.Pub(*public)
	if err != nil {
		return false
	}
	same, ok := got.(interface{ Equal(crypto.PublicKey) bool })
	return ok && same.Equal(key)
}

// makeKey makes the attestation key, below the storage root key: another process
// can neither derive nor load it.
func (d *Device) makeKey(t transport.TPM) error {
	root, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(t)
	if err != nil {
		return fmt.Errorf("making the storage root key: %w", err)
	}
	defer flush(t, root.ObjectHandle)
	if d.storage, err = saveObject(t, root.ObjectHandle); err != nil {
		return err
	}
	parent := tpm2.AuthHandle{Handle: root.ObjectHandle, Name: root.Name, Auth: tpm2.PasswordAuth(nil)}
	made, err := tpm2.Create{
		ParentHandle: parent,
		InSensitive:  tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{UserAuth: tpm2.TPM2BAuth{Buffer: d.auth}}},
		InPublic:     tpm2.New2B(keyTemplate),
	}.Execute(t)
	if err != nil {
		return fmt.Errorf("making the attestation key: %w", err)
	}
	loaded, err := tpm2.Load{ParentHandle: parent, InPrivate: made.OutPrivate, InPublic: made.OutPublic}.Execute(t)
	if err != nil {
		return fmt.Errorf("loading the attestation key: %w", err)
	}
	defer flush(t, loaded.ObjectHandle)
	d.in.Key, d.private = bytes.Clone(made.OutPublic.Bytes()), bytes.Clone(made.OutPrivate.Buffer)
	d.launch.Key = nameOf(d.in.Key)
	d.ak, err = saveObject(t, loaded.ObjectHandle)
	return err
}

// keyTemplate is the attestation key: restricted ECDSA P-256.
var keyTemplate = tpm2.TPMTPublic{
	Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
	ObjectAttributes: tpm2.TPMAObject{
		FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, Restricted: true, SignEncrypt: true,
	},
	Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
		Scheme: tpm2.TPMTECCScheme{
			Scheme:  tpm2.TPMAlgECDSA,
			Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
		},
		CurveID: tpm2.TPMECCNistP256,
	}),
}

// A TPM has room for three objects: whatever is loaded is flushed.
func flush(t transport.TPM, h tpm2.TPMHandle) { _, _ = tpm2.FlushContext{FlushHandle: h}.Execute(t) }

func saveObject(t transport.TPM, h tpm2.TPMHandle) (tpm2.TPMSContext, error) {
	saved, err := tpm2.ContextSave{SaveHandle: h}.Execute(t)
	if err != nil {
		return tpm2.TPMSContext{}, fmt.Errorf("saving an object: %w", err)
	}
	return saved.Context, nil
}

// withLoaded runs f with an object that was saved.
func withLoaded(t transport.TPM, c tpm2.TPMSContext, f func(tpm2.TPMHandle) error) error {
	l, err := tpm2.ContextLoad{Context: c}.Execute(t)
	if err != nil {
		return fmt.Errorf("loading an object: %w", err)
	}
	defer flush(t, l.LoadedHandle)
	return f(l.LoadedHandle)
}

// akHandle is the loaded attestation key as commands take it.
func (d *Device) akHandle(h tpm2.TPMHandle) tpm2.AuthHandle {
	return keyHandle(h, d.launch.Key, d.auth)
}

func keyHandle(h tpm2.TPMHandle, name attest.Digest, auth []byte) tpm2.AuthHandle {
	whole := append([]byte{0, algSHA256}, name[:]...)
	return tpm2.AuthHandle{Handle: h, Name: tpm2.TPM2BName{Buffer: whole}, Auth: tpm2.PasswordAuth(auth)}
}

// TPMKeys states who the device is.
func (d *Device) TPMKeys() attest.TPMKeys { return d.in }

// Attest makes evidence without a credential's secret. Only who was shown the key
// before accepts it.
func (d *Device) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	return d.evidence(ctx, data, func(transport.TPM) ([]byte, error) { return nil, nil })
}

// AttestFor makes evidence with the secret of a credential.
func (d *Device) AttestFor(ctx context.Context, data attest.ReportData, credential []byte) (attest.Evidence, error) {
	object, encrypted, err := splitCredential(credential)
	if err != nil {
		return attest.Evidence{}, err
	}
	return d.evidence(ctx, data, func(t transport.TPM) (secret []byte, err error) {
		err = withLoaded(t, d.ak, func(h tpm2.TPMHandle) error {
			secret, err = d.activate(t, d.akHandle(h), object, encrypted)
			return err
		})
		return secret, err
	})
}

func (d *Device) evidence(ctx context.Context, data attest.ReportData, secret func(transport.TPM) ([]byte, error)) (attest.Evidence, error) {
	if err := ctx.Err(); err != nil {
		return attest.Evidence{}, err
	}
	e := evidence{TPMKeys: d.in, eventLog: d.eventLog}
	err := d.machine.withTPM(func(t transport.TPM) (err error) {
		if e.secret, err = secret(t); err != nil {
			return err
		}
		if e.values, err = readPCRs(t, quotedPCRs); err != nil {
			return err
		}
		e.log = d.machine.readLog(e.values)
		return d.quote(t, data, &e)
	})
	if err != nil {
		return attest.Evidence{}, err
	}
	return attest.Evidence{Platform: attest.TPM, Raw: e.bytes(), Endorsed: attest.Endorsements{roleCA: d.ca}}, nil
}

// quote asks for a quote over the SHA-256 of the report data: a TPM has room for
// no more.
func (d *Device) quote(t transport.TPM, data attest.ReportData, e *evidence) error {
	extra := sha256.Sum256(data[:])
	return withLoaded(t, d.ak, func(h tpm2.TPMHandle) error {
		q, err := tpm2.Quote{
			SignHandle: d.akHandle(h), QualifyingData: tpm2.TPM2BData{Buffer: extra[:]},
			InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, PCRSelect: selectPCRs(quotedPCRs),
		}.Execute(t)
		if err != nil {
			return absent(fmt.Errorf("quoting: %w", err))
		}
		e.quote, e.signature = bytes.Clone(q.Quoted.Bytes()), tpm2.Marshal(q.Signature)
		return nil
	})
}

// activate opens a credential for a loaded attestation key.
func (d *Device) activate(t transport.TPM, key tpm2.AuthHandle, object, encrypted []byte) (secret []byte, err error) {
	err = d.withEndorsementKey(t, func(ek tpm2.AuthHandle) error {
		got, err := tpm2.ActivateCredential{
			ActivateHandle: key, KeyHandle: ek,
			CredentialBlob: tpm2.TPM2BIDObject{Buffer: object}, Secret: tpm2.TPM2BEncryptedSecret{Buffer: encrypted},
		}.Execute(t)
		if err != nil {
			return wire.Refuse(wire.WrongChip, "tpm: credential", err, "one made for this device and key")
		}
		secret = bytes.Clone(got.CertInfo.Buffer)
		return nil
	})
	return secret, err
}

// withEndorsementKey runs f with the endorsement key, which is made anew where it does not
// be persistent.
func (d *Device) withEndorsementKey(t transport.TPM, f func(tpm2.AuthHandle) error) error {
	handle := d.ekHandle
	if handle == 0 {
		made, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(d.ek)}.Execute(t)
		if err != nil {
			return absent(fmt.Errorf("making the endorsement key: %w", err))
		}
		handle = made.ObjectHandle
		defer flush(t, handle)
	}
	read, err := tpm2.ReadPublic{ObjectHandle: handle}.Execute(t)
	if err != nil {
		return absent(err)
	}
	auth := tpm2.PasswordAuth(nil)
	if !d.ek.ObjectAttributes.UserWithAuth {
		auth = tpm2.Policy(tpm2.TPMAlgSHA256, 16, byEndorsement)
	}
	return f(tpm2.AuthHandle{Handle: handle, Name: read.Name, Auth: auth})
}

// byEndorsement is the policy of endorsement keys of the low range.
func byEndorsement(t transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
	_, err := tpm2.PolicySecret{
		AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		PolicySession: session, NonceTPM: nonce,
	}.Execute(t)
	return err
}
