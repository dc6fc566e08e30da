package snp

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"fmt"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Launch is what a guest is launched from by QEMU and KVM. Its digest is the
// register "measurement" of reports.
type Launch struct {
	Firmware []byte // OVMF, 4 KiB to 16 MiB, a whole number of pages
	// Kernel, Initrd and CommandLine are measured where the firmware checks
	// their hashes; without a kernel there are none.
	Kernel, Initrd []byte
	CommandLine    string
	VCPUs          int
	CPU            uint32 // signature of the CPU model, CPUID leaf 1 EAX
	Features       uint64 // SEV features of the virtual CPUs; 1 is SNP alone
	// FPU states that the host sets the registers MXCSR and FCW before they are
	// measured, as Linux 6.10 and later do.
	FPU bool
}

const (
	page        = 4096
	maxFirmware = 16 << 20
	maxVCPUs    = 512
)

// Kinds of pages (SEV-SNP firmware ABI, SNP_LAUNCH_UPDATE).
const (
	pageNormal  = 1
	pageVMSA    = 2
	pageZero    = 3
	pageSecrets = 5
	pageCPUID   = 6
)

// vmsaAddress is where the firmware takes the state of a virtual CPU to be.
const vmsaAddress = 0xfffffffff000

// digest is a launch digest while it grows.
type digest [sha512.Size384]byte

// addPage extends the digest by one page (firmware ABI, PAGE_INFO): the digest so
// far, the page's own, the size of this structure, kind, address. The privilege
// bytes are zero: QEMU gives no level below 0 anything at launch.
func (d *digest) addPage(kind byte, address uint64, content []byte) {
	var info [0x70]byte
	copy(info[:], d[:])
	if content != nil {
		sum := sha512.Sum384(content)
		copy(info[48:], sum[:])
	}
	binary.LittleEndian.PutUint16(info[96:], uint16(len(info)))
	info[98] = kind
	binary.LittleEndian.PutUint64(info[104:], address)
	*d = sha512.Sum384(info[:])
}

// addPages extends the digest by all pages of content.
func (d *digest) addPages(address uint64, content []byte) {
	for at := 0; at < len(content); at += page {
		d.addPage(pageNormal, address+uint64(at), content[at:at+page])
	}
}

// Digest is the launch digest, 48 bytes: firmware, the sections that it asks
// for, and the first state of each virtual CPU. It refuses with "malformed"
// firmware that states nothing of SNP, and a kernel that the firmware would not
// check.
func (l Launch) Digest() ([]byte, error) {
	if n := len(l.Firmware); n < page || n > maxFirmware || n%page != 0 {
		return nil, wire.Refuse(wire.Malformed, "snp launch: size of the firmware", n, "whole pages, 4 KiB to 16 MiB")
	}
	if l.VCPUs < 1 || l.VCPUs > maxVCPUs {
		return nil, wire.Refuse(wire.Malformed, "snp launch: virtual CPUs", l.VCPUs, fmt.Sprintf("1 to %d", maxVCPUs))
	}
	f, err := readFirmware(l.Firmware)
	if err != nil {
		return nil, err
	}
	var d digest
	d.addPages(1<<32-uint64(len(l.Firmware)), l.Firmware)
	if err := l.finish(&d, f); err != nil {
		return nil, err
	}
	return d[:], nil
}

// finish extends the digest of the firmware's own pages by all that follows.
func (l Launch) finish(d *digest, f firmware) error {
	if err := l.addSections(d, f); err != nil {
		return err
	}
	for i := range l.VCPUs {
		start := uint32(resetVector)
		if i > 0 {
			start = f.reset
		}
		d.addPage(pageVMSA, vmsaAddress, l.state(start))
	}
	return nil
}

// addSections extends the digest by what the firmware's metadata lists.
func (l Launch) addSections(d *digest, f firmware) error {
	hashed := false
	for _, s := range f.sections {
		switch s.kind {
		case sectionSecrets:
			d.addPage(pageSecrets, s.address, nil)
		case sectionCPUID:
			d.addPage(pageCPUID, s.address, nil)
		case sectionHashes:
			if l.Kernel != nil {
				hashed = true
				d.addPage(pageNormal, s.address, l.hashes(int(f.hashTable%page)))
				continue
			}
			fallthrough
		case sectionMemory, sectionCalling:
			for at := uint64(0); at < s.size; at += page {
				d.addPage(pageZero, s.address+at, nil)
			}
		default:
			return wire.Refuse(wire.Malformed, "snp launch: kind of a firmware section", s.kind, "1 to 4 or 16")
		}
	}
	if l.Kernel != nil && !hashed {
		return wire.Refuse(wire.Malformed, "snp launch: kernel", "firmware that does not check its hash", "firmware with a section for hashes (OvmfPkg/AmdSev)")
	}
	return nil
}

// Names in QEMU's table of hashes.
var (
	hashesGUID  = parseGUID("9438d606-4f22-4cc9-b479-a793d411fd21")
	cmdlineGUID = parseGUID("97d02dd8-bd20-4c94-aa78-e7714d36ab2a")
	initrdGUID  = parseGUID("44baf731-3a2f-4bd7-9af1-41e29169781d")
	kernelGUID  = parseGUID("4de79437-abd2-427f-b835-d5b172d2045b")
)

// hashes is the page with QEMU's table of hashes at an offset. The command line
// ends with a zero byte.
func (l Launch) hashes(offset int) []byte {
	const entry, all = 16 + 2 + sha256.Size, 16 + 2 + 3*(16+2+sha256.Size)
	table := binary.LittleEndian.AppendUint16(bytes.Clone(hashesGUID[:]), all)
	for _, e := range []struct {
		name    [16]byte
		content []byte
	}{{cmdlineGUID, append([]byte(l.CommandLine), 0)}, {initrdGUID, l.Initrd}, {kernelGUID, l.Kernel}} {
		sum := sha256.Sum256(e.content)
		table = binary.LittleEndian.AppendUint16(append(table, e.name[:]...), entry)
		table = append(table, sum[:]...)
	}
	content := make([]byte, page)
	copy(content[offset:], table)
	return content
}

// resetVector is where the first CPU starts.
const resetVector = 0xfffffff0

// state is the first state of a virtual CPU (AMD64 manual, volume 2, appendix B,
// state save area) that starts at an address, as KVM makes it.
func (l Launch) state(start uint32) []byte {
	b := make([]byte, page)
	le := binary.LittleEndian
	segment := func(at int, selector, attributes uint16, base uint64) {
		le.PutUint16(b[at:], selector)
		le.PutUint16(b[at+2:], attributes)
		le.PutUint32(b[at+4:], 0xffff)
		le.PutUint64(b[at+8:], base)
	}
	for at := 0x00; at <= 0x50; at += 0x10 { // ES, CS, SS, DS, FS, GS
		segment(at, 0, 0x93, 0)
	}
	segment(0x10, 0xf000, 0x9b, uint64(start&0xffff0000)) // CS
	segment(0x60, 0, 0, 0)                                // GDTR
	segment(0x70, 0, 0x82, 0)                             // LDTR
	segment(0x80, 0, 0, 0)                                // IDTR
	segment(0x90, 0, 0x8b, 0)                             // TR
	for at, value := range map[int]uint64{
		0xd0: 0x1000, 0x148: 0x40, 0x158: 0x10, // EFER, CR4, CR0
		0x160: 0x400, 0x168: 0xffff0ff0, // DR7, DR6
		0x170: 2, 0x178: uint64(start & 0xffff), // RFLAGS, RIP
		0x268: 0x0007040600070406, 0x310: uint64(l.CPU), // PAT, RDX
		0x3b0: l.Features, 0x3e8: 1, // SEV_FEATURES, XCR0
	} {
		le.PutUint64(b[at:], value)
	}
	if l.FPU {
		le.PutUint32(b[0x408:], 0x1f80) // MXCSR
		le.PutUint16(b[0x410:], 0x037f) // FCW
	}
	return b
}
