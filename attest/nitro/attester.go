//go:build linux

package nitro

import (
	"context"
	"errors"
	"fmt"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/fxamacker/cbor/v2"
)

// Attester asks the enclave's security module for documents. It is safe for
// concurrent use.
type Attester struct {
	open func() (module, error)
}

// NewAttester finds the device. It refuses with "not-this-device" outside an
// enclave.
func NewAttester() (*Attester, error) {
	a := &Attester{open: openModule}
	m, err := a.open()
	if err != nil {
		return nil, absent(err)
	}
	return a, m.Close()
}

// attestationRequest is the module's request "Attestation" (AWS Nitro Enclaves NSM
// API). Its nonce and public key are optional, and null here.
type attestationRequest struct {
	UserData  []byte `cbor:"user_data"`
	Nonce     []byte `cbor:"nonce"`
	PublicKey []byte `cbor:"public_key"`
}

// moduleResponse is what the module responds: an error code, or what it was asked for.
type moduleResponse struct {
	Error       string
	Attestation *struct {
		Document []byte `cbor:"document"`
	}
}

// Attest makes a document with the report data as its user data. The module
// responds at once; ctx is checked before the request. It refuses with
// "not-this-device" when the module fails.
func (a *Attester) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	if err := ctx.Err(); err != nil {
		return attest.Evidence{}, err
	}
	request, err := cbor.Marshal(map[string]attestationRequest{"Attestation": {UserData: data[:]}})
	if err != nil {
		return attest.Evidence{}, fmt.Errorf("encoding the request: %w", err)
	}
	content, err := a.exchange(request)
	if err != nil {
		return attest.Evidence{}, absent(err)
	}
	var response moduleResponse
	if err := cbor.Unmarshal(content, &response); err != nil {
		return attest.Evidence{}, absent(fmt.Errorf("reading the module's response: %w", err))
	}
	switch {
	case response.Error != "":
		return attest.Evidence{}, absent(fmt.Errorf("the module responded with error %q", response.Error))
	case response.Attestation == nil || len(response.Attestation.Document) == 0:
		return attest.Evidence{}, absent(errors.New("the module responded without a document"))
	}
	return attest.Evidence{Platform: attest.Nitro, Raw: response.Attestation.Document}, nil
}

// exchange sends the module one request and returns its response.
func (a *Attester) exchange(request []byte) ([]byte, error) {
	if len(request) > maxModuleRequest {
		return nil, fmt.Errorf("a request of %d bytes, and the module takes %d", len(request), maxModuleRequest)
	}
	m, err := a.open()
	if err != nil {
		return nil, err
	}
	defer m.Close()
	response := make([]byte, maxModuleResponse)
	n, err := m.exchange(request, response)
	if err != nil {
		return nil, err
	}
	if n > len(response) {
		return nil, fmt.Errorf("a response of %d bytes, and the buffer has %d", n, len(response))
	}
	return response[:n], nil
}

func absent(err error) error {
	return wire.Refuse(wire.NotThisDevice, "nitro: not this machine", err, "a Nitro enclave with /dev/nsm")
}
