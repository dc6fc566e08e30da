package attest

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// ReportData is what evidence is bound to: 64 bytes that name the use, the
// verifier's nonce and the keys that will carry secrets.
type ReportData [64]byte

// Bind is the report data of one use: SHA-512 over the framing of the fields
// under the label of that use.
func Bind(label wire.Label, fields ...[]byte) ReportData {
	return ReportData(wire.Hash512(label, fields...))
}

// carried reports whether evidence carries the report data: all 64 bytes, or
// their SHA-256 on platforms with room for 32.
func (d ReportData) carried(in []byte) bool {
	short := sha256.Sum256(d[:])
	return subtle.ConstantTimeCompare(in, d[:]) == 1 || subtle.ConstantTimeCompare(in, short[:]) == 1
}

// Attester makes evidence about the program it runs in. It is implemented by
// the device of each platform.
type Attester interface {
	// Attest asks the TEE for evidence that carries the report data. It
	// blocks until the TEE answers or ctx is done.
	Attest(ctx context.Context, data ReportData) (Evidence, error)
}

// Sealer keeps secrets for programs by their measurement. The TEE, not the
// caller, decides whether the caller's measurement is among them.
type Sealer interface {
	// Seal encrypts a secret of at most 64 KiB so that only programs that
	// match one of the reference values can unseal it. With none it is
	// sealed to the caller's own measurement.
	Seal(ctx context.Context, secret []byte, to []ReferenceValue) ([]byte, error)
	// Unseal gives the secret back, or refuses with reason "measurement"
	// when it was not sealed to the caller.
	Unseal(ctx context.Context, sealed []byte) ([]byte, error)
}

// Rules are what policy says about one platform: who may vouch for it, and the
// floors below which evidence is refused. The zero Rules accept nothing.
type Rules struct {
	// Roots are SHA-256 digests of the SubjectPublicKeyInfo of accepted
	// platform roots.
	Roots []Digest
	// Debug accepts TEEs whose memory their host can read. It is set by a
	// flag of its own name in policy and shown wherever a result is shown.
	Debug bool
	// CRL says what a missing revocation list means (policy key "crl").
	CRL CRLRule
	// CheckedWithin is how long ago lists and statements of the vendor may have
	// been had from him (policy key "checked_within"). Zero leaves it to their
	// own end.
	CheckedWithin time.Duration
	// SNP, Nitro, TPM and NVIDIA are the rules of one platform only, DCAP
	// those of Intel's two.
	SNP    SNPRules
	DCAP   DCAPRules
	Nitro  NitroRules
	TPM    TPMRules
	NVIDIA NVIDIARules
}

// Claims are what an [Appraiser] read out of evidence whose signatures it
// checked. They are not yet a [Result]: neither the binding nor the debug state
// was judged.
type Claims struct {
	Measurement Measurement
	ReportData  []byte // 64 bytes, or 32 on platforms with room for no more
	Debug       bool   // the host can read the TEE
	Dynamic     bool   // the program loads code that is not in its measurement
	Chip        string // what names this one device, for people and for cut-offs
	// Activation is what binds the signing key to the chip, on platforms
	// where a credential does; nil on all others.
	Activation *Activation
	// Unjudged is what the vendor would have compared and nobody did, a phrase
	// each. It stands wherever a verdict on the evidence is shown.
	Unjudged []string
	// Details is everything else that was read, by the names of
	// docs/spec/evidence-*.md, as JSON would hold it (byte strings in hex).
	// It is for people: nothing decides on it.
	Details map[string]any
}

// Appraiser judges the evidence of one platform, as its vendor defines it:
// encoding, signatures, chains, revocation, versions.
type Appraiser interface {
	Platform() Platform
	// Appraise is pure. It refuses with a reason of the closed list.
	Appraise(raw []byte, endorsed Endorsements, rules Rules, at time.Time) (Claims, error)
}

// UnverifiedClaims are what evidence says of itself, with no signature checked.
// They are for people who want to know why evidence is refused. It refuses what
// cannot be read, and platforms that the verifier does not know or that have no
// reader.
func (v *Verifier) UnverifiedClaims(e Evidence) (Claims, error) {
	reader, ok := v.appraisers[e.Platform].(interface {
		UnverifiedClaims(raw []byte) (Claims, error)
	})
	if !ok {
		return Claims{}, wire.Refuse(wire.NoPlatform, "evidence: platform", e.Platform, "one whose evidence can be read")
	}
	return reader.UnverifiedClaims(e.Raw)
}

// Result is an Attestation Result: claims that hold. Only [Verifier.Appraise]
// makes one that is accepted anywhere.
type Result struct {
	claims  Claims
	checked []Checked // of the TEE's
	devices []Device
	at      time.Time
	ok      bool
}

// Device is a further device of the machine whose evidence holds.
type Device struct {
	Platform Platform
	Chip     string    // names this one device
	Unjudged []string  // what nobody compared
	Checked  []Checked // when its vendor's documents were had from him, as [Result.Checked]
	Debug    bool      // its host can read it; policy allowed that
}

// OK reports whether the result came from a successful appraisal.
func (r Result) OK() bool { return r.ok }

// Measurement is the measurement of the attested program.
func (r Result) Measurement() Measurement { return r.claims.Measurement }

// Debug reports whether the host can read the TEE or a device beside it; policy
// allowed it.
func (r Result) Debug() bool {
	return r.claims.Debug || slices.ContainsFunc(r.devices, func(d Device) bool { return d.Debug })
}

// Devices are the devices beside the TEE, in the order of the evidence; no two are
// one chip.
func (r Result) Devices() []Device { return slices.Clone(r.devices) }

// Unjudged is what nobody compared of the TEE's own evidence.
func (r Result) Unjudged() []string { return r.claims.Unjudged }

// Dynamic reports whether the program loads code outside its measurement.
func (r Result) Dynamic() bool { return r.claims.Dynamic }

// Chip names the device that vouched.
func (r Result) Chip() string { return r.claims.Chip }

// Checked says when the vendor's documents were had from him, as whoever passed
// them on says it; the caller does not change it.
func (r Result) Checked() []Checked { return r.checked }

// At is the time the evidence was appraised for.
func (r Result) At() time.Time { return r.at }

// Verifier appraises evidence of the platforms it was given appraisers for. It
// is immutable and safe for concurrent use.
type Verifier struct {
	appraisers map[Platform]Appraiser
}

// NewVerifier makes a verifier of the given platforms. With none it refuses
// everything.
func NewVerifier(appraisers ...Appraiser) *Verifier {
	v := &Verifier{appraisers: make(map[Platform]Appraiser, len(appraisers))}
	for _, a := range appraisers {
		v.appraisers[a.Platform()] = a
	}
	return v
}

// Question is everything an appraisal depends on.
type Question struct {
	Evidence     Evidence
	Endorsements Endorsements       // beside those that came with the evidence
	ReportData   ReportData         // what the evidence must be bound to
	Rules        map[Platform]Rules // from policy; a platform without rules is refused
	At           time.Time          // the time to judge for
	// Secret is what the verifier hid in the credential for a device and
	// key. Without it, evidence that needs one is refused.
	Secret func(Introduction) []byte
}

// AppraiseFor judges evidence that answers no challenge, where the verifier gives
// something to whoever made it. On platforms whose keys a credential binds, the
// result holds for the device that opens the challenge and for nobody else: the
// caller encrypts whatever it gives under [Challenge.Secret]. On all others it is
// Appraise, and the challenge is the zero one. It refuses as Appraise does.
func (v *Verifier) AppraiseFor(q Question) (Result, Challenge, error) {
	in, introduced, err := v.Introduced(q.Evidence)
	if err != nil {
		return Result{}, Challenge{}, err
	}
	if !introduced {
		r, err := v.Appraise(q)
		return r, Challenge{}, err
	}
	r, err := v.judge(q)
	if err != nil {
		return Result{}, Challenge{}, err
	}
	c, err := v.Challenge(q.Evidence.Platform, in)
	if err != nil {
		return Result{}, Challenge{}, err
	}
	return r, c, nil
}

// Appraise judges evidence, and that of every device beside it: each for the same
// report data, each by the rules of its own platform. One part that does not hold
// refuses the whole. It refuses with reason "platform" when no appraiser or no rule
// knows the platform, and a device alone, with "nonce" when the evidence was made
// for another use, with "expired" when the vendor's documents were had from him
// longer ago than the rules say, with "wrong-chip" when a credential does not bind
// its key to the device it names and when one device vouches twice, with "debug"
// when the host can read the TEE and the rules do not allow it, and with the
// appraiser's reason otherwise.
func (v *Verifier) Appraise(q Question) (Result, error) {
	r, err := v.judge(q)
	if err != nil {
		return Result{}, err
	}
	if err := r.claims.Activation.check(q.Secret); err != nil {
		return Result{}, err
	}
	return r, nil
}

// judge is Appraise without the credential.
func (v *Verifier) judge(q Question) (Result, error) {
	if q.Evidence.Platform.IsDevice() {
		return Result{}, wire.Refuse(wire.NoPlatform, "appraisal: platform", q.Evidence.Platform+" alone", "a TEE that runs a program")
	}
	if err := q.Evidence.devicesOK(); err != nil {
		return Result{}, err
	}
	tee := q.Evidence.With(q.Endorsements)
	claims, err := v.appraise(q, tee)
	if err != nil {
		return Result{}, err
	}
	result := Result{claims: claims, at: q.At, ok: true}
	if result.checked, err = tee.Endorsed.Checked(); err != nil {
		return Result{}, err
	}
	for i, e := range q.Evidence.Devices {
		d, err := v.device(q, e)
		if err != nil {
			return Result{}, fmt.Errorf("device %d: %w", i, err)
		}
		if slices.ContainsFunc(result.devices, d.same) {
			return Result{}, wire.Refuse(wire.WrongChip, "appraisal: device", d.Chip+" twice", "each once")
		}
		result.devices = append(result.devices, d)
	}
	return result, nil
}

// AppraiseDevice judges the evidence of a device that has no TEE beside it, as
// Appraise judges a part. It is for people who look at one: a [Device] is no
// [Result], and admits nobody anywhere. It refuses with "platform" what is no device.
func (v *Verifier) AppraiseDevice(q Question) (Device, error) {
	if !q.Evidence.Platform.IsDevice() {
		return Device{}, wire.Refuse(wire.NoPlatform, "appraisal: platform", q.Evidence.Platform, "a device")
	}
	return v.device(q, q.Evidence.With(q.Endorsements))
}

func (v *Verifier) device(q Question, e Evidence) (Device, error) {
	claims, err := v.appraise(q, e)
	if err != nil {
		return Device{}, err
	}
	checked, err := e.Endorsed.Checked()
	return Device{Platform: e.Platform, Chip: claims.Chip, Unjudged: claims.Unjudged, Checked: checked, Debug: claims.Debug}, err
}

// same reports whether two devices are one chip.
func (d Device) same(other Device) bool { return d.Platform == other.Platform && d.Chip == other.Chip }

// appraise judges one part of evidence.
func (v *Verifier) appraise(q Question, e Evidence) (Claims, error) {
	appraiser, known := v.appraisers[e.Platform]
	rules, ruled := q.Rules[e.Platform]
	if !known || !ruled {
		return Claims{}, wire.Refuse(wire.NoPlatform, "appraisal: platform", e.Platform, "a platform that policy names")
	}
	if q.ReportData == (ReportData{}) {
		return Claims{}, wire.Refuse(wire.BadNonce, "appraisal: report data", "none", "what the evidence must be bound to")
	}
	claims, err := appraiser.Appraise(e.Raw, e.Endorsed, rules, q.At)
	if err != nil {
		return Claims{}, err
	}
	if claims.Measurement.Platform != e.Platform {
		return Claims{}, wire.Refuse(wire.NoPlatform, "appraisal: platform of the measurement", claims.Measurement.Platform, e.Platform)
	}
	if !q.ReportData.carried(claims.ReportData) {
		return Claims{}, wire.Refuse(wire.BadNonce, "appraisal: report data", "evidence made for another use", "this request's")
	}
	if claims.Debug && !rules.Debug {
		return Claims{}, wire.Refuse(wire.Debug, "appraisal: debug", "a TEE its host can read", "debug off")
	}
	if err := rules.recent(e.Endorsed, q.At); err != nil {
		return Claims{}, err
	}
	return claims, nil
}
