package unit

import (
	"context"
	"errors"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// serialAttester calls an attester from one goroutine at a time, since a renewal and a session
// may need evidence at the same time.
type serialAttester struct {
	turn chan struct{} // contains a value while a call runs
	attest.Attester
}

// Attest waits for its turn until ctx is done.
func (o serialAttester) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	return o.attest(ctx, data, nil)
}

// attest is Attest with the secret of a credential; nil means no credential.
func (o serialAttester) attest(ctx context.Context, data attest.ReportData, credential []byte) (attest.Evidence, error) {
	select {
	case o.turn <- struct{}{}:
		defer func() { <-o.turn }()
		return attest.AttestWithCredential(ctx, o.Attester, data, credential)
	case <-ctx.Done():
		return attest.Evidence{}, errors.Join(wire.Refuse(wire.Unavailable, "unit: TEE", "busy with other evidence until the deadline", "free"), context.Cause(ctx))
	}
}
