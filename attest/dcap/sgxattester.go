//go:build linux

package dcap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// gramine is where Gramine shows an enclave its attestation.
const gramine = "/dev/attestation"

// SGXAttester asks Gramine for quotes through /dev/attestation, inside an
// enclave whose manifest states sgx.remote_attestation = "dcap". It is safe for
// concurrent use; the pseudo-files hold one request at a time, so nothing else
// in the process may use them.
//
// It seals with the enclave's own key ([attest.OwnKey]), which Gramine shows as
// keys/_sgx_mrenclave. The CPU derives it from the enclave's measurement, its
// debug state and the microcode's version.
type SGXAttester struct {
	dir string
	mu  sync.Mutex // guards the pseudo-files, from request to quote
}

var (
	_ attest.Attester = (*SGXAttester)(nil)
	_ attest.Sealer   = (*SGXAttester)(nil)
)

// NewSGXAttester finds the device. It refuses with "not-this-device" outside
// such an enclave.
func NewSGXAttester() (*SGXAttester, error) {
	a := &SGXAttester{dir: gramine}
	if err := a.checkDevice(); err != nil {
		return nil, err
	}
	return a, nil
}

func (a *SGXAttester) checkDevice() error {
	kind, err := a.readFile("attestation_type")
	if err != nil {
		return noEnclave(err)
	}
	if got := strings.TrimSpace(string(kind)); got != "dcap" {
		return noEnclave(fmt.Errorf("attestation is %q", got))
	}
	return nil
}

// Attest makes a quote. Gramine responds within seconds; ctx is checked before
// it is asked. It refuses with "not-this-device" when Gramine fails.
func (a *SGXAttester) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	if err := ctx.Err(); err != nil {
		return attest.Evidence{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.writeReportData(data); err != nil {
		return attest.Evidence{}, noEnclave(err)
	}
	quote, err := a.readFile("quote")
	if err != nil {
		return attest.Evidence{}, noEnclave(err)
	}
	return evidence(attest.SGX, quote)
}

// writeReportData writes the report data in one piece; it makes no file where there is none.
func (a *SGXAttester) writeReportData(data attest.ReportData) error {
	f, err := os.OpenFile(filepath.Join(a.dir, "user_report_data"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(data[:])
	return errors.Join(err, f.Close())
}

// Seal seals to this enclave on this CPU.
func (a *SGXAttester) Seal(ctx context.Context, secret []byte, to []attest.ReferenceValue) ([]byte, error) {
	key, err := a.sealingKey(ctx)
	if err != nil {
		return nil, err
	}
	defer clear(key.Key)
	return key.Seal(secret, to)
}

// Unseal returns what this enclave sealed on this CPU.
func (a *SGXAttester) Unseal(ctx context.Context, sealed []byte) ([]byte, error) {
	key, err := a.sealingKey(ctx)
	if err != nil {
		return nil, err
	}
	defer clear(key.Key)
	return key.Unseal(sealed)
}

// sealingKey is the enclave's own key. Of the measurement it depends on MRENCLAVE alone,
// so the rest is read from a quote of the enclave itself.
func (a *SGXAttester) sealingKey(ctx context.Context) (attest.OwnKey, error) {
	own, err := a.Attest(ctx, attest.ReportData{})
	if err != nil {
		return attest.OwnKey{}, err
	}
	q, err := parseQuote(own.Raw, attest.SGX)
	if err != nil {
		return attest.OwnKey{}, err
	}
	key, err := a.readFile("keys/_sgx_mrenclave")
	if err != nil {
		return attest.OwnKey{}, noEnclave(err)
	}
	return attest.OwnKey{Key: key, Measurement: q.unverifiedClaims(attest.SGX).Measurement}, nil
}

func (a *SGXAttester) readFile(name string) ([]byte, error) {
	f, err := os.Open(filepath.Join(a.dir, name))
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(io.LimitReader(f, wire.MaxEvidence+1))
	return content, errors.Join(err, f.Close())
}

func noEnclave(err error) error {
	return wire.Refuse(wire.NotThisDevice, "dcap: not this machine", err, "an SGX enclave of Gramine with DCAP")
}
