package attest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/cohort-tee/cohort/internal/wire"
)

// A collection holds evidence and endorsements, one member for each role. With
// devices it has another type, and the members of device N begin with "N.".
const (
	memberType      = "__cmwc_t"
	endorsedType    = "urn:cohort:endorsed-evidence"
	compositeType   = "urn:cohort:composite-evidence"
	memberEvidence  = "evidence"
	endorsementType = "application/vnd.cohort.endorsement"
)

// maxRole bounds the name of a role, in bytes.
const maxRole = 32

// MaxDevices bounds the devices beside one TEE: the largest machines sold have 8
// GPUs, and 4 switches between them.
const MaxDevices = 16

// collect writes a collection. It is flat: a part of a composite is no collection
// of its own, so there is nothing to nest.
func (e Evidence) collect() ([]byte, error) {
	kind := endorsedType
	if len(e.Devices) > 0 {
		kind = compositeType
	}
	members := map[string]json.RawMessage{memberType: json.RawMessage(strconv.Quote(kind))}
	if err := e.addTo(members, ""); err != nil {
		return nil, err
	}
	if err := e.checkDevices(); err != nil {
		return nil, err
	}
	for i, d := range e.Devices {
		if err := d.addTo(members, devicePrefix(i)); err != nil {
			return nil, err
		}
	}
	return joinMembers(members), nil
}

// joinMembers writes members in the order of their names, none of which needs an escape.
// It is written by hand for the reason that splitMembers states.
func joinMembers(members map[string]json.RawMessage) []byte {
	size := 2
	for name, value := range members {
		size += len(name) + len(value) + len(`"":,`)
	}
	out := append(make([]byte, 0, size), '{')
	for i, name := range slices.Sorted(maps.Keys(members)) {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(append(append(append(out, '"'), name...), `":`...), members[name]...)
	}
	return append(out, '}')
}

func devicePrefix(i int) string { return strconv.Itoa(i) + "." }

// addTo adds the members of one part.
func (e Evidence) addTo(members map[string]json.RawMessage, prefix string) (err error) {
	if members[prefix+memberEvidence], err = e.record(); err != nil {
		return err
	}
	for role, content := range e.Endorsed {
		if !isRole(role) {
			return wire.Refuse(wire.Malformed, "evidence: role of an endorsement", role, "1 to 32 of a-z and _, another one")
		}
		if members[prefix+role], err = wrapRecord(endorsementType, content); err != nil {
			return err
		}
	}
	return nil
}

// isRole reports whether a name may be the role of an endorsement, and does not mean something
// else.
func isRole(role string) bool {
	if role == memberEvidence || role == memberType {
		return false
	}
	return role != "" && len(role) <= maxRole && strings.Trim(role, "abcdefghijklmnopqrstuvwxyz_") == ""
}

// checkDevices refuses devices that are none, that have devices, and too many.
func (e Evidence) checkDevices() error {
	if len(e.Devices) > MaxDevices {
		return wire.Refuse(wire.Malformed, "evidence: number of devices", len(e.Devices), MaxDevices)
	}
	for _, d := range e.Devices {
		switch {
		case !d.Platform.IsDevice():
			return wire.Refuse(wire.NoPlatform, "evidence: platform of a device", d.Platform, "that of a device")
		case len(d.Devices) > 0:
			return wire.Refuse(wire.Malformed, "evidence: devices of a device", len(d.Devices), "none")
		}
	}
	return nil
}

// readCollection takes a collection apart. Members that belong to no part, and
// types that are not ours, show when it is encoded again.
func readCollection(b []byte) (Evidence, error) {
	members, ok := splitMembers(b)
	if !ok {
		return Evidence{}, wire.Refuse(wire.Malformed, "evidence: collection", fmt.Sprintf("%d bytes that begin with %.16q", len(b), b), "a JSON collection of RFC 9999")
	}
	e, err := readPart(members, "")
	if err != nil {
		return Evidence{}, err
	}
	for i := 0; members[devicePrefix(i)+memberEvidence] != nil; i++ {
		d, err := readPart(members, devicePrefix(i))
		if err != nil {
			return Evidence{}, err
		}
		e.Devices = append(e.Devices, d)
	}
	return e, e.checkDevices()
}

// splitMembers finds the members of a collection, none of which needs an escape and none
// holds a bracket inside. It and join are written by hand: package json needs for
// either of the two steps twice as long as all of the reading takes, and for both nearly
// half as long as the appraisal (BenchmarkCollection).
func splitMembers(b []byte) (members map[string]json.RawMessage, ok bool) {
	members = map[string]json.RawMessage{}
	rest, ok := bytes.CutPrefix(b, []byte("{"))
	for ok {
		var name, value []byte
		if name, rest, ok = cutEnclosed(rest, '"', '"'); !ok {
			break
		}
		if rest, ok = bytes.CutPrefix(rest, []byte(":")); !ok {
			break
		}
		if value, rest, ok = cutEnclosed(rest, '[', ']'); !ok {
			value, rest, ok = cutEnclosed(rest, '"', '"')
		}
		if !ok {
			break
		}
		members[string(name[1:len(name)-1])] = value
		if string(rest) == "}" {
			return members, true
		}
		rest, ok = bytes.CutPrefix(rest, []byte(","))
	}
	return nil, false
}

// cutEnclosed is what b begins with, from one character to another.
func cutEnclosed(b []byte, from, to byte) (value, rest []byte, ok bool) {
	if len(b) == 0 || b[0] != from {
		return nil, b, false
	}
	n := bytes.IndexByte(b[1:], to)
	if n < 0 {
		return nil, b, false
	}
	return b[:n+2], b[n+2:], true
}

// readPart reads the members that begin with a prefix and a role.
func readPart(members map[string]json.RawMessage, prefix string) (Evidence, error) {
	e, err := readRecord(members[prefix+memberEvidence])
	if err != nil {
		return Evidence{}, err
	}
	for name, member := range members {
		role, mine := strings.CutPrefix(name, prefix)
		if !mine || !isRole(role) {
			continue
		}
		_, content, err := unwrapRecord(member)
		if err != nil {
			return Evidence{}, err
		}
		if e.Endorsed == nil {
			e.Endorsed = Endorsements{}
		}
		e.Endorsed[role] = content
	}
	return e, nil
}
