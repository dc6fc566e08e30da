package systest

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/fxamacker/cbor/v2"
)

// teeMachine is a machine with the devices of a TEE, at the paths of the real drivers and
// served from user space. It runs the released program.
type teeMachine struct {
	t        *testing.T
	platform attest.Platform
	tee      attest.Attester
	devices  func() map[string]*fsNode
}

// newMachine starts a machine of a platform, or skips the test where the kernel does not
// permit it.
func (v *vendors) newMachine(t *testing.T, p attest.Platform, program string) *teeMachine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: devices are mounted, which only root may")
	}
	m := &teeMachine{t: t, platform: p}
	m.tee, _ = v.device(p, program)
	m.devices = map[attest.Platform]func() map[string]*fsNode{
		attest.SNP: m.snp, attest.TDX: m.tdx, attest.SGX: m.sgx, attest.Nitro: m.nitro,
	}[p]
	return m
}

// evidence requests evidence from the chip.
func (m *teeMachine) evidence(data []byte) ([]byte, error) {
	if len(data) != 64 {
		return nil, syscall.EINVAL
	}
	e, err := m.tee.Attest(m.t.Context(), attest.ReportData(data))
	return e.Raw, err
}

func (m *teeMachine) snp() map[string]*fsNode {
	tree := m.tsm("sev_guest")
	tree["dev/sev-guest"] = &fsNode{ioctl: m.deriveKey}
	return tree
}

func (m *teeMachine) tdx() map[string]*fsNode { return m.tsm("tdx_guest") }

// tsm plays configfs-tsm: each folder is one request, and its generation counts the writes
// to it.
func (m *teeMachine) tsm(provider string) map[string]*fsNode {
	return map[string]*fsNode{"kernel/config/tsm/report": {dir: true, mkdir: func() map[string]*fsNode {
		generation, in := 0, []byte(nil)
		return map[string]*fsNode{
			"generation": {read: func() ([]byte, error) { return []byte(strconv.Itoa(generation) + "\n"), nil }},
			"provider":   {read: func() ([]byte, error) { return []byte(provider + "\n"), nil }},
			"inblob":     {write: func(b []byte) error { generation++; in = b; return nil }},
			"outblob":    {read: func() ([]byte, error) { return m.evidence(in) }},
			"auxblob":    {read: func() ([]byte, error) { return nil, nil }},
		}
	}}}
}

// deriveKey plays SNP_GET_DERIVED_KEY (Linux uapi sev-guest.h). The argument has the
// version, the addresses of request and response, and the firmware's error.
func (m *teeMachine) deriveKey(pid, command uint32, argument []byte) ([]byte, error) {
	le := binary.LittleEndian
	asker, err := os.OpenFile("/proc/"+strconv.Itoa(int(pid))+"/mem", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer asker.Close()
	if command&0xff != 1 || len(argument) != 32 {
		return nil, syscall.ENOTTY
	}
	request := make([]byte, 32)
	if _, err := asker.ReadAt(request, int64(le.Uint64(argument[8:]))); err != nil {
		return nil, err
	}
	own, err := m.evidence(make([]byte, 64))
	if err != nil {
		return nil, err
	}
	answer := make([]byte, 64) // status and size, then the key
	copy(answer[32:], attesttest.DeriveSNP(own, le.Uint64(request[8:]), uint64(le.Uint32(request[16:]))))
	_, err = asker.WriteAt(answer, int64(le.Uint64(argument[16:])))
	return argument, err
}

// sgx plays Gramine's /dev/attestation.
func (m *teeMachine) sgx() map[string]*fsNode {
	var in []byte
	measured := m.tee.(*attesttest.DCAPDevice).Measurement()
	return map[string]*fsNode{
		"dev/attestation/attestation_type":    {read: func() ([]byte, error) { return []byte("dcap"), nil }},
		"dev/attestation/user_report_data":    {write: func(b []byte) error { in = b; return nil }},
		"dev/attestation/quote":               {read: func() ([]byte, error) { return m.evidence(in) }},
		"dev/attestation/keys/_sgx_mrenclave": {read: func() ([]byte, error) { return measured.Registers[0].Value[:16], nil }},
	}
}

// nitro plays the Nitro security module: the argument has the addresses and sizes of
// request and response, both in CBOR.
func (m *teeMachine) nitro() map[string]*fsNode {
	return map[string]*fsNode{"dev/nsm": {ioctl: func(pid, _ uint32, argument []byte) ([]byte, error) {
		le := binary.LittleEndian
		asker, err := os.OpenFile("/proc/"+strconv.Itoa(int(pid))+"/mem", os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		defer asker.Close()
		text := make([]byte, le.Uint64(argument[8:]))
		if _, err := asker.ReadAt(text, int64(le.Uint64(argument))); err != nil {
			return nil, err
		}
		var request struct {
			Attestation struct {
				UserData []byte `cbor:"user_data"`
			}
		}
		if err := cbor.Unmarshal(text, &request); err != nil {
			return nil, syscall.EINVAL
		}
		document, err := m.evidence(request.Attestation.UserData)
		if err != nil {
			return nil, err
		}
		answer, err := cbor.Marshal(map[string]any{"Attestation": map[string]any{"document": document}})
		if err != nil || uint64(len(answer)) > le.Uint64(argument[24:]) {
			return nil, errors.Join(err, syscall.EMSGSIZE)
		}
		le.PutUint64(argument[24:], uint64(len(answer)))
		_, err = asker.WriteAt(answer, int64(le.Uint64(argument[16:])))
		return argument, err
	}}}
}

// command runs a program on the machine.
func (m *teeMachine) command(program string, args ...string) *exec.Cmd {
	m.t.Helper()
	cmd := exec.CommandContext(m.t.Context(), "/proc/self/exe", "-test.run=^TestInMachine$")
	cmd.Args[0] = os.Args[0]
	config := testworld.Must(json.Marshal(append([]string{m.t.TempDir(), program}, args...)))
	cmd.Env = append(os.Environ(), roleVariable+"=machine", "SYSTEST_CONFIG="+string(config))
	cmd.ExtraFiles = []*os.File{serveFS(m.t, m.devices())}
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	return cmd
}

// TestInMachine is the entry point of a machine's process: it mounts the machine's devices
// in a mount namespace that ends with it, and executes the program. In an ordinary test run
// it does nothing.
func TestInMachine(t *testing.T) {
	if os.Getenv(roleVariable) != "machine" {
		return
	}
	command := asked[[]string](t)
	tree, program, args := command[0], command[1], command[2:]
	syscall.CloseOnExec(3)
	steps := []error{
		syscall.Mount("devices", tree, "fuse", 0, "fd=3,rootmode=40000,user_id=0,group_id=0"),
	}
	if kernel := filepath.Join(tree, "kernel"); exists(kernel) {
		steps = append(steps, syscall.Mount(kernel, "/sys/kernel", "", syscall.MS_BIND, ""))
	}
	if dev := filepath.Join(tree, "dev"); exists(dev) {
		steps = append(steps, overDev(dev)...)
	}
	if err := errors.Join(steps...); err != nil {
		t.Fatal(err)
	}
	os.Unsetenv(roleVariable)
	t.Fatal(syscall.Exec(program, append([]string{program}, args...), os.Environ()))
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// overDev mounts over /dev a folder with the given devices and the files that every program
// needs.
func overDev(devices string) []error {
	const fresh = "/mnt"
	steps := []error{syscall.Mount("dev", fresh, "tmpfs", 0, "")}
	for _, name := range []string{"null", "urandom"} {
		steps = append(steps, os.WriteFile(fresh+"/"+name, nil, 0o600), syscall.Mount("/dev/"+name, fresh+"/"+name, "", syscall.MS_BIND, ""))
	}
	for _, name := range []string{"sev-guest", "nsm"} {
		if exists(devices + "/" + name) {
			steps = append(steps, os.WriteFile(fresh+"/"+name, nil, 0o600), syscall.Mount(devices+"/"+name, fresh+"/"+name, "", syscall.MS_BIND, ""))
		}
	}
	if exists(devices + "/attestation") {
		steps = append(steps, os.Mkdir(fresh+"/attestation", 0o700), syscall.Mount(devices+"/attestation", fresh+"/attestation", "", syscall.MS_BIND, ""))
	}
	return append(steps, syscall.Mount(fresh, "/dev", "", syscall.MS_MOVE, ""))
}
