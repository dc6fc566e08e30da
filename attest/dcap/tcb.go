package dcap

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/cohort-tee/cohort/attest/internal/pki"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Ids of TCB info and QE identity, and the versions that are read.
const (
	idSGX             = "SGX"
	idTDX             = "TDX"
	idQE              = "QE"
	idTDQE            = "TD_QE"
	tcbInfoVersion    = 3
	qeIdentityVersion = 2
)

// octets are bytes that Intel writes in hexadecimal.
type octets []byte

// UnmarshalText reads hexadecimal digits.
func (o *octets) UnmarshalText(text []byte) (err error) {
	*o, err = hex.DecodeString(string(text))
	return err
}

// issued is what TCB info and QE identity have in common.
type issued struct {
	ID         string    `json:"id"`
	Version    int       `json:"version"`
	Issued     time.Time `json:"issueDate"`
	Next       time.Time `json:"nextUpdate"`
	Evaluation uint32    `json:"tcbEvaluationDataNumber"`
}

// validity is when the document counts.
func (i issued) validity(of string) pki.Validity {
	return pki.Validity{Of: of, From: i.Issued, Until: i.Next, Issued: true}
}

// checkID refuses a document of another kind.
func (i issued) checkID(id string, version int) error {
	if i.ID != id {
		return wire.Refuse(wire.WrongChip, "dcap: id of the collateral", i.ID, id)
	}
	if i.Version != version {
		return wire.Refuse(wire.Malformed, "dcap: version of "+id, i.Version, version)
	}
	return nil
}

// tcbInfo is what Intel states about the TCB levels of one family of platforms
// (Intel PCS API version 4).
type tcbInfo struct {
	issued
	FMSPC   octets     `json:"fmspc"`
	PCEID   octets     `json:"pceId"`
	Type    int        `json:"tcbType"`
	Module  *module    `json:"tdxModule"`
	Modules []module   `json:"tdxModuleIdentities"`
	Levels  []tcbLevel `json:"tcbLevels"`
}

// module states what a TDX module is known by, and its levels; the module of
// versions 0 is rated with the platform and has none.
type module struct {
	ID         string     `json:"id"`
	MRSigner   octets     `json:"mrsigner"`
	Attributes octets     `json:"attributes"`
	Mask       octets     `json:"attributesMask"`
	Levels     []tcbLevel `json:"tcbLevels"`
}

// qeIdentity states what a quoting enclave is known by, and its levels.
type qeIdentity struct {
	issued
	MiscSelect octets     `json:"miscselect"`
	MiscMask   octets     `json:"miscselectMask"`
	Attributes octets     `json:"attributes"`
	Mask       octets     `json:"attributesMask"`
	MRSigner   octets     `json:"mrsigner"`
	ProductID  uint16     `json:"isvprodid"`
	Levels     []tcbLevel `json:"tcbLevels"`
}

// tcbLevel is a set of least versions, and what Intel states about it. Levels go
// from high to low; the first that is reached counts.
type tcbLevel struct {
	TCB struct {
		SGX    []component `json:"sgxtcbcomponents"`
		TDX    []component `json:"tdxtcbcomponents"`
		PCESVN int         `json:"pcesvn"`
		ISVSVN *uint16     `json:"isvsvn"`
	} `json:"tcb"`
	Date       time.Time `json:"tcbDate"` // of the last change of hardware or firmware that the level has; zero when not said
	Status     status    `json:"tcbStatus"`
	Advisories []string  `json:"advisoryIDs"`
}

type component struct {
	SVN uint8 `json:"svn"`
}

// readTCBInfo reads signed bytes.
func readTCBInfo(signed []byte, id string) (*tcbInfo, error) {
	t := new(tcbInfo)
	if err := json.Unmarshal(signed, t); err != nil {
		return nil, wire.Refuse(wire.Malformed, "dcap: TCB info", err, "Intel's JSON")
	}
	if err := t.checkID(id, tcbInfoVersion); err != nil {
		return nil, err
	}
	tdx := 0
	if id == idTDX {
		tdx = 16
	}
	for _, l := range t.Levels {
		if len(l.TCB.SGX) != 16 || len(l.TCB.TDX) != tdx || l.Status == 0 {
			return nil, wire.Refuse(wire.Malformed, "dcap: level of TCB info", fmt.Sprintf("%d and %d components, status %v", len(l.TCB.SGX), len(l.TCB.TDX), l.Status), "16 components of each kind and a status")
		}
	}
	for _, m := range t.Modules {
		if err := checkLevels(m.Levels); err != nil {
			return nil, err
		}
	}
	if t.Type != 0 || id == idTDX && t.Module == nil {
		return nil, wire.Refuse(wire.Malformed, "dcap: TCB info", fmt.Sprint("type ", t.Type), "type 0, with its TDX module")
	}
	return t, nil
}

// readQEIdentity reads signed bytes.
func readQEIdentity(signed []byte, id string) (*qeIdentity, error) {
	i := new(qeIdentity)
	if err := json.Unmarshal(signed, i); err != nil {
		return nil, wire.Refuse(wire.Malformed, "dcap: QE identity", err, "Intel's JSON")
	}
	if err := i.checkID(id, qeIdentityVersion); err != nil {
		return nil, err
	}
	return i, checkLevels(i.Levels)
}

// checkLevels checks levels of one security version.
func checkLevels(levels []tcbLevel) error {
	for _, l := range levels {
		if l.TCB.ISVSVN == nil || l.Status == 0 {
			return wire.Refuse(wire.Malformed, "dcap: level of one version", fmt.Sprintf("status %v, version there: %v", l.Status, l.TCB.ISVSVN != nil), "a version and a status")
		}
	}
	return nil
}

// platformLevel is the level of a platform. The TEE TCB SVN is a trust domain's;
// its components 0 and 1 are the TDX module, which is rated by itself once
// component 1, its version, is above 0.
func (t *tcbInfo) platformLevel(p pck, teeSVN []byte) (*tcbLevel, error) {
	from := 0
	if len(teeSVN) > 0 && teeSVN[1] > 0 {
		from = 2
	}
	for i := range t.Levels {
		if t.Levels[i].isReachedBy(p, teeSVN, from) {
			return &t.Levels[i], nil
		}
	}
	return nil, wire.Refuse(wire.BadTCB, "dcap: TCB of the platform", fmt.Sprint(p.svns, " ", p.pceSVN, " ", teeSVN), "one of Intel's levels")
}

func (l *tcbLevel) isReachedBy(p pck, teeSVN []byte, from int) bool {
	for i, c := range l.TCB.SGX {
		if p.svns[i] < int(c.SVN) {
			return false
		}
	}
	for i := from; i < len(teeSVN); i++ {
		if teeSVN[i] < l.TCB.TDX[i].SVN {
			return false
		}
	}
	return p.pceSVN >= l.TCB.PCESVN
}

// moduleLevel checks that the TDX module is Intel's and returns its level, nil for
// versions that are rated with the platform. The TEE TCB SVN is that of the launch
// or the one now.
func (t *tcbInfo) moduleLevel(g guest, teeSVN []byte) (*tcbLevel, error) {
	svn, version := teeSVN[0], teeSVN[1]
	if version == 0 {
		return nil, t.Module.checkSigner(g)
	}
	id := fmt.Sprintf("TDX_%02X", version)
	for _, m := range t.Modules {
		if m.ID != id {
			continue
		}
		if err := m.checkSigner(g); err != nil {
			return nil, err
		}
		return firstReached(m.Levels, uint16(svn), "TDX module "+id)
	}
	return nil, wire.Refuse(wire.BadTCB, "dcap: TDX module", id, "one that TCB info names")
}

// checkSigner checks who signed the module and how it is set up.
func (m *module) checkSigner(g guest) error {
	if !bytes.Equal(g.mrSignerSEAM(), m.MRSigner) || !masked(g.seamAttributes(), m.Mask, m.Attributes) {
		return wire.Refuse(wire.BadTCB, "dcap: signer and attributes of the TDX module",
			hex.EncodeToString(g[64:120]), hex.EncodeToString(append(m.MRSigner[:len(m.MRSigner):len(m.MRSigner)], m.Attributes...)))
	}
	return nil
}

// checkEnclave checks that a quoting enclave is Intel's.
func (i *qeIdentity) checkEnclave(e enclave) error {
	switch {
	case !bytes.Equal(e.mrSigner(), i.MRSigner):
		return wire.Refuse(wire.BadChain, "dcap: signer of the QE", hex.EncodeToString(e.mrSigner()), hex.EncodeToString(i.MRSigner))
	case e.productID() != i.ProductID:
		return wire.Refuse(wire.BadChain, "dcap: product id of the QE", e.productID(), i.ProductID)
	case !masked(e.attributes(), i.Mask, i.Attributes):
		return wire.Refuse(wire.BadChain, "dcap: attributes of the QE", hex.EncodeToString(e.attributes()), hex.EncodeToString(i.Attributes))
	case !masked(e.miscSelect(), i.MiscMask, i.MiscSelect):
		return wire.Refuse(wire.BadChain, "dcap: MISCSELECT of the QE", hex.EncodeToString(e.miscSelect()), hex.EncodeToString(i.MiscSelect))
	}
	return nil
}

func (i *qeIdentity) level(svn uint16) (*tcbLevel, error) { return firstReached(i.Levels, svn, i.ID) }

func firstReached(levels []tcbLevel, svn uint16, of string) (*tcbLevel, error) {
	for i := range levels {
		if svn >= *levels[i].TCB.ISVSVN {
			return &levels[i], nil
		}
	}
	return nil, wire.Refuse(wire.BadTCB, "dcap: security version of "+of, svn, "one of Intel's levels")
}

// masked reports whether the bits of got under the mask are those wanted.
func masked(got, mask, want []byte) bool {
	if len(got) != len(mask) || len(got) != len(want) {
		return false
	}
	for i := range got {
		if got[i]&mask[i] != want[i] {
			return false
		}
	}
	return true
}
