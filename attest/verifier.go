package attest

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest/internal/closed"
	"github.com/cohort-tee/cohort/internal/wire"
)

// ReportData is what evidence is bound to: 64 bytes that name the use, the
// verifier's nonce and the keys that will carry secrets.
type ReportData [64]byte

// BindReportData is the report data of one use: SHA-512 over the framing of the fields
// under the label of that use.
func BindReportData(label wire.Label, fields ...[]byte) ReportData {
	return ReportData(wire.Hash512(label, fields...))
}

// isCarriedBy reports whether evidence carries the report data: all 64 bytes, or
// their SHA-256 on platforms with room for 32.
func (d ReportData) isCarriedBy(in []byte) bool {
	short := sha256.Sum256(d[:])
	return subtle.ConstantTimeCompare(in, d[:]) == 1 || subtle.ConstantTimeCompare(in, short[:]) == 1
}

// Attester makes evidence about the program it runs in. It is implemented by
// the device of each platform.
type Attester interface {
	// Attest asks the TEE for evidence that carries the report data. It
	// blocks until the TEE responds or ctx is done.
	Attest(ctx context.Context, data ReportData) (Evidence, error)
}

// Sealer keeps secrets for programs by their measurement. The TEE, not the
// caller, decides whether the caller's measurement is among them.
type Sealer interface {
	// Seal encrypts a secret of at most 64 KiB so that only programs that
	// match one of the reference values can unseal it. With none it is
	// sealed to the caller's own measurement.
	Seal(ctx context.Context, secret []byte, to []ReferenceValue) ([]byte, error)
	// Unseal returns the secret, or refuses with reason "measurement"
	// when it was not sealed to the caller.
	Unseal(ctx context.Context, sealed []byte) ([]byte, error)
}

// Claims are what an [Appraiser] read out of evidence whose signatures it
// checked. They are not yet a [Result]: neither the binding nor the debug state
// was checked.
type Claims struct {
	Measurement Measurement
	ReportData  []byte // 64 bytes, or 32 on platforms with room for no more
	Debug       bool   // the host can read the TEE
	Dynamic     bool   // the program loads code that is not in its measurement
	Chip        string // what names this one device, for people and for cut-offs
	// Activation is what binds the signing key to the chip, on platforms
	// where a credential does; nil on all others.
	Activation *Activation
	// Issued is when the newest of the vendor's signed documents that were checked, a
	// revocation list or a statement of levels, was issued. Zero without any.
	Issued time.Time
	// NotVerified lists comparisons that a vendor would make and Cohort does not make, a phrase
	// each. It is wherever a verdict on the evidence is shown.
	NotVerified []string
	// Details is everything else that was read, by the names of
	// docs/spec/evidence-*.md, as JSON would hold it (byte strings in hex).
	// It is for people: nothing decides on it.
	Details map[string]any
}

// Appraiser appraises the evidence of one platform, as its vendor defines it:
// encoding, signatures, chains, revocation, versions. The set is closed: the packages
// below this one have one each, and nothing else can be one.
type Appraiser interface {
	Platform() Platform
	// Appraise is pure. It refuses with a reason of the closed list.
	Appraise(raw []byte, endorsed Endorsements, rules Rules, at time.Time) (Claims, error)
	// Genuine is the appraiser itself. A type that wraps an appraiser has this from
	// the wrapped one, so that a [Verifier] asks the wrapped one: a wrapper cannot
	// give evidence other claims, such as other report data.
	Genuine() closed.Appraiser
}

// UnverifiedClaims are what evidence states about itself, with no signature checked.
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

// Verifier appraises evidence of the platforms it was given appraisers for. It
// is immutable and safe for concurrent use.
type Verifier struct {
	appraisers map[Platform]Appraiser
}

// NewVerifier makes a verifier of the given platforms. With none it refuses
// everything. Of an appraiser that wraps another it takes the wrapped one
// ([Appraiser.Genuine]), and none of one that is not genuine.
func NewVerifier(appraisers ...Appraiser) *Verifier {
	v := &Verifier{appraisers: make(map[Platform]Appraiser, len(appraisers))}
	for _, a := range appraisers {
		if genuine, ok := a.Genuine().Genuine().(Appraiser); ok {
			v.appraisers[genuine.Platform()] = genuine
		}
	}
	return v
}

// Question is everything an appraisal depends on.
type Question struct {
	Evidence     Evidence
	Endorsements Endorsements       // beside those that came with the evidence
	ReportData   ReportData         // what the evidence must be bound to
	Rules        map[Platform]Rules // from policy; a platform without rules is refused
	At           time.Time          // the time to appraise for
	// Secret is what the verifier hid in the credential for a device and
	// key. Without it, evidence that needs one is refused.
	Secret func(TPMKeys) []byte
}

// AppraiseFor appraises evidence that carries no response to a challenge, where the verifier gives
// something to its sender. On platforms whose keys a credential binds, the
// result holds for the device that opens the challenge and for no other party: the
// caller encrypts whatever it gives under [Challenge.Secret]. On all others it is
// Appraise, and the challenge is the zero one. It refuses as Appraise does.
func (v *Verifier) AppraiseFor(q Question) (Result, Challenge, error) {
	in, introduced, err := v.UnverifiedKeys(q.Evidence)
	if err != nil {
		return Result{}, Challenge{}, err
	}
	if !introduced {
		r, err := v.Appraise(q)
		return r, Challenge{}, err
	}
	r, err := v.appraiseUnchallenged(q)
	if err != nil {
		return Result{}, Challenge{}, err
	}
	c, err := v.Challenge(q.Evidence.Platform, in)
	if err != nil {
		return Result{}, Challenge{}, err
	}
	return r, c, nil
}

// Appraise appraises evidence, and that of every device beside it: each for the same
// report data, each by the rules of its own platform. One part that is refused
// refuses the whole. It refuses with reason "platform" when no appraiser or no rule
// knows the platform, and a device alone, with "nonce" when the evidence was made
// for another use, with "expired" when the vendor's documents were fetched longer ago
// than the rules state, with "wrong-chip" when a credential does not bind its key to the
// device it names and when one device vouches twice, with "debug" when the host can
// read the TEE and the rules do not allow it, and with the appraiser's reason
// otherwise.
func (v *Verifier) Appraise(q Question) (Result, error) {
	r, err := v.appraiseUnchallenged(q)
	if err != nil {
		return Result{}, err
	}
	if err := r.claims.Activation.verify(q.Secret); err != nil {
		return Result{}, err
	}
	return r, nil
}

// appraiseUnchallenged is Appraise without the credential.
func (v *Verifier) appraiseUnchallenged(q Question) (Result, error) {
	parts, err := q.partsBesideTEE()
	if err != nil {
		return Result{}, err
	}
	all, err := q.appraiseEach(parts, v.appraise)
	if err != nil {
		return Result{}, err
	}
	tee := all[0]
	result := Result{claims: tee.Claims, fetched: tee.fetched, devices: devicesOf(all[1:]), at: q.At, ok: true}
	for _, part := range all {
		if part.Issued.After(result.issued) {
			result.issued = part.Issued
		}
	}
	return result, nil
}

// AppraiseDevices appraises the evidence of devices that have no TEE beside them, as
// Appraise appraises its parts. It is for people who look at them: a [Device] is no
// [Result], so it admits no unit. It refuses with "platform" the evidence of a TEE.
func (v *Verifier) AppraiseDevices(q Question) ([]Device, error) {
	if !q.Evidence.Platform.IsDevice() {
		return nil, wire.Refuse(wire.NoPlatform, "appraisal: platform", q.Evidence.Platform, "a device")
	}
	parts, err := q.parts()
	if err != nil {
		return nil, err
	}
	all, err := q.appraiseEach(parts, v.appraise)
	return devicesOf(all), err
}

// Inspect appraises evidence as Appraise does, but not its use: neither the report data
// nor the credential of the question counts. So it returns claims and no [Result], for
// people who look at evidence that others asked for: the claims of the evidence, then
// those of each device beside it. It takes devices without a TEE too, and refuses with
// Appraise's reasons.
func (v *Verifier) Inspect(q Question) ([]Claims, error) {
	parts, err := q.parts()
	if err != nil {
		return nil, err
	}
	all, err := q.appraiseEach(parts, v.inspect)
	if err != nil {
		return nil, err
	}
	claims := make([]Claims, len(all))
	for i, part := range all {
		claims[i] = part.Claims
	}
	return claims, nil
}

// parts are the evidence as a list: the TEE's with the endorsements of the question,
// then that of each device.
func (q Question) parts() ([]Evidence, error) {
	if err := q.Evidence.checkDevices(); err != nil {
		return nil, err
	}
	return append([]Evidence{q.Evidence.WithEndorsements(q.Endorsements)}, q.Evidence.Devices...), nil
}

// partsBesideTEE are the parts of evidence that has a TEE's.
func (q Question) partsBesideTEE() ([]Evidence, error) {
	if q.Evidence.Platform.IsDevice() {
		return nil, wire.Refuse(wire.NoPlatform, "appraisal: platform", q.Evidence.Platform+" alone", "a TEE that runs a program")
	}
	return q.parts()
}

// appraiseEach appraises parts one after the other by one function, and refuses two of one
// chip.
func (q Question) appraiseEach(parts []Evidence, by func(Question, Evidence) (appraised, error)) ([]appraised, error) {
	var all []appraised
	for i, e := range parts {
		part, err := by(q, e)
		if err == nil && slices.ContainsFunc(all, part.sameChip) {
			err = wire.Refuse(wire.WrongChip, "appraisal: device", part.Chip+" twice", "each once")
		}
		switch {
		case err != nil && i > 0:
			return nil, fmt.Errorf("device %d: %w", i-1, err)
		case err != nil:
			return nil, err
		}
		all = append(all, part)
	}
	return all, nil
}

// appraise appraises one part for the use of the question.
func (v *Verifier) appraise(q Question, e Evidence) (appraised, error) {
	claims, err := v.appraiseBound(q, e, appraising)
	if err != nil {
		return appraised{}, err
	}
	return q.permit(claims, e)
}

// inspect appraises one part for any use.
func (v *Verifier) inspect(q Question, e Evidence) (appraised, error) {
	claims, err := v.appraisePart(q, e, appraising)
	if err != nil {
		return appraised{}, err
	}
	return q.permit(claims, e)
}

// screen is Screen of one part. A platform without documents is appraised.
func (v *Verifier) screen(q Question, e Evidence) (appraised, error) {
	claims, err := v.appraiseBound(q, e, screening)
	if err != nil {
		return appraised{}, err
	}
	return appraised{Claims: claims}, q.permitDebug(claims)
}

// appraiseFunc is [Appraiser.Appraise], or [Screener.Screen].
type appraiseFunc func(raw []byte, endorsed Endorsements, rules Rules, at time.Time) (Claims, error)

func appraising(a Appraiser) appraiseFunc { return a.Appraise }

// appraisePart asks the appraiser of a part's platform.
func (v *Verifier) appraisePart(q Question, e Evidence, by func(Appraiser) appraiseFunc) (Claims, error) {
	appraiser, known := v.appraisers[e.Platform]
	rules, ruled := q.Rules[e.Platform]
	if !known || !ruled {
		return Claims{}, wire.Refuse(wire.NoPlatform, "appraisal: platform", e.Platform, "a platform that policy names")
	}
	claims, err := by(appraiser)(e.Raw, e.Endorsed, rules, q.At)
	if err != nil {
		return Claims{}, err
	}
	if claims.Measurement.Platform != e.Platform {
		return Claims{}, wire.Refuse(wire.NoPlatform, "appraisal: platform of the measurement", claims.Measurement.Platform, e.Platform)
	}
	return claims, nil
}

// appraiseBound is read, and refuses evidence that was made for another use than the
// question's, and a question without one.
func (v *Verifier) appraiseBound(q Question, e Evidence, by func(Appraiser) appraiseFunc) (Claims, error) {
	if q.ReportData == (ReportData{}) {
		return Claims{}, wire.Refuse(wire.BadNonce, "appraisal: report data", "64 zero bytes", "the data that the evidence must be bound to")
	}
	claims, err := v.appraisePart(q, e, by)
	if err == nil && !q.ReportData.isCarriedBy(claims.ReportData) {
		err = wire.Refuse(wire.BadNonce, "appraisal: report data", "evidence made for another use", "this request's")
	}
	return claims, err
}

// permit asks the rules that every platform has.
func (q Question) permit(claims Claims, e Evidence) (appraised, error) {
	if err := q.permitDebug(claims); err != nil {
		return appraised{}, err
	}
	checked, err := e.Endorsed.Fetched()
	if err != nil {
		return appraised{}, err
	}
	return appraised{claims, checked}, q.Rules[e.Platform].checkFetched(e.Endorsed, checked, q.At)
}

// permitDebug refuses a TEE whose memory its host can read, unless the rules let it pass.
func (q Question) permitDebug(claims Claims) error {
	if claims.Debug && !q.Rules[claims.Measurement.Platform].Debug {
		return wire.Refuse(wire.Debug, "appraisal: debug", "a TEE its host can read", "debug off")
	}
	return nil
}

// Screener is an [Appraiser] of a platform whose vendor is asked for documents.
// Screen refuses, without any of them, what Appraise would refuse with all of them:
// form, what the evidence signs itself, the chip and floors of the rules. Its claims
// are not verified: what only a document can show is left out. It is pure.
type Screener interface {
	Screen(raw []byte, brought Endorsements, rules Rules, at time.Time) (unverified Claims, err error)
}

// Screen does every check of [Verifier.Appraise] that needs no document of a vendor,
// and returns the measurement that the evidence claims. Call it before such
// documents are fetched: evidence that it refuses costs no request to a vendor. A nil
// error is no verdict: the evidence may have no valid signature. Its refusals have
// the reasons of Appraise, for the parts in the same order.
func (v *Verifier) Screen(q Question) (unverified Measurement, err error) {
	parts, err := q.partsBesideTEE()
	if err != nil {
		return Measurement{}, err
	}
	all, err := q.appraiseEach(parts, v.screen)
	if err != nil {
		return Measurement{}, err
	}
	if err := all[0].Activation.verify(q.Secret); err != nil {
		return Measurement{}, err
	}
	return all[0].Measurement, nil
}

func screening(a Appraiser) appraiseFunc {
	if s, ok := a.(Screener); ok {
		return s.Screen
	}
	return a.Appraise
}
