//go:build linux

package tpm

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
)

// Machine is a TPM and the log of what was launched beside it. Its methods block
// while another process uses the same pair. The zero Machine is no TPM.
type Machine struct {
	// Path is the TPM: the device of the kernel's resource manager
	// (/dev/tpmrm0), or the Unix socket of a software TPM.
	Path string
	// Log is the file of the launch log, in a directory that the next boot
	// finds empty. All agents of one machine share it. It is no secret, and
	// who changes it only has later evidence refused.
	Log string
}

// withTPM runs f while no other process of this machine uses the TPM.
func (m Machine) withTPM(f func(transport.TPM) error) error {
	if err := os.MkdirAll(filepath.Dir(m.Log), 0o700); err != nil {
		return fmt.Errorf("making the folder of the launch log: %w", err)
	}
	lock, err := os.OpenFile(m.Log+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("locking the TPM: %w", err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("locking the TPM: %w", err)
	}
	t, err := m.connect()
	if err != nil {
		return absent(err)
	}
	defer t.Close()
	return f(t)
}

// connect connects to the TPM. No other program starts a software TPM.
func (m Machine) connect() (transport.TPMCloser, error) {
	info, err := os.Stat(m.Path)
	if err != nil {
		return nil, err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return linuxtpm.Open(m.Path)
	}
	t, err := linuxudstpm.Open(m.Path)
	if err != nil {
		return nil, err
	}
	_, err = tpm2.Startup{StartupType: tpm2.TPMSUClear}.Execute(t)
	if err != nil && !errors.Is(err, tpm2.TPMRCInitialize) {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

func absent(err error) error {
	return wire.Refuse(wire.NotThisDevice, "tpm: not this machine", err, "a TPM 2.0 that answers")
}

// BootMeasurement is the measurement of the machine as it booted, with the launch of one
// program that need not run: what policy has to name.
func (m Machine) BootMeasurement(l Launch) (got attest.Measurement, err error) {
	err = m.withTPM(func(t transport.TPM) error {
		values, err := readPCRs(t, quotedPCRs)
		if err == nil {
			log := m.readLog(values)
			got = measurement(values, log.Base[:], l)
		}
		return err
	})
	return got, err
}

// readPCRs reads PCRs of the SHA-256 bank, in their order.
func readPCRs(t transport.TPM, pcrs []int) ([]byte, error) {
	var values []byte
	for left := pcrs; len(left) > 0; {
		n := min(len(left), 8) // a TPM reads no more at once
		response, err := tpm2.PCRRead{PCRSelectionIn: selectPCRs(left[:n])}.Execute(t)
		if err != nil {
			return nil, absent(err)
		}
		if len(response.PCRValues.Digests) != n {
			return nil, absent(fmt.Errorf("it has %d of %d PCRs of the SHA-256 bank", len(response.PCRValues.Digests), n))
		}
		for _, d := range response.PCRValues.Digests {
			values = append(values, d.Buffer...)
		}
		left = left[n:]
	}
	return values, nil
}

func selectPCRs(pcrs []int) tpm2.TPMLPCRSelection {
	indices := make([]uint, len(pcrs))
	for i, p := range pcrs {
		indices[i] = uint(p)
	}
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(indices...)}}}
}

// readLog is the log that leads to the TPM's PCR 14. A log of an earlier boot, or
// one that was changed, is none: what was launched before is then the base of
// a new one, which no policy names.
func (m Machine) readLog(values []byte) launchLog {
	pcr := attest.Digest(values[len(bootPCRs)*pcrSize:])
	fresh := launchLog{Base: pcr}
	raw, err := os.ReadFile(m.Log)
	if err != nil {
		return fresh
	}
	log, err := parseLaunchLog(raw)
	if err != nil {
		return fresh
	}
	if log.replay() == pcr {
		return log
	}
	// The log is written ahead of the TPM.
	if n := len(log.Launches); n > 0 {
		log.Launches = log.Launches[:n-1]
		if log.replay() == pcr {
			return log
		}
	}
	return fresh
}

// addLaunch puts a launch into the log and into PCR 14.
func (m Machine) addLaunch(t transport.TPM, l Launch) error {
	values, err := readPCRs(t, quotedPCRs)
	if err != nil {
		return err
	}
	log := m.readLog(values)
	if len(log.Launches) == maxLaunches {
		return wire.Refuse(wire.TooLarge, "tpm launch log: launches since boot", maxLaunches+1, "at most 512: boot the machine")
	}
	log.Launches = append(log.Launches, l)
	next := m.Log + ".next"
	if err := os.WriteFile(next, log.Bytes(), 0o600); err != nil {
		return fmt.Errorf("writing the launch log: %w", err)
	}
	if err := os.Rename(next, m.Log); err != nil {
		return fmt.Errorf("writing the launch log: %w", err)
	}
	digest := wire.Sum(l.Bytes())
	_, err = tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(programPCR), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:]}}},
	}.Execute(t)
	if err != nil {
		return absent(fmt.Errorf("extending PCR 14: %w", err))
	}
	return nil
}

// The certificates of endorsement keys in NV memory, and where their keys may
// be persistent (TCG EK credential profile, section 2.2.1), the fastest kind first.
var endorsements = []struct{ certificate, key tpm2.TPMHandle }{
	{0x01c0000a, 0x8101000a}, // ECC P-256
	{0x01c00016, 0x81010016}, // ECC P-384
	{0x01c00002, 0x81010001}, // RSA 2048
	{0x01c0001c, 0x8101001c}, // RSA 3072
}

// readNV reads an index whole; nil is none.
func readNV(t transport.TPM, index tpm2.TPMHandle) ([]byte, error) {
	public, err := tpm2.NVReadPublic{NVIndex: index}.Execute(t)
	if err != nil {
		return nil, nil
	}
	about, err := public.NVPublic.Contents()
	if err != nil {
		return nil, absent(err)
	}
	reader := tpm2.AuthHandle{Handle: index, Name: public.NVName, Auth: tpm2.PasswordAuth(nil)}
	if !about.Attributes.AuthRead {
		reader = tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	}
	var out []byte
	for len(out) < int(about.DataSize) {
		piece, err := tpm2.NVRead{
			AuthHandle: reader,
			NVIndex:    tpm2.NamedHandle{Handle: index, Name: public.NVName},
			Size:       uint16(min(int(about.DataSize)-len(out), 512)), Offset: uint16(len(out)),
		}.Execute(t)
		if err != nil {
			return nil, absent(fmt.Errorf("reading NV index %#x: %w", index, err))
		}
		out = append(out, piece.Data.Buffer...)
	}
	return bytes.Clone(out), nil
}
