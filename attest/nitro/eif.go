package nitro

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"hash"
	"hash/crc32"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/fxamacker/cbor/v2"
)

// Enclave image files (EIF, versions 3 and 4), all numbers big-endian: a header,
// then sections of a head (kind, flags, size) and content.
const (
	eifHeader  = 548
	eifSection = 12
	eifMost    = 32 // sections
	eifOffsets = 28 // table of offsets, then of sizes
	eifCRC     = 544

	eifKernel, eifCommandLine, eifRamdisk, eifSignature, eifMetadata = 1, 2, 3, 4, 5
)

// measureEIF computes what the PCRs of an enclave will be that starts from an
// image: 0 the whole image, 1 kernel, command line and first ramdisk, 2 the other
// ramdisks, 8 the certificate of the image's signer, or zeros where no key signed
// it. Each is SHA-384 over 48 zeros and the SHA-384 of the contents. It checks the
// image's own checksum, and of the signature nothing: AWS does when it starts.
func measureEIF(image []byte) (attest.Measurement, error) {
	sections, err := readEIF(image)
	if err != nil {
		return attest.Measurement{}, err
	}
	whole, boot, app := sha512.New384(), sha512.New384(), sha512.New384()
	signer, ramdisks := make([]byte, sha512.Size384), 0
	for _, s := range sections {
		switch s.kind {
		case eifKernel, eifCommandLine:
			whole.Write(s.content)
			boot.Write(s.content)
		case eifRamdisk:
			whole.Write(s.content)
			if ramdisks++; ramdisks == 1 {
				boot.Write(s.content)
			} else {
				app.Write(s.content)
			}
		case eifSignature:
			if signer, err = signerPCR(s.content); err != nil {
				return attest.Measurement{}, err
			}
		case eifMetadata: // not measured
		default:
			return attest.Measurement{}, refuseEIF("a section of kind", s.kind)
		}
	}
	return attest.Measurement{Platform: attest.Nitro, Registers: []attest.Register{
		{Name: "pcr0", Value: extended(whole)}, {Name: "pcr1", Value: extended(boot)}, {Name: "pcr2", Value: extended(app)}, {Name: "pcr8", Value: signer},
	}}, nil
}

// extended is a PCR of zeros that was extended once.
func extended(contents hash.Hash) []byte {
	sum := sha512.Sum384(contents.Sum(make([]byte, sha512.Size384)))
	return sum[:]
}

type imageSection struct {
	kind    uint16
	content []byte
}

// readEIF takes an image apart. Sections follow one another without gaps to the
// end.
func readEIF(image []byte) ([]imageSection, error) {
	be := binary.BigEndian
	if len(image) < eifHeader || string(image[:4]) != ".eif" {
		return nil, refuseEIF("header", fmt.Sprintf("%d bytes that begin with %.4q", len(image), image))
	}
	if version := be.Uint16(image[4:]); version < 3 || version > 4 {
		return nil, refuseEIF("version", version)
	}
	sum := crc32.ChecksumIEEE(image[:eifCRC])
	sum = crc32.Update(sum, crc32.IEEETable, image[eifHeader:])
	if got := be.Uint32(image[eifCRC:]); got != sum {
		return nil, refuseEIF("checksum", got)
	}
	count := int(be.Uint16(image[26:]))
	if count < 1 || count > eifMost {
		return nil, refuseEIF("number of sections", count)
	}
	var sections []imageSection
	rest := image[eifHeader:]
	for i := range count {
		offset, size := be.Uint64(image[eifOffsets+8*i:]), be.Uint64(image[eifOffsets+8*eifMost+8*i:])
		if offset != uint64(len(image)-len(rest)) || len(rest) < eifSection || size > uint64(len(rest)-eifSection) || be.Uint64(rest[4:]) != size {
			return nil, refuseEIF("place of a section", i)
		}
		sections = append(sections, imageSection{be.Uint16(rest), rest[eifSection:][:size]})
		rest = rest[eifSection+size:]
	}
	if len(rest) > 0 {
		return nil, refuseEIF("bytes behind the last section", len(rest))
	}
	return sections, nil
}

// signerPCR is PCR 8: of the DER of the certificate in a signature section.
func signerPCR(section []byte) ([]byte, error) {
	var signatures []struct {
		Certificate []byte `cbor:"signing_certificate"`
		Signature   []byte `cbor:"signature"`
	}
	if err := cbor.Unmarshal(section, &signatures); err != nil || len(signatures) != 1 {
		return nil, refuseEIF("signatures", len(signatures))
	}
	block, rest := pem.Decode(signatures[0].Certificate)
	if block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, refuseEIF("certificate of the signer", fmt.Sprintf("%d bytes that are not one certificate in PEM", len(signatures[0].Certificate)))
	}
	h := sha512.New384()
	h.Write(block.Bytes)
	return extended(h), nil
}

func refuseEIF(what string, got any) error {
	return wire.Refuse(wire.Malformed, "nitro: enclave image: "+what, got, "an EIF of version 3 or 4")
}
