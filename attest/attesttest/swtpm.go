package attesttest

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
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
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
)

// TPMMaker makes software TPMs (Debian's swtpm and swtpm-tools), which implement a TPM in
// full. Its root certifies all its TPMs; a second TPMMaker has a different root.
type TPMMaker struct{ dir string }

// NewTPMMaker returns a maker, or skips the test where swtpm is missing.
func NewTPMMaker(t testing.TB) *TPMMaker {
	t.Helper()
	for _, tool := range []string{"swtpm", "swtpm_setup", "swtpm_localca"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("NO SOFTWARE TPM: %v; install swtpm and swtpm-tools", err)
		}
	}
	// The path of a Unix socket has at most 108 bytes, and a test's name may be long.
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

// CA returns the certificates above those of the endorsement keys, in PEM. There are none
// before the maker has made a TPM.
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

// Root returns the digest that names the maker in policy.
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

// TPM returns a running TPM with endorsement keys and their certificates. It ends with the
// test.
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

// Boot switches the machine off and on: the PCRs are reset, and the launch log is deleted.
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

// Extend extends a PCR of the SHA-256 bank with the digest of a loaded component, as
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

// Paravisor gives the software TPM the objects that Azure's paravisor provides to a guest:
// an attestation key at its handle, and in NV memory a report of the guest's chip that
// binds the key.
func (m *TPM) Paravisor(t testing.TB, guest *SNPDevice) {
	t.Helper()
	c, err := linuxudstpm.Open(m.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	runtime := fmt.Appendf(nil, `{"keys":[{"kid":"HCLAkPub","kty":"RSA","e":"AQAB","n":%q}]}`, base64.RawURLEncoding.EncodeToString(standingKey(t, c)))
	var bound attest.ReportData
	digest := wire.Sum(runtime)
	copy(bound[:], digest[:])
	report, err := guest.Attest(t.Context(), bound)
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	raw := append([]byte("HCLA"), make([]byte, 28)...)
	le.PutUint32(raw[12:], 2) // SEV-SNP
	raw = append(raw, report.Raw...)
	for _, n := range []int{20 + len(runtime), 1, 2, 1, len(runtime)} { // size, version, SEV-SNP, SHA-256, size
		raw = le.AppendUint32(raw, uint32(n))
	}
	writeNV(t, c, 0x01400001, append(append(raw, runtime...), make([]byte, 64)...))
}

// standingKey creates a persistent restricted RSA key at 0x81000003 and returns its
// modulus.
func standingKey(t testing.TB, c transport.TPM) []byte {
	t.Helper()
	made, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.TPMTPublic{
		Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, Restricted: true, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
			Scheme: tpm2.TPMTRSAScheme{
				Scheme:  tpm2.TPMAlgRSASSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			KeyBits: 2048,
		}),
	})}.Execute(c)
	if err != nil {
		t.Fatal(err)
	}
	_, err = tpm2.EvictControl{
		Auth:             tpm2.TPMRHOwner,
		ObjectHandle:     &tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name},
		PersistentHandle: 0x81000003,
	}.Execute(c)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = tpm2.FlushContext{FlushHandle: made.ObjectHandle}.Execute(c)
	public, err := made.OutPublic.Contents()
	if err != nil {
		t.Fatal(err)
	}
	modulus, err := public.Unique.RSA()
	if err != nil {
		t.Fatal(err)
	}
	return modulus.Buffer
}

// writeNV creates an NV index that the owner can read.
func writeNV(t testing.TB, c transport.TPM, index tpm2.TPMHandle, content []byte) {
	t.Helper()
	public := tpm2.TPMSNVPublic{
		NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(content)),
		Attributes: tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, NT: tpm2.TPMNTOrdinary, NoDA: true},
	}
	if _, err := (tpm2.NVDefineSpace{AuthHandle: tpm2.TPMRHOwner, PublicInfo: tpm2.New2B(public)}).Execute(c); err != nil {
		t.Fatal(err)
	}
	read, err := tpm2.NVReadPublic{NVIndex: index}.Execute(c)
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(content); at += 512 {
		_, err := tpm2.NVWrite{
			AuthHandle: tpm2.TPMRHOwner, NVIndex: tpm2.NamedHandle{Handle: index, Name: read.NVName},
			Data: tpm2.TPM2BMaxNVBuffer{Buffer: content[at:min(at+512, len(content))]}, Offset: uint16(at),
		}.Execute(c)
		if err != nil {
			t.Fatal(err)
		}
	}
}
