package tpm

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// altered returns evidence with one part changed.
func altered(t testing.TB, e attest.Evidence, change func(*evidence)) attest.Evidence {
	t.Helper()
	parts, err := parse(e.Raw)
	if err != nil {
		t.Fatal(err)
	}
	change(&parts)
	e.Raw = parts.bytes()
	return e
}

func wantRefusal(t *testing.T, err error, reason wire.Reason, rule string) {
	t.Helper()
	if !errors.Is(err, reason) || !strings.Contains(err.Error(), rule) {
		t.Errorf("got %v, want %s: … %s", err, reason, rule)
	}
}

// quoteOver returns a device's genuine quote over other PCRs.
func (s *scene) quoteOver(d *Device, pcrs ...int) (quote, signature []byte) {
	s.t.Helper()
	defer func(all []int) { quotedPCRs = all }(quotedPCRs)
	quotedPCRs = pcrs
	var e evidence
	if err := d.machine.withTPM(func(t transport.TPM) error { return d.quote(t, data, &e) }); err != nil {
		s.t.Fatal(err)
	}
	return e.quote, e.signature
}

// TestRefusals: each smallest change of good evidence is refused with its reason.
func TestRefusals(t *testing.T) {
	s := newScene(t)
	d := s.launch("agent", "one")
	good := s.evidence(d)
	if _, err := s.appraise(good); err != nil {
		t.Fatal(err)
	}
	stranger := newScene(t)
	theirs := s.maker.TPM(t)
	other := &scene{TPM: theirs, t: t, maker: s.maker, rules: s.rules, at: s.at}
	other.boot("quiet")
	twin := other.evidence(other.launch("agent", "one"))
	twinParts, err := parse(twin.Raw)
	if err != nil {
		t.Fatal(err)
	}
	noQuote, noSignature := s.quoteOver(d)
	fewQuote, fewSignature := s.quoteOver(d, 0, 14)
	for _, row := range []struct {
		name   string
		change func(*evidence)
		reason wire.Reason
		rule   string
	}{
		{"a quote over no PCR", func(e *evidence) { e.quote, e.signature = noQuote, noSignature }, wire.BadDigest, "PCRs of the quote"},
		{"a quote over few PCRs", func(e *evidence) { e.quote, e.signature = fewQuote, fewSignature }, wire.BadDigest, "PCRs of the quote"},
		{"another TPM's quote", func(e *evidence) { e.quote, e.signature = twinParts.quote, twinParts.signature }, wire.BadSignature, "signature of the quote"},
		{"another TPM's key", func(e *evidence) { device := e.TPMKeys; *e = twinParts; e.Device = device.Device }, wire.WrongChip, "credential"},
		{"no secret", func(e *evidence) { e.secret = nil }, wire.WrongChip, "credential"},
		{"another secret", func(e *evidence) { e.secret = bytes.Repeat([]byte{1}, attest.SecretSize) }, wire.WrongChip, "credential"},
		{"other PCR values", func(e *evidence) { e.values = bytes.Clone(e.values); e.values[0] ^= 1 }, wire.BadDigest, "PCR values"},
		{"a launch left out", func(e *evidence) { e.log.Launches = nil }, wire.BadDigest, "launch log"},
		{"another base", func(e *evidence) { e.log.Base[0] ^= 1 }, wire.BadDigest, "launch log"},
		{"another program", func(e *evidence) { e.log.Launches[0].Program[0] ^= 1 }, wire.BadDigest, "launch log"},
		{"the last launch told as the base", func(e *evidence) { e.log = launchLog{Base: e.log.replay()} }, wire.NotMeasured, "launch of this key"},
		{"an event log that is none", func(e *evidence) { e.eventLog = []byte("log") }, wire.Malformed, "event log"},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := s.appraise(altered(t, good, row.change))
			wantRefusal(t, err, row.reason, row.rule)
		})
	}
	t.Run("a replayed quote", func(t *testing.T) {
		_, err := attest.NewVerifier(new(quoteAppraiser)).Appraise(attest.Question{
			Evidence: good, ReportData: attest.BindReportData(wire.LabelIssue, []byte("another use")),
			Rules: map[attest.Platform]attest.Rules{attest.TPM: s.rules}, At: s.at, Secret: secret,
		})
		wantRefusal(t, err, wire.BadNonce, "report data")
	})
	t.Run("a credential nobody asked for", func(t *testing.T) {
		_, err := attest.NewVerifier(new(quoteAppraiser)).Appraise(attest.Question{
			Evidence: good, ReportData: data, Rules: map[attest.Platform]attest.Rules{attest.TPM: s.rules}, At: s.at,
		})
		wantRefusal(t, err, wire.WrongChip, "credential")
	})
	t.Run("a stranger's TPM", func(t *testing.T) {
		_, err := s.appraise(stranger.evidence(stranger.launch("agent", "one")))
		wantRefusal(t, err, wire.UnknownRoot, "authority")
	})
	t.Run("another maker's certificates", func(t *testing.T) {
		e := good
		e.Endorsed = attest.Endorsements{roleCA: append(stranger.maker.CA(t), s.rootOnly()...)}
		_, err := s.appraise(e)
		wantRefusal(t, err, wire.BadChain, "certificate")
	})
	t.Run("a year before", func(t *testing.T) {
		early := *s
		early.at = s.at.Add(-365 * 24 * time.Hour)
		_, err := early.appraise(good)
		wantRefusal(t, err, wire.Expired, "time")
	})
	t.Run("a cut device", func(t *testing.T) {
		cut := *s
		leaf, err := x509.ParseCertificate(d.in.Device)
		if err != nil {
			t.Fatal(err)
		}
		chip := wire.Sum(leaf.RawSubjectPublicKeyInfo)
		cut.rules.TPM.CutChips = [][]byte{chip[:]}
		_, err = cut.appraise(good)
		wantRefusal(t, err, wire.NoPlatform, "device")
	})
	t.Run("a credential for another key", func(t *testing.T) {
		in := attest.TPMKeys{Device: d.in.Device, Key: twinParts.Key}
		credential, err := new(quoteAppraiser).Credential(in, secret(in))
		if err != nil {
			t.Fatal(err)
		}
		_, err = d.AttestFor(t.Context(), data, credential)
		wantRefusal(t, err, wire.WrongChip, "credential")
	})
}

// rootOnly returns the manufacturer's root without the intermediate certificates.
func (s *scene) rootOnly() []byte {
	_, rest := pem.Decode(s.maker.CA(s.t))
	return rest
}

// TestLaunches: restarts and a second task are admitted. After a launch of a program that the
// policy does not name, nothing on the machine is admitted until it boots.
func TestLaunches(t *testing.T) {
	s := newScene(t)
	admitted := func(d *Device) error { _, err := s.appraise(s.evidence(d)); return err }
	first := s.launch("agent", "one")
	for _, name := range []string{"one", "one", "one", "two"} {
		if err := admitted(s.launch("agent", name)); err != nil {
			t.Fatal(err)
		}
	}
	r, err := s.appraise(s.evidence(first))
	if err != nil || attest.Match(s.reference("agent", "one"), r.Measurement()) != nil {
		t.Errorf("the first launch, after others: %v, %v", r.Measurement(), err)
	}
	changed := s.launch("agent", "changed bytes")
	r, err = s.appraise(s.evidence(changed))
	if err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, attest.Match(s.reference("agent", "one"), r.Measurement()), wire.NotMeasured, "measurement: program")
	wantRefusal(t, admitted(s.launch("agent", "one")), wire.NotMeasured, "launch 6 since boot")
	wantRefusal(t, admitted(first), wire.NotMeasured, "launch 6 since boot")

	s.boot("quiet init=/bin/sh")
	r, err = s.appraise(s.evidence(s.launch("agent", "one")))
	if err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, attest.Match(s.rules.TPM.Launches[0], r.Measurement()), wire.NotMeasured, "measurement: pcr8")

	s.boot("quiet")
	s.Extend(t, programPCR, "an agent that keeps no log")
	r, err = s.appraise(s.evidence(s.launch("agent", "one")))
	if err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, attest.Match(s.rules.TPM.Launches[0], r.Measurement()), wire.NotMeasured, "measurement: pcr14")
}

// TestCutShort: an agent that ends after it wrote the log, but before it extended the TPM, does
// not affect later launches.
func TestCutShort(t *testing.T) {
	s := newScene(t)
	s.launch("agent", "one")
	raw, err := os.ReadFile(s.Log)
	if err != nil {
		t.Fatal(err)
	}
	log, err := parseLaunchLog(raw)
	if err != nil {
		t.Fatal(err)
	}
	log.Launches = append(log.Launches, program("agent", "never started"))
	if err := os.WriteFile(s.Log, log.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.appraise(s.evidence(s.launch("agent", "one"))); err != nil {
		t.Error(err)
	}
}

// TestSeal: only the programs that a secret is sealed to can unseal it. On a machine that booted
// differently, the TPM itself refuses.
func TestSeal(t *testing.T) {
	s := newScene(t)
	here := []attest.ReferenceValue{s.reference("agent", "one"), s.reference("agent", "two")}
	s.boot("quiet mitigations=auto")
	to := append([]attest.ReferenceValue{s.reference("agent", "one")}, here...)
	s.boot("quiet")
	sealed, err := s.launch("agent", "one").Seal(t.Context(), []byte("root secret"), to)
	if err != nil {
		t.Fatal(err)
	}
	unseal := func(name string, sealed []byte) error {
		got, err := s.launch("agent", name).Unseal(t.Context(), sealed)
		if err == nil && string(got) != "root secret" {
			t.Errorf("got %q", got)
		}
		return err
	}
	for _, name := range []string{"one", "two"} {
		if err := unseal(name, sealed); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	wantRefusal(t, unseal("three", sealed), wire.NotMeasured, "measurement: program")
	s.boot("quiet mitigations=auto")
	if err := unseal("one", sealed); err != nil {
		t.Errorf("the other boot: %v", err)
	}
	own, err := s.launch("agent", "one").Seal(t.Context(), []byte("root secret"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := unseal("one", own); err != nil {
		t.Errorf("sealed to its own measurement: %v", err)
	}
	for at := range sealed {
		if at%211 == 0 {
			broken := bytes.Clone(sealed)
			broken[at] ^= 1
			if err := unseal("one", broken); err == nil || errors.Is(err, wire.Internal) {
				t.Errorf("byte %d changed: %v", at, err)
			}
		}
	}

	s.boot("quiet init=/bin/sh")
	wantRefusal(t, unseal("one", sealed), wire.NotMeasured, "measurement: pcr8")
	// An agent without that check calls the TPM directly.
	var f [4][]byte
	if err := wire.UnframeInto(f[:], wire.LabelTPMSeal, sealed); err != nil {
		t.Fatal(err)
	}
	d := s.launch("agent", "one")
	err = d.machine.withTPM(func(tpm transport.TPM) error {
		_, err := d.unsealKey(tpm, f[0], f[1], to, here[0])
		return err
	})
	wantRefusal(t, err, wire.BadSignature, "unsealing")
}

// TestSealTooMany: more than eight branches, the limit of a TPM, are refused before anything is
// sealed.
func TestSealTooMany(t *testing.T) {
	var to []attest.ReferenceValue
	for i := range 9 {
		to = append(to, measurement(bytes.Repeat([]byte{byte(i)}, len(quotedPCRs)*pcrSize), make([]byte, pcrSize), program("a", "b")))
	}
	_, err := new(Device).Seal(t.Context(), nil, to)
	wantRefusal(t, err, wire.TooLarge, "boot PCRs")
}

// TestKeys: a key with attributes other than an attestation key's is refused.
func TestKeys(t *testing.T) {
	good := keyTemplate
	good.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, point(t))
	if _, err := parseKey(tpm2.Marshal(good)); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*tpm2.TPMAObject){
		"not restricted":            func(a *tpm2.TPMAObject) { a.Restricted = false },
		"not fixedTPM":              func(a *tpm2.TPMAObject) { a.FixedTPM = false },
		"not fixedParent":           func(a *tpm2.TPMAObject) { a.FixedParent = false },
		"not sensitiveDataOrigin":   func(a *tpm2.TPMAObject) { a.SensitiveDataOrigin = false },
		"not sign":                  func(a *tpm2.TPMAObject) { a.SignEncrypt = false },
		"decrypt":                   func(a *tpm2.TPMAObject) { a.Decrypt = true },
		"with encryptedDuplication": func(a *tpm2.TPMAObject) { a.EncryptedDuplication = true },
	} {
		bad := good
		change(&bad.ObjectAttributes)
		if _, err := parseKey(tpm2.Marshal(bad)); !errors.Is(err, wire.BadChain) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestEveryBit: evidence with a flipped bit, cut short or extended is refused. The credential's
// secret or PCR 14 protects the parts that are not signed.
func TestEveryBit(t *testing.T) {
	s := newScene(t)
	s.launch("agent", "two")
	good := s.evidence(s.launch("agent", "one"))
	step := 67 // odd, so that it covers every bit position
	if os.Getenv("COHORT_FULL") == "1" {
		step = 1
	}
	try := func(what string, at int, raw []byte) {
		e := good
		e.Raw = raw
		_, err := s.appraise(e)
		var refusal *attest.Refusal
		if !errors.As(err, &refusal) {
			t.Errorf("%s at %d: %v", what, at, err)
		}
	}
	for bit := 0; bit < 8*len(good.Raw); bit += step {
		flipped := bytes.Clone(good.Raw)
		flipped[bit/8] ^= 1 << (bit % 8)
		try("flipped", bit, flipped)
	}
	for size := 0; size < len(good.Raw); size += step {
		try("cut", size, good.Raw[:size])
	}
	try("longer", len(good.Raw), append(bytes.Clone(good.Raw), 0))
}
