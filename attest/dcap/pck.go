package dcap

import (
	"crypto/x509"
	"encoding/asn1"
	"slices"

	"github.com/cohort-tee/cohort/internal/wire"
)

// oidSGX is Intel's extension of PCK certificates (Intel SGX PCK certificate
// and CRL profile, section 1.3.5).
var oidSGX = asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}

// Arcs of the extension, and of its TCB.
const (
	arcPPID   = 1
	arcTCB    = 2
	arcPCEID  = 3
	arcFMSPC  = 4
	arcPCESVN = 17
)

// pck is what Intel certifies of a platform: which it is, and the versions that
// its PCK was derived from.
type pck struct {
	ppid   []byte // 16 bytes
	fmspc  []byte // 6 bytes: family, model, stepping, platform and custom SKU
	pceID  []byte // 2 bytes
	svns   [16]int
	pceSVN int
}

// readPCK reads the value of Intel's extension.
func readPCK(value []byte) (p pck, err error) {
	values, err := readArcs(value, oidSGX)
	if err != nil {
		return p, err
	}
	for _, field := range []struct {
		to        *[]byte
		arc, size int
	}{{&p.ppid, arcPPID, 16}, {&p.pceID, arcPCEID, 2}, {&p.fmspc, arcFMSPC, 6}} {
		rest, err := asn1.Unmarshal(values[field.arc], field.to)
		if err != nil || len(rest) > 0 || len(*field.to) != field.size {
			return p, badPCK(field.arc)
		}
	}
	versions, err := readArcs(values[arcTCB], append(slices.Clone(oidSGX), arcTCB))
	if err != nil {
		return p, err
	}
	for i := range p.svns {
		if p.svns[i], err = readSVN(versions[i+1], 0xff); err != nil {
			return p, err
		}
	}
	p.pceSVN, err = readSVN(versions[arcPCESVN], 0xffff)
	return p, err
}

// readArcs reads a sequence of pairs of an object identifier just below base
// and a value, each once.
func readArcs(der []byte, base asn1.ObjectIdentifier) (map[int][]byte, error) {
	var pairs []struct {
		ID    asn1.ObjectIdentifier
		Value asn1.RawValue
	}
	if rest, err := asn1.Unmarshal(der, &pairs); err != nil || len(rest) > 0 {
		return nil, badPCK(base[len(base)-1])
	}
	values := make(map[int][]byte)
	for _, p := range pairs {
		last := len(p.ID) - 1
		if !p.ID[:last].Equal(base) || values[p.ID[last]] != nil {
			return nil, badPCK(base[len(base)-1])
		}
		values[p.ID[last]] = p.Value.FullBytes
	}
	return values, nil
}

func readSVN(der []byte, highest int) (svn int, err error) {
	if rest, err := asn1.Unmarshal(der, &svn); err != nil || len(rest) > 0 || svn < 0 || svn > highest {
		return 0, badPCK(arcTCB)
	}
	return svn, nil
}

func badPCK(arc int) error {
	return wire.Refuse(wire.BadChain, "dcap: SGX extension of the PCK certificate", "a broken field", arc)
}

// extension is the value of Intel's extension, nil when there is none. The
// parser has refused duplicates.
func extension(cert *x509.Certificate) []byte {
	for _, e := range cert.Extensions {
		if e.Id.Equal(oidSGX) {
			return e.Value
		}
	}
	return nil
}
