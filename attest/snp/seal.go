//go:build linux

package snp

import (
	"context"
	"runtime"
	"syscall"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	labi "github.com/google/go-sev-guest/client/linuxabi"
)

// guestDevice is where Linux shows the SNP guest driver that derives keys.
const guestDevice = "/dev/sev-guest"

// mixed selects the inputs of the derived key (SEV-SNP firmware ABI, MSG_KEY_REQ): the
// guest policy, so that a debug guest has another key, and the launch digest.
const mixed = 1<<0 | 1<<3

// Seal seals to this guest on this chip.
func (a *Attester) Seal(ctx context.Context, secret []byte, to []attest.ReferenceValue) ([]byte, error) {
	key, err := a.sealingKey(ctx)
	if err != nil {
		return nil, err
	}
	defer clear(key.Key)
	return key.Seal(secret, to)
}

// Unseal returns what this guest sealed on this chip.
func (a *Attester) Unseal(ctx context.Context, sealed []byte) ([]byte, error) {
	key, err := a.sealingKey(ctx)
	if err != nil {
		return nil, err
	}
	defer clear(key.Key)
	return key.Unseal(sealed)
}

// sealingKey asks the firmware for the key of this guest, at its own privilege level.
// Host data is not part of the key, so it is read from a report of the guest
// itself.
func (a *Attester) sealingKey(ctx context.Context) (attest.OwnKey, error) {
	own, err := a.Attest(ctx, attest.ReportData{})
	if err != nil {
		return attest.OwnKey{}, err
	}
	r, err := parseReport(own.Raw)
	if err != nil {
		return attest.OwnKey{}, err
	}
	key, err := a.derive(labi.SnpDerivedKeyReqABI{GuestFieldSelect: mixed, Vmpl: r.VMPL})
	if err != nil {
		return attest.OwnKey{}, wire.Refuse(wire.NotThisDevice, "snp: deriving a key", err, "one by "+guestDevice)
	}
	return attest.OwnKey{Key: key, Measurement: r.measurement()}, nil
}

// derive asks the driver. The request stays on the heap until the driver has responded.
func derive(asked labi.SnpDerivedKeyReqABI) ([]byte, error) {
	fd, err := syscall.Open(guestDevice, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer syscall.Close(fd)
	response := new(labi.SnpDerivedKeyRespABI)
	request := &labi.SnpUserGuestRequest{ReqData: &asked, RespData: response}
	message := request.ABI()
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), uintptr(labi.IocSnpGetDerivedKey), uintptr(message.Pointer()))
	runtime.KeepAlive(message)
	if errno != 0 {
		return nil, errno
	}
	return response.Data[:], message.Finish(request)
}
