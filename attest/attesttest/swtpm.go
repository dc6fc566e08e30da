package attesttest

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
)

// TPMMaker makes software TPMs (Debian's swtpm and swtpm-tools): nothing here
// plays a TPM. Its root vouches for all its TPMs. Another TPMMaker is a stranger.
type TPMMaker struct{ dir string }

// NewTPMMaker makes a maker, or skips the test where swtpm is missing.
func NewTPMMaker(t testing.TB) *TPMMaker {
	t.Helper()
	for _, tool := range []string{"swtpm", "swtpm_setup", "swtpm_localca"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("NO SOFTWARE TPM: %v; install swtpm and swtpm-tools", err)
		}
	}
	// A Unix socket's path has 108 bytes, and the name of a test may be long.
	dir, err := os.MkdirTemp("", "tpm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ca := filepath.Join(dir, "ca")
	m := &TPMMaker{dir}
	m.write(t, "localca.conf", fmt.Sprintf("statedir = %[1]s\nsigningkey = %[1]s/signkey.pem\nissuercert = %[1]s/issuercert.pem\ncertserial = %[1]s/certserial\n", ca))
	m.write(t, "options", "--platform-manufacturer Cohort\n--platform-version 1\n--platform-model test\n")
	m.write(t, "setup.conf", fmt.Sprintf("create_certs_tool = swtpm_localca\ncreate_certs_tool_config = %[1]s/localca.conf\ncreate_certs_tool_options = %[1]s/options\n", dir))
	return m
}

func (m *TPMMaker) write(t testing.TB, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(m.dir, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// CA is the certificates above those of its endorsement keys, PEM. There are none
// before it has made a TPM.
func (m *TPMMaker) CA(t testing.TB) []byte {
	t.Helper()
	var all []byte
	for _, name := range []string{"issuercert.pem", "swtpm-localca-rootca-cert.pem"} {
		b, err := os.ReadFile(filepath.Join(m.dir, "ca", name))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, bytes.TrimSpace(b)...)
		all = append(all, '\n')
	}
	return all
}

// Root is the digest that names the maker in policy.
func (m *TPMMaker) Root(t testing.TB) attest.Digest {
	t.Helper()
	_, last, _ := bytes.Cut(m.CA(t), []byte("-----END CERTIFICATE-----\n"))
	block, _ := pem.Decode(last)
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return wire.Sum(root.RawSubjectPublicKeyInfo)
}

// TPM is one software TPM, running.
type TPM struct {
	Path string // its socket
	Log  string // a file for the launch log

	dir  string
	stop func()
}

// TPM makes a TPM with endorsement keys and their certificates, and boots it. It
// ends with the test.
func (m *TPMMaker) TPM(t testing.TB) *TPM {
	t.Helper()
	dir, err := os.MkdirTemp(m.dir, "m")
	if err != nil {
		t.Fatal(err)
	}
	setup := exec.Command("swtpm_setup", "--tpm2", "--tpmstate", dir, "--config", filepath.Join(m.dir, "setup.conf"),
		"--create-ek-cert", "--ecc", "--pcr-banks", "sha256,sha384", "--lock-nvram", "--overwrite")
	if out, err := setup.CombinedOutput(); err != nil {
		t.Fatalf("making a TPM: %v\n%s", err, out)
	}
	tpm := &TPM{Path: filepath.Join(dir, "tpm"), Log: filepath.Join(dir, "launches"), dir: dir, stop: func() {}}
	tpm.Boot(t)
	t.Cleanup(func() { tpm.stop() })
	return tpm
}

// Boot switches the machine off and on: PCRs begin anew, and the launch log is
// gone.
func (m *TPM) Boot(t testing.TB) {
	t.Helper()
	m.stop()
	os.Remove(m.Log)
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+m.dir,
		"--server", "type=unixio,path="+m.Path, "--ctrl", "type=unixio,path="+m.Path+".ctrl", "--flags", "not-need-init,startup-clear")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m.stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	for range 1000 {
		if c, err := net.Dial("unix", m.Path); err == nil {
			c.Close()
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("the TPM does not listen")
}

// Extend extends a PCR of the SHA-256 bank with the digest of what was loaded, as
// firmware and boot loaders do.
func (m *TPM) Extend(t testing.TB, pcr int, what string) {
	t.Helper()
	c, err := linuxudstpm.Open(m.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	digest := wire.Sum([]byte(what))
	_, err = tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:]}}},
	}.Execute(c)
	if err != nil {
		t.Fatal(err)
	}
}
