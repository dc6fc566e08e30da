//go:build linux

package nitro

import (
	"context"
	"fmt"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/hf/nsm"
	"github.com/hf/nsm/request"
	"github.com/hf/nsm/response"
)

// module is the Nitro security module, /dev/nsm.
type module interface {
	Send(request.Request) (response.Response, error)
	Close() error
}

// Attester asks the enclave's security module for documents. It is safe for
// concurrent use.
type Attester struct {
	open func() (module, error)
}

// NewAttester finds the device. It refuses with "not-this-device" outside an
// enclave.
func NewAttester() (*Attester, error) {
	a := &Attester{open: func() (module, error) { return nsm.OpenDefaultSession() }}
	m, err := a.open()
	if err != nil {
		return nil, absent(err)
	}
	return a, m.Close()
}

// Attest makes a document with the report data as its user data. The module
// answers at once; ctx is looked at before it is asked. It refuses with
// "not-this-device" when the module fails.
func (a *Attester) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	if err := ctx.Err(); err != nil {
		return attest.Evidence{}, err
	}
	m, err := a.open()
	if err != nil {
		return attest.Evidence{}, absent(err)
	}
	defer m.Close()
	answer, err := m.Send(&request.Attestation{UserData: data[:]})
	switch {
	case err != nil:
		return attest.Evidence{}, absent(err)
	case answer.Error != "":
		return attest.Evidence{}, absent(fmt.Errorf("the module answered %q", answer.Error))
	case answer.Attestation == nil || len(answer.Attestation.Document) == 0:
		return attest.Evidence{}, absent(fmt.Errorf("the module answered without a document"))
	}
	return attest.Evidence{Platform: attest.Nitro, Raw: answer.Attestation.Document}, nil
}

func absent(err error) error {
	return wire.Refuse(wire.NotThisDevice, "nitro: not this machine", err, "a Nitro enclave with /dev/nsm")
}
