package attesttest

import (
	"bytes"
	"testing"

	"github.com/cohort-tee/cohort/attest"
)

// Appraise appraises q. If it accepts, it also requires that [attest.Verifier.Screen]
// passes the same evidence without endorsements, and with the same measurement.
func Appraise(t testing.TB, v *attest.Verifier, q attest.Question) (attest.Result, error) {
	t.Helper()
	result, err := v.Appraise(q)
	if err != nil {
		return result, err
	}
	q.Endorsements = nil
	unverified, screened := v.Screen(q)
	if screened != nil {
		t.Errorf("evidence that holds is refused before documents are fetched: %v", screened)
	} else if got, want := unverified.Bytes(), result.Measurement().Bytes(); !bytes.Equal(got, want) {
		t.Errorf("before documents are fetched: got measurement %x, want %x", got, want)
	}
	return result, nil
}
