package nvidia

import (
	"context"
	"crypto/sha256"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Reporter reaches one GPU of this machine. NVIDIA's way is its management library
// (NVML), which is to be linked through cgo, so this project, which is built without,
// holds no Reporter: a program that links NVML brings its own, and [Collector] does
// without.
type Reporter interface {
	// Report gives the GPU's report for a nonce and its certificate chain in PEM,
	// both as NVML gives them: the report begins with the request.
	Report(ctx context.Context, nonce [sizeNonce]byte) (report, chain []byte, err error)
}

// Attester asks a GPU for evidence. Beside a TEE it is used by [attest.WithDevices].
type Attester struct{ gpu Reporter }

// NewAttester makes the attester of a GPU. It refuses with "not-this-device" where
// nothing reaches one.
func NewAttester(gpu Reporter) (*Attester, error) {
	if gpu == nil {
		return nil, absent("nothing here reaches a GPU: this build links no NVML")
	}
	return &Attester{gpu}, nil
}

// Attest asks for a report whose nonce is the SHA-256 of the report data. It refuses
// with "not-this-device" when the GPU fails.
func (a *Attester) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	raw, chain, err := a.gpu.Report(ctx, sha256.Sum256(data[:]))
	switch {
	case ctx.Err() != nil:
		return attest.Evidence{}, ctx.Err()
	case err != nil:
		return attest.Evidence{}, absent(err)
	}
	return attest.Evidence{Platform: attest.NvidiaGPU, Raw: raw, Endorsed: attest.Endorsements{roleChain: chain}}, nil
}

func absent(got any) error {
	return wire.Refuse(wire.NotThisDevice, "nvidia: not this machine", got, "a GPU in confidential computing mode")
}
