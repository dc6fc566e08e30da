package snp

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"slices"
	"testing"

	"github.com/cohort-tee/cohort/internal/wire"
)

// amdSev is the layout of an OvmfPkg/AmdSev build of 2022.
var amdSev = firmware{reset: 0x80b004, hashTable: 0x80fc00, sections: []section{
	{sectionMemory, 0x800000, 0x9000}, {sectionMemory, 0x80a000, 0x3000}, {sectionSecrets, 0x80d000, 0x1000},
	{sectionCPUID, 0x80e000, 0x1000}, {sectionHashes, 0x80f000, 0x1000}, {sectionMemory, 0x810000, 0x10000},
}}

// TestKnownLaunches compares with digests of another project, which checked them against real
// launches (virtee/sev-snp-measure, tests/test_guest.py; EPYC-v4, hosts that do not set the FPU's
// registers). Each row starts from the digest after the firmware's pages.
func TestKnownLaunches(t *testing.T) {
	const one, two = "cab7e085874b3acfdbe2d96dcaa3125111f00c35c6fc9708464c2ae74bfdb048a198cb9a9ccae0b3e5e1a33f5f249819",
		"edcf6d1c57ce868a167c990f58c8667c698269ef9e0803246419eea914186343054d557e1f17acd93b032c106bc70d25"
	for _, tt := range []struct {
		name, firmware, want string
		kernel               []byte
		commandLine          string
		vcpus                int
	}{
		{"empty command line", one, "db06fb267824b1ccb56edbe2a9c2ce88841bca5090dc6dac91d9cd30f3c2c0bf42daccb30d55d6625bfbf0dae5c50c6d", []byte{}, "", 1},
		{"command line", two, "f07864303ad8243132029e8110b92805c78d1135a15da75f67abb9a711d78740347f24ee76f603e650ec4adf3611cc1e", []byte{}, "console=ttyS0 loglevel=7", 1},
		{"no kernel", two, "e5e6be5a8fa6256f0245666bb237e2d028b7928148ce78d51b8a64dc9506c377709a5b5d7ab75554593bced304fcff93", nil, "", 1},
		{"four CPUs", two, "1c784beb8c49aa604b7fd57fbc73b36ec53a3f5fb48a2b895ad6cc2ea15d18ee7cc15e3e57c792766b45f944c3e81cfe", []byte{}, "", 4},
	} {
		start, err := hex.DecodeString(tt.firmware)
		if err != nil {
			t.Fatal(err)
		}
		d := digest(start)
		l := Launch{Kernel: tt.kernel, CommandLine: tt.commandLine, VCPUs: tt.vcpus, CPU: 0x800f12, Features: 1}
		if err := l.finish(&d, amdSev); err != nil || hex.EncodeToString(d[:]) != tt.want {
			t.Errorf("%s: got %x, %v, want %s", tt.name, d, err, tt.want)
		}
	}
}

// image returns firmware of two pages with a layout.
func (f firmware) image() []byte {
	le := binary.LittleEndian
	metadata := le.AppendUint32(le.AppendUint32(le.AppendUint32([]byte("ASEV"), uint32(16+12*len(f.sections))), 1), uint32(len(f.sections)))
	for _, s := range f.sections {
		metadata = le.AppendUint32(le.AppendUint32(le.AppendUint32(metadata, uint32(s.address)), uint32(s.size)), s.kind)
	}
	const back = 1024
	entry := func(data []byte, name [16]byte) []byte {
		return append(le.AppendUint16(bytes.Clone(data), uint16(len(data)+18)), name[:]...)
	}
	table := slices.Concat(entry(le.AppendUint32(nil, back), metadataGUID), entry(le.AppendUint32(le.AppendUint32(nil, f.hashTable), 0x400), tableGUID),
		entry(le.AppendUint32(nil, f.reset), resetGUID))
	table = append(le.AppendUint16(table, uint16(len(table)+18)), footerGUID[:]...)
	image := make([]byte, 2*page)
	copy(image[len(image)-back:], metadata)
	copy(image[len(image)-resetTail-len(table):], table)
	return image
}

func TestReadFirmware(t *testing.T) {
	got, err := readFirmware(amdSev.image())
	if err != nil || got.reset != amdSev.reset || got.hashTable != amdSev.hashTable || !slices.Equal(got.sections, amdSev.sections) {
		t.Errorf("got %+v, %v, want %+v", got, err, amdSev)
	}
}

// TestLaunchRefusals: malformed launches are refused, and each input of a launch changes the
// digest.
func TestLaunchRefusals(t *testing.T) {
	good := func() Launch {
		return Launch{Firmware: amdSev.image(), Kernel: []byte("kernel"), Initrd: []byte("initrd"), VCPUs: 2, CPU: 0xa00f11, Features: 1, FPU: true}
	}
	plain, err := good().Digest()
	if err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(*Launch){
		"firmware": func(l *Launch) { l.Firmware[0] ^= 1 }, "kernel": func(l *Launch) { l.Kernel = []byte("other") },
		"initrd": func(l *Launch) { l.Initrd = nil }, "command line": func(l *Launch) { l.CommandLine = "quiet" },
		"CPUs": func(l *Launch) { l.VCPUs++ }, "CPU": func(l *Launch) { l.CPU++ }, "features": func(l *Launch) { l.Features = 0x21 },
		"FPU": func(l *Launch) { l.FPU = false }, "no kernel": func(l *Launch) { l.Kernel = nil },
	} {
		l := good()
		edit(&l)
		if got, err := l.Digest(); err != nil || bytes.Equal(got, plain) {
			t.Errorf("another %s: got the same digest, or %v", name, err)
		}
	}
	without := amdSev
	without.sections = slices.DeleteFunc(slices.Clone(amdSev.sections), func(s section) bool { return s.kind == sectionHashes })
	for name, edit := range map[string]func(*Launch){
		"half a page":              func(l *Launch) { l.Firmware = l.Firmware[2048:] },
		"no firmware":              func(l *Launch) { l.Firmware = nil },
		"no CPU":                   func(l *Launch) { l.VCPUs = 0 },
		"a kernel nobody checks":   func(l *Launch) { l.Firmware = without.image() },
		"no table":                 func(l *Launch) { clear(l.Firmware[len(l.Firmware)-100:]) },
		"a table beyond the image": func(l *Launch) { l.Firmware[len(l.Firmware)-resetTail-17] = 0xff },
		"no metadata":              func(l *Launch) { l.Firmware[len(l.Firmware)-1024]++ },
		"an unknown section":       func(l *Launch) { l.Firmware[len(l.Firmware)-1024+16+8] = 9 },
		"a section of half a page": func(l *Launch) { l.Firmware[len(l.Firmware)-1024+16+5]++ },
	} {
		l := good()
		edit(&l)
		if got, err := l.Digest(); !errors.Is(err, wire.Malformed) || got != nil {
			t.Errorf("%s: got %x, %v, want reason %q", name, got, err, wire.Malformed)
		}
	}
}

func FuzzLaunch(f *testing.F) {
	f.Add(amdSev.image(), true)
	f.Fuzz(func(t *testing.T, image []byte, kernel bool) {
		l := Launch{Firmware: image, VCPUs: 1}
		if kernel {
			l.Kernel = []byte("kernel")
		}
		got, err := l.Digest()
		if refused := (*wire.Refusal)(nil); (err == nil) != (len(got) == 48) || err != nil && !errors.As(err, &refused) {
			t.Errorf("got %x, %v", got, err)
		}
	})
}
