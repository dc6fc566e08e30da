package snp

import (
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strings"

	"github.com/cohort-tee/cohort/internal/wire"
)

// firmware is what OVMF states about itself in the table before its reset vector.
type firmware struct {
	reset     uint32 // where CPUs but the first start
	hashTable uint32 // where it looks for QEMU's table of hashes; 0 where it does not
	sections  []section
}

// section is memory that the firmware wants launched.
type section struct {
	kind          uint32
	address, size uint64
}

// Kinds of sections (edk2, OvmfSevMetadata.asm).
const (
	sectionMemory  = 1
	sectionSecrets = 2
	sectionCPUID   = 3
	sectionCalling = 4 // of an SVSM
	sectionHashes  = 16
)

// Names in the firmware's table.
var (
	footerGUID   = parseGUID("96b582de-1fb2-45f7-baea-a366c55a082d")
	resetGUID    = parseGUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e")
	tableGUID    = parseGUID("7255371f-3a3b-4b04-927b-1da6efa8d454")
	metadataGUID = parseGUID("dc886566-984a-4798-a75e-5585a7bf67cc")
)

// parseGUID is the binary form of a GUID, whose first three parts are little-endian.
func parseGUID(text string) (g [16]byte) {
	b, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
	if err != nil || len(b) != len(g) {
		panic("a GUID of this package is none: " + text)
	}
	slices.Reverse(b[0:4])
	slices.Reverse(b[4:6])
	slices.Reverse(b[6:8])
	return [16]byte(b)
}

// resetTail is what lies behind the table's last entry: the reset vector.
const resetTail = 0x20

// readFirmware reads the table backwards: each entry is data, a size of 2 bytes
// that counts all three, and a GUID. The last entry is the footer with the size of
// the whole.
func readFirmware(image []byte) (f firmware, err error) {
	end := len(image) - resetTail
	if end < 18 || [16]byte(image[end-16:end]) != footerGUID {
		return f, refuseFirmware("no table before the reset vector")
	}
	le := binary.LittleEndian
	whole := int(le.Uint16(image[end-18:]))
	if whole < 18 || whole > end {
		return f, refuseFirmware("a table larger than the image")
	}
	table := image[end-whole : end-18]
	entries := map[[16]byte][]byte{}
	for len(table) > 0 {
		n := len(table)
		if n < 18 {
			return f, refuseFirmware("a cut entry")
		}
		size := int(le.Uint16(table[n-18:]))
		if size < 18 || size > n {
			return f, refuseFirmware("an entry larger than the table")
		}
		entries[[16]byte(table[n-16:])] = table[n-size : n-18]
		table = table[:n-size]
	}
	return f, f.readEntries(image, entries)
}

func (f *firmware) readEntries(image []byte, entries map[[16]byte][]byte) error {
	le := binary.LittleEndian
	reset, metadata := entries[resetGUID], entries[metadataGUID]
	if len(reset) != 4 || len(metadata) != 4 {
		return refuseFirmware("a table without reset address or SEV metadata")
	}
	f.reset = le.Uint32(reset)
	if table := entries[tableGUID]; len(table) == 8 {
		f.hashTable = le.Uint32(table)
	}
	back := int(le.Uint32(metadata))
	if back < 16 || back > len(image) {
		return refuseFirmware("metadata outside the image")
	}
	head := image[len(image)-back:]
	if string(head[:4]) != "ASEV" || le.Uint32(head[8:]) != 1 {
		return refuseFirmware("no ASEV metadata of version 1")
	}
	size, count := int(le.Uint32(head[4:])), int(le.Uint32(head[12:]))
	if count > 64 || size != 16+12*count || size > back {
		return refuseFirmware("metadata of another size")
	}
	return f.readSections(head[16:size])
}

func (f *firmware) readSections(b []byte) error {
	le := binary.LittleEndian
	for ; len(b) > 0; b = b[12:] {
		s := section{le.Uint32(b[8:]), uint64(le.Uint32(b)), uint64(le.Uint32(b[4:]))}
		if s.address%page != 0 || s.size%page != 0 || s.size == 0 || s.size > maxFirmware {
			return refuseFirmware("a section that is not of whole pages")
		}
		if s.kind == sectionHashes && (s.size != page || f.hashTable/page != uint32(s.address/page) || f.hashTable%page > page-168) {
			return refuseFirmware("a page for hashes that the table of hashes is not in")
		}
		f.sections = append(f.sections, s)
	}
	return nil
}

func refuseFirmware(got string) error {
	return wire.Refuse(wire.Malformed, "snp launch: firmware", got, "OVMF with SEV metadata")
}
