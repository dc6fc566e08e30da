package attest

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// RoleChecked is the role of the one thing among endorsements that no vendor
// states: when the party that forwards them last had each from its vendor.
const RoleChecked = "checked"

// Fetched states when a document of a vendor was last fetched from the vendor, or from a
// mirror of his, and when it ends, in whole seconds. It is worth as much as
// any party that states so.
type Fetched struct {
	Role   string    `json:"role"`
	Digest Digest    `json:"digest"` // of the document
	At     time.Time `json:"checked"`
	Until  time.Time `json:"until"`
}

// changingRoles are the roles of what vendors withdraw or replace: lists and
// statements. Certificates stay what they are until their end, or a list's word.
var changingRoles = []string{"crl", "model_crl", "pck_crl", "qe_identity", "region_crl", "root_crl", "tcb_info", "zone_crl"}

// FrameFetched writes what endorsements hold in role "checked", in the order of
// the roles (docs/spec/evidence.md, section 2).
func FrameFetched(all []Fetched) []byte {
	var fields [][]byte
	for _, c := range slices.SortedFunc(slices.Values(all), func(a, b Fetched) int { return strings.Compare(a.Role, b.Role) }) {
		fields = append(fields, []byte(c.Role), c.Digest[:], wire.Uint64(uint64(c.At.Unix())), wire.Uint64(uint64(c.Until.Unix())))
	}
	return wire.Frame(wire.LabelChecked, fields...)
}

// maxSecond is the last second that a time of Checked may name: the end of the
// year 9999, after which no certificate is valid.
const maxSecond = 253402300799

// Fetched reads the role "checked", which may be missing. It refuses another
// encoding than that of [FrameFetched] with reason "malformed".
func (e Endorsements) Fetched() ([]Fetched, error) {
	if e[RoleChecked] == nil {
		return nil, nil
	}
	fields, err := wire.Unframe(wire.LabelChecked, e[RoleChecked], -1)
	if err != nil {
		return nil, err
	}
	if len(fields)%4 != 0 {
		return nil, wire.Refuse(wire.Malformed, "collateral: fields of role checked", len(fields), "four for each document")
	}
	var all []Fetched
	for before := ""; len(fields) > 0; fields = fields[4:] {
		c, err := readFetched([4][]byte(fields))
		if err != nil {
			return nil, err
		}
		if c.Role <= before || !isRole(c.Role) {
			return nil, wire.Refuse(wire.Malformed, "collateral: role checked", c.Role, "each role once, in order")
		}
		before, all = c.Role, append(all, c)
	}
	return all, nil
}

func readFetched(fields [4][]byte) (Fetched, error) {
	c := Fetched{Role: string(fields[0])}
	if len(fields[1]) != len(c.Digest) || len(fields[2]) != 8 || len(fields[3]) != 8 {
		return c, wire.Refuse(wire.Malformed, "collateral: sizes in role checked", [3]int{len(fields[1]), len(fields[2]), len(fields[3])}, "32, 8 and 8 bytes")
	}
	at, until := binary.BigEndian.Uint64(fields[2]), binary.BigEndian.Uint64(fields[3])
	if max(at, until) > maxSecond {
		return c, wire.Refuse(wire.Malformed, "collateral: time in role checked", max(at, until), maxSecond)
	}
	c.Digest, c.At, c.Until = Digest(fields[1]), time.Unix(int64(at), 0).UTC(), time.Unix(int64(until), 0).UTC()
	return c, nil
}

// checkFetched demands that what vendors withdraw or replace was had from them not
// longer ago than the rules state, and nothing in the future, but for clocks that
// differ.
func (r Rules) checkFetched(endorsed Endorsements, checked []Fetched, at time.Time) error {
	latest := at.Add(wire.MaxClockSkew)
	for _, c := range checked {
		if c.At.After(latest) {
			return wire.Refuse(wire.ClockSkew, "collateral: "+c.Role+" checked", c.At.Format(time.RFC3339), "not after "+latest.UTC().Format(time.RFC3339))
		}
	}
	if r.CheckedWithin == 0 {
		return nil
	}
	least := at.Add(-r.CheckedWithin)
	for _, role := range changingRoles {
		document, there := endorsed[role]
		if !there {
			continue // the platform's own rules state what that means
		}
		i := slices.IndexFunc(checked, func(c Fetched) bool { return c.Role == role && c.Digest == wire.Sum(document) })
		if i < 0 {
			return wire.Refuse(wire.Expired, "collateral: "+role+" checked", "no time of fetching for this document", fmt.Sprint("within ", r.CheckedWithin))
		}
		if got := checked[i].At; got.Before(least) {
			return wire.Refuse(wire.Expired, "collateral: "+role+" checked", got.Format(time.RFC3339), "not before "+least.UTC().Format(time.RFC3339))
		}
	}
	return nil
}
