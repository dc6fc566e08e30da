package attest

import "time"

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
