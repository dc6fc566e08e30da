package api

import (
	"encoding/hex"
	"net/url"

	"github.com/cohort-tee/cohort/internal/wire"
)

// TrustNonce is the size in bytes of a client's nonce for the authority's evidence.
const TrustNonce = 32

// MaxCredential bounds a credential in bytes: a credential for a 3072-bit RSA key needs less than
// half of it.
const MaxCredential = 1024

// TrustQuery names a task, a group or one identity, and the nonce to which the authority's
// evidence is bound.
type TrustQuery struct {
	Task  string
	Group string      // if Task is empty
	ID    wire.Digest // if both are empty
	Nonce []byte      // TrustNonce bytes; empty requests evidence that many clients share
	// Credential challenges the TPM of the authority. It needs a nonce.
	Credential []byte
}

// encode returns the query as a URL has it.
func (q TrustQuery) encode() string {
	values := url.Values{}
	switch {
	case q.Task != "":
		values.Set("task", q.Task)
	case q.Group != "":
		values.Set("group", q.Group)
	default:
		values.Set("id", q.ID.String())
	}
	if len(q.Nonce) > 0 {
		values.Set("nonce", hex.EncodeToString(q.Nonce))
	}
	if len(q.Credential) > 0 {
		values.Set("credential", hex.EncodeToString(q.Credential))
	}
	return values.Encode()
}

// ParseTrustQuery parses the query of a request for trust. It refuses, with "request", any other
// form, an unknown parameter and one that is given twice: otherwise one request could be written
// in endless ways, and fill caches.
func ParseTrustQuery(values url.Values) (q TrustQuery, err error) {
	bad := func(name string, got, want any) (TrustQuery, error) {
		return TrustQuery{}, wire.Refuse(wire.BadRequest, "trust: "+name, got, want)
	}
	pins := 0
	for name, given := range values {
		switch name {
		case "task", "group", "id":
			pins++
		case "nonce", "credential":
		default:
			return bad("parameter", name, "task, group or id; nonce, credential")
		}
		if len(given) != 1 || given[0] == "" {
			return bad(name, given, "one value")
		}
	}
	if pins != 1 {
		return bad("task, group or id", pins, "one of them")
	}
	if values.Has("credential") && !values.Has("nonce") {
		return bad("credential", "without a nonce", "with a nonce: a credential is for one client")
	}
	q.Task, q.Group = values.Get("task"), values.Get("group")
	if values.Has("id") {
		q.ID, err = wire.ParseDigest(values.Get("id"))
	}
	if err == nil && values.Has("nonce") {
		q.Nonce, err = parseHex("nonce", values.Get("nonce"), TrustNonce, TrustNonce)
	}
	if err == nil && values.Has("credential") {
		q.Credential, err = parseHex("credential", values.Get("credential"), 1, MaxCredential)
	}
	if err != nil {
		return TrustQuery{}, err
	}
	return q, nil
}

// parseHex decodes hexadecimal digits of least to most bytes.
func parseHex(name, value string, least, most int) ([]byte, error) {
	if len(value) < 2*least || len(value) > 2*most {
		return nil, wire.Refuse(wire.BadRequest, "trust: hexadecimal digits of "+name, len(value), [2]int{2 * least, 2 * most})
	}
	b, err := hex.DecodeString(value)
	if err != nil {
		return nil, wire.Refuse(wire.BadRequest, "trust: "+name, err, "hexadecimal digits")
	}
	return b, nil
}
