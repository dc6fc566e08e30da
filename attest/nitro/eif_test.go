package nitro

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"hash/crc32"
	"slices"
	"testing"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/fxamacker/cbor/v2"
)

// eif returns an image with these sections.
func eif(sections ...imageSection) []byte {
	be := binary.BigEndian
	image := make([]byte, eifHeader)
	copy(image, ".eif")
	be.PutUint16(image[4:], 4)
	be.PutUint16(image[26:], uint16(len(sections)))
	for i, s := range sections {
		be.PutUint64(image[eifOffsets+8*i:], uint64(len(image)))
		be.PutUint64(image[eifOffsets+8*eifMost+8*i:], uint64(len(s.content)))
		image = be.AppendUint64(append(image, byte(s.kind>>8), byte(s.kind), 0, 0), uint64(len(s.content)))
		image = append(image, s.content...)
	}
	return sealEIF(image)
}

func sealEIF(image []byte) []byte {
	sum := crc32.ChecksumIEEE(image[:eifCRC])
	binary.BigEndian.PutUint32(image[eifCRC:], crc32.Update(sum, crc32.IEEETable, image[eifHeader:]))
	return image
}

func signature(t testing.TB, certificate string) imageSection {
	t.Helper()
	content, err := cbor.Marshal([]map[string]any{{
		"signing_certificate": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte(certificate)}), "signature": []byte("of the image"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	return imageSection{eifSignature, content}
}

func pcr(contents string) []byte {
	inner := sha512.Sum384([]byte(contents))
	sum := sha512.Sum384(append(make([]byte, 48), inner[:]...))
	return sum[:]
}

func TestMeasureEIF(t *testing.T) {
	parts := []imageSection{{eifKernel, []byte("kernel")}, {eifCommandLine, []byte("line")}, {eifMetadata, []byte("{}")},
		{eifRamdisk, []byte("init")}, {eifRamdisk, []byte("app")}}
	for name, tt := range map[string]struct {
		image []byte
		want  [4][]byte
	}{
		"signed":   {eif(append(slices.Clone(parts), signature(t, "DER"))...), [4][]byte{pcr("kernellineinitapp"), pcr("kernellineinit"), pcr("app"), pcr("DER")}},
		"unsigned": {eif(parts...), [4][]byte{pcr("kernellineinitapp"), pcr("kernellineinit"), pcr("app"), make([]byte, 48)}},
		"no app":   {eif(parts[:4]...), [4][]byte{pcr("kernellineinit"), pcr("kernellineinit"), pcr(""), make([]byte, 48)}},
	} {
		m, err := measureEIF(tt.image)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for i, want := range tt.want {
			if r := m.Registers[i]; !bytes.Equal(r.Value, want) {
				t.Errorf("%s: %s: got %x, want %x", name, r.Name, r.Value, want)
			}
		}
	}
}

func TestMeasureEIFRefuses(t *testing.T) {
	good := eif(imageSection{eifKernel, []byte("kernel")}, imageSection{eifRamdisk, []byte("init")})
	edited := func(at int, value byte) []byte {
		b := bytes.Clone(good)
		b[at] = value
		return sealEIF(b)
	}
	for name, image := range map[string][]byte{
		"nothing": nil, "cut": good[:len(good)-1], "magic": edited(0, 'x'), "version 5": edited(5, 5), "no section": edited(27, 0),
		"33 sections": edited(27, 33), "an offset off by one": edited(eifOffsets+7, good[eifOffsets+7]+1),
		"a size beyond the end": edited(eifOffsets+8*eifMost+7, 0xff), "two sizes": edited(eifHeader+eifSection-1, 1),
		"an unknown kind": edited(eifHeader+1, 9), "bytes behind": sealEIF(append(bytes.Clone(good), 0)),
		"a flipped bit":    append(bytes.Clone(good[:len(good)-1]), good[len(good)-1]^1),
		"a broken signer":  eif(imageSection{eifSignature, []byte("x")}),
		"no certificate":   eif(imageSection{eifSignature, []byte{0x81, 0xa0}}),
		"nobody's signing": eif(imageSection{eifSignature, []byte{0x80}}),
	} {
		if m, err := measureEIF(image); !errors.Is(err, wire.Malformed) {
			t.Errorf("%s: got %v, %v, want reason %q", name, m, err, wire.Malformed)
		}
	}
}

func FuzzMeasureEIF(f *testing.F) {
	f.Add(eif(imageSection{eifKernel, []byte("kernel")}, imageSection{eifRamdisk, []byte("init")}, signature(f, "DER")))
	f.Fuzz(func(t *testing.T, image []byte) {
		if len(image) >= eifHeader {
			image = sealEIF(bytes.Clone(image)) // otherwise the checksum would refuse every input
		}
		if _, err := measureEIF(image); err != nil {
			if refused := (*wire.Refusal)(nil); !errors.As(err, &refused) {
				t.Errorf("untyped error %v", err)
			}
		}
	})
}
