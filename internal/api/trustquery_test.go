package api

import (
	"net/url"
	"reflect"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/wire"
)

// TestTrustQuery: each query that a client sends is parsed as the same.
func TestTrustQuery(t *testing.T) {
	for _, q := range []TrustQuery{
		{Task: "scoring"}, {Group: "risk & co"}, {ID: wire.Digest{1}},
		{Task: "scoring", Nonce: make([]byte, TrustNonce)},
		{Task: "scoring", Nonce: make([]byte, TrustNonce), Credential: make([]byte, MaxCredential)},
	} {
		values, err := url.ParseQuery(q.encode())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ParseTrustQuery(values); err != nil || !reflect.DeepEqual(got, q) {
			t.Errorf("%s: got %+v, %v", q.encode(), got, err)
		}
	}
}

func TestTrustQueryRefusals(t *testing.T) {
	nonce := "&nonce=" + strings.Repeat("0a", TrustNonce)
	for query, want := range map[string]wire.Reason{
		"":                       wire.BadRequest,
		nonce[1:]:                wire.BadRequest,
		"task=":                  wire.BadRequest,
		"task=a&group=b":         wire.BadRequest,
		"task=a&id=x":            wire.BadRequest,
		"task=a&task=a":          wire.BadRequest,
		"task=a&x=1":             wire.BadRequest,
		"Task=a":                 wire.BadRequest,
		"id=x":                   wire.Malformed,
		"task=a&nonce=":          wire.BadRequest,
		"task=a&nonce=0a":        wire.BadRequest,
		"task=a" + nonce + "0a":  wire.BadRequest,
		"task=a" + nonce + nonce: wire.BadRequest,
		"task=a&nonce=" + strings.Repeat("zz", TrustNonce):                        wire.BadRequest,
		"task=a&credential=0a":                                                    wire.BadRequest,
		"task=a" + nonce + "&credential=":                                         wire.BadRequest,
		"task=a" + nonce + "&credential=0":                                        wire.BadRequest,
		"task=a" + nonce + "&credential=" + strings.Repeat("0a", MaxCredential+1): wire.BadRequest,
	} {
		values, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		if q, err := ParseTrustQuery(values); wire.ReasonOf(err) != want || err == nil || !reflect.DeepEqual(q, TrustQuery{}) {
			t.Errorf("%s: got %+v, %v, want %q", query, q, err, want)
		}
	}
}
