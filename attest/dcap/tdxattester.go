//go:build linux

package dcap

import (
	"context"
	"fmt"
	"strings"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/linuxtsm"
	tsm "github.com/google/go-configfs-tsm/report"
)

// provider is what Linux calls the TDX guest driver in configfs-tsm.
const provider = "tdx_guest"

// TDXAttester asks the TDX guest driver for quotes through configfs-tsm
// (/sys/kernel/config/tsm/report, Linux 6.7 and later, root only). The host's
// quoting service must serve the driver. It is safe for concurrent use: each
// quote has a folder of its own.
type TDXAttester struct {
	device configfsi.Client
}

// NewTDXAttester finds the device. It refuses with "not-this-device" on a
// machine that is no trust domain, or whose kernel has no configfs-tsm.
func NewTDXAttester() (*TDXAttester, error) {
	device, err := linuxtsm.MakeClient()
	if err != nil {
		return nil, noGuest(err)
	}
	return &TDXAttester{device: device}, nil
}

// Attest makes a quote. The driver responds within seconds; ctx is checked
// before the request. It refuses with "not-this-device" when the driver fails.
func (a *TDXAttester) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	if err := ctx.Err(); err != nil {
		return attest.Evidence{}, err
	}
	response, err := tsm.Get(a.device, &tsm.Request{InBlob: data[:]})
	if err != nil {
		return attest.Evidence{}, noGuest(err)
	}
	if got := strings.TrimSpace(response.Provider); got != provider {
		return attest.Evidence{}, noGuest(fmt.Errorf("the TSM is %q", got))
	}
	return evidence(attest.TDX, response.OutBlob)
}

// evidence refuses what is no quote of the platform, so that the fault is reported
// where it is.
func evidence(of attest.Platform, raw []byte) (attest.Evidence, error) {
	if _, err := parseQuote(raw, of); err != nil {
		return attest.Evidence{}, fmt.Errorf("reading the device's quote: %w", err)
	}
	return attest.Evidence{Platform: of, Raw: raw}, nil
}

func noGuest(err error) error {
	return wire.Refuse(wire.NotThisDevice, "dcap: not this machine", err, "a TDX guest with configfs-tsm")
}
