package trustrelay

import (
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Sizes of a query in bytes.
const (
	maxQuery      = 4 << 10 // the longest valid one has less than 2.5 KiB
	maxName       = 255     // of a task or group
	nonceDigits   = 64
	maxCredential = 2048 // hexadecimal digits; the authority's own bound
)

// parameters are the parameters of a query, and the form of each. Whether a task exists, only
// the authority knows.
var parameters = map[string]struct {
	want  string
	valid func(string) bool
}{
	"task":       {"1 to 255 visible characters of ASCII", isName},
	"group":      {"1 to 255 visible characters of ASCII", isName},
	"id":         {`"sha256:" and 64 lower-case hexadecimal digits`, func(s string) bool { _, err := wire.ParseDigest(s); return err == nil }},
	"nonce":      {"64 hexadecimal digits", func(s string) bool { return len(s) == nonceDigits && isHex(s) }},
	"credential": {"at most 2,048 hexadecimal digits", func(s string) bool { return len(s) <= maxCredential && isHex(s) }},
}

// parseQuery returns the query of a request if its form is valid. It refuses any other with
// "request", so that the authority receives nothing else.
func parseQuery(r *http.Request) (url.Values, error) {
	if r.Method != http.MethodGet {
		return nil, wire.Refuse(wire.BadRequest, "request: method", r.Method, http.MethodGet)
	}
	if n := len(r.URL.RawQuery); n > maxQuery {
		return nil, wire.Refuse(wire.BadRequest, "trust: size of the query in bytes", n, fmt.Sprint("at most ", maxQuery))
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, wire.Refuse(wire.BadRequest, "trust: query", err, "NAME=VALUE, joined by &")
	}
	for name, values := range query {
		p, known := parameters[name]
		switch {
		case !known:
			return nil, wire.Refuse(wire.BadRequest, "trust: parameter", name, "task, group, id, nonce or credential")
		case len(values) != 1:
			return nil, wire.Refuse(wire.BadRequest, "trust: values of "+name, len(values), 1)
		case !p.valid(values[0]):
			return nil, wire.Refuse(wire.BadRequest, "trust: "+name, fmt.Sprintf("%.80q", values[0]), p.want)
		}
	}
	subjects := 0
	for _, name := range []string{"task", "group", "id"} {
		if query.Has(name) {
			subjects++
		}
	}
	switch {
	case subjects != 1:
		return nil, wire.Refuse(wire.BadRequest, "trust: how many of task, group and id", subjects, 1)
	case query.Has("credential") && !query.Has("nonce"):
		return nil, wire.Refuse(wire.BadRequest, "trust: credential", "without a nonce", "a nonce beside it")
	}
	return query, nil
}

func isName(s string) bool {
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return 0 < len(s) && len(s) <= maxName
}

func isHex(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil
}
