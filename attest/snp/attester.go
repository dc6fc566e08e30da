//go:build linux

package snp

import (
	"context"
	"encoding/pem"
	"fmt"
	"strings"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/linuxtsm"
	tsm "github.com/google/go-configfs-tsm/report"
	"github.com/google/go-sev-guest/abi"
	labi "github.com/google/go-sev-guest/client/linuxabi"
)

// provider is what Linux calls the SNP guest driver in configfs-tsm.
const provider = "sev_guest"

// Attester asks the SNP guest driver for reports through configfs-tsm
// (/sys/kernel/config/tsm/report, Linux 6.7 and later, root only). It is safe
// for concurrent use: each report has a folder of its own.
//
// It seals with a key that the firmware derives ([attest.OwnKey]), through
// /dev/sev-guest.
type Attester struct {
	device configfsi.Client
	derive func(labi.SnpDerivedKeyReqABI) ([]byte, error)
}

var (
	_ attest.Attester = (*Attester)(nil)
	_ attest.Sealer   = (*Attester)(nil)
)

// NewAttester finds the device. It refuses with "not-this-device" on a machine
// that is no SNP guest, or whose kernel has no configfs-tsm.
func NewAttester() (*Attester, error) {
	device, err := linuxtsm.MakeClient()
	if err != nil {
		return nil, absent(err)
	}
	return &Attester{device: device, derive: derive}, nil
}

// Attest makes a report at the guest's own privilege level, with the
// certificates that the host keeps for it; a VLEK is available from no other party.
// The driver responds within seconds; ctx is checked before the request. It
// refuses with "not-this-device" when the driver fails.
func (a *Attester) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	if err := ctx.Err(); err != nil {
		return attest.Evidence{}, err
	}
	response, err := tsm.Get(a.device, &tsm.Request{InBlob: data[:], GetAuxBlob: true})
	if err != nil {
		return attest.Evidence{}, absent(err)
	}
	if got := strings.TrimSpace(response.Provider); got != provider {
		return attest.Evidence{}, absent(fmt.Errorf("the TSM is %q", got))
	}
	if len(response.OutBlob) != abi.ReportSize {
		return attest.Evidence{}, wire.Refuse(wire.Malformed, "snp: size of the driver's report", len(response.OutBlob), abi.ReportSize)
	}
	endorsed, err := hostCertificates(response.AuxBlob)
	if err != nil {
		return attest.Evidence{}, err
	}
	return attest.Evidence{Platform: attest.SNP, Raw: response.OutBlob, Endorsed: endorsed}, nil
}

// hostCertificates reads the host's certificate table (AMD document 56421, section
// 4.1.8.1), which may be empty.
func hostCertificates(table []byte) (attest.Endorsements, error) {
	if len(table) == 0 {
		return nil, nil
	}
	var certs abi.CertTable
	if err := certs.Unmarshal(table); err != nil {
		return nil, wire.Refuse(wire.Malformed, "snp: the host's certificate table", err, "GUIDs with offsets and lengths")
	}
	endorsed := attest.Endorsements{}
	for role, guid := range map[string]string{"vcek": abi.VcekGUID, "vlek": abi.VlekGUID} {
		if der, err := certs.GetByGUIDString(guid); err == nil {
			endorsed[role] = der
		}
	}
	ask, askErr := certs.GetByGUIDString(abi.AskGUID)
	ark, arkErr := certs.GetByGUIDString(abi.ArkGUID)
	if askErr == nil && arkErr == nil {
		for _, der := range [][]byte{ask, ark} {
			endorsed["ask_ark"] = append(endorsed["ask_ark"], pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		}
	}
	return endorsed, nil
}

func absent(err error) error {
	return wire.Refuse(wire.NotThisDevice, "snp: not this machine", err, "an SNP guest with configfs-tsm")
}
