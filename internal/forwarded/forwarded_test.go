package forwarded

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// clientIn returns the RemoteAddr that a handler behind p reads.
func clientIn(p Proxies, peer string, fields http.Header) (seen string) {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.RemoteAddr, r.Header = peer, fields
	p.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen = r.RemoteAddr })).ServeHTTP(nil, r)
	if r.RemoteAddr != peer {
		panic("the server's own request was changed")
	}
	return seen
}

// TestClient: only what a trusted proxy added counts, in the field that proxies write.
func TestClient(t *testing.T) {
	const proxy, x, standard = "10.0.0.1:5000", "X-Forwarded-For", "Forwarded"
	for _, row := range []struct {
		name, field, peer string
		fields            http.Header
		want              string
	}{
		{"no proxy", FieldX, "192.0.2.1:7", http.Header{x: {"203.0.113.9"}}, "192.0.2.1:7"},
		{"no field", FieldX, proxy, nil, "10.0.0.1:0"},
		{"one proxy", FieldX, proxy, http.Header{x: {"192.0.2.1"}}, "192.0.2.1:0"},
		{"what the client added does not count", FieldX, proxy, http.Header{x: {"203.0.113.9, 192.0.2.1"}}, "192.0.2.1:0"},
		{"in a line of its own neither", FieldX, proxy, http.Header{x: {"203.0.113.9", "192.0.2.1"}}, "192.0.2.1:0"},
		{"nor trusted addresses that it names", FieldX, proxy, http.Header{x: {"203.0.113.9, 10.0.0.2, 192.0.2.1"}}, "192.0.2.1:0"},
		{"two proxies", FieldX, proxy, http.Header{x: {"203.0.113.9, 192.0.2.1, 10.1.2.3"}}, "192.0.2.1:0"},
		{"a client at a trusted address", FieldX, proxy, http.Header{x: {"10.1.2.3"}}, "10.1.2.3:0"},
		{"an address that is none", FieldX, proxy, http.Header{x: {"192.0.2.1, evil"}}, "10.0.0.1:0"},
		{"behind a proxy that named it", FieldX, proxy, http.Header{x: {"unknown, 10.1.2.3"}}, "10.1.2.3:0"},
		{"an empty element", FieldX, proxy, http.Header{x: {"192.0.2.1,"}}, "10.0.0.1:0"},
		{"with a port", FieldX, proxy, http.Header{x: {"192.0.2.1:4711"}}, "192.0.2.1:0"},
		{"IPv6", FieldX, proxy, http.Header{x: {"2001:db8::1"}}, "[2001:db8::1]:0"},
		{"IPv6 with a port", FieldX, proxy, http.Header{x: {"[2001:db8::1]:4711"}}, "[2001:db8::1]:0"},
		{"IPv6 in brackets", FieldX, proxy, http.Header{x: {"[2001:db8::1]"}}, "[2001:db8::1]:0"},
		{"IPv4 in IPv6", FieldX, proxy, http.Header{x: {"::ffff:192.0.2.1"}}, "192.0.2.1:0"},
		{"a zone", FieldX, proxy, http.Header{x: {"fe80::1%eth0"}}, "10.0.0.1:0"},
		{"a proxy with IPv4 in IPv6", FieldX, "[::ffff:10.0.0.1]:5", http.Header{x: {"192.0.2.1"}}, "192.0.2.1:0"},
		{"an IPv6 proxy", FieldX, "[fd00::7]:5", http.Header{x: {"192.0.2.1"}}, "192.0.2.1:0"},
		{"an IPv6 neighbor", FieldX, "[fd00:0:0:1::7]:5", http.Header{x: {"192.0.2.1"}}, "[fd00:0:0:1::7]:5"},
		{"the other field does not count", FieldX, proxy, http.Header{standard: {"for=203.0.113.9"}, x: {"192.0.2.1"}}, "192.0.2.1:0"},
		{"nor here", FieldStandard, proxy, http.Header{standard: {"for=192.0.2.1"}, x: {"203.0.113.9"}}, "192.0.2.1:0"},
		{"RFC 7239", FieldStandard, proxy, http.Header{standard: {`for=203.0.113.9;proto=http, By=10.0.0.1; For="[2001:db8:cafe::17]:4711";proto=https`}}, "[2001:db8:cafe::17]:0"},
		{"two lines", FieldStandard, proxy, http.Header{standard: {"for=203.0.113.9", `for="192.0.2.1:80";by=10.0.0.1`}}, "192.0.2.1:0"},
		{"a comma in a string", FieldStandard, proxy, http.Header{standard: {`for=192.0.2.1;host="a,for=203.0.113.9;b\",c"`}}, "192.0.2.1:0"},
		{"unknown", FieldStandard, proxy, http.Header{standard: {"for=203.0.113.9, for=unknown"}}, "10.0.0.1:0"},
		{"hidden", FieldStandard, proxy, http.Header{standard: {`for="_gazonk"`}}, "10.0.0.1:0"},
		{"no for", FieldStandard, proxy, http.Header{standard: {"for=203.0.113.9, proto=http"}}, "10.0.0.1:0"},
		{"for twice", FieldStandard, proxy, http.Header{standard: {"for=203.0.113.9;for=192.0.2.1"}}, "10.0.0.1:0"},
		{"a string without an end", FieldStandard, proxy, http.Header{standard: {`for=203.0.113.9, for="192.0.2.1`}}, "10.0.0.1:0"},
		{"a string that the client began", FieldX, proxy, http.Header{x: {`", 192.0.2.1`}}, "192.0.2.1:0"},
		{"and in a line of its own", FieldStandard, proxy, http.Header{standard: {`for="x`, "for=192.0.2.1"}}, "192.0.2.1:0"},
		{"more elements than are read", FieldX, proxy, http.Header{x: {"192.0.2.1" + strings.Repeat(", 10.0.0.2", maxElements)}}, "10.0.0.2:0"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := testworld.Must(ParseProxies([]string{"10.0.0.0/8", "fd00::/64"}, row.field))
			if got := clientIn(p, row.peer, row.fields); got != row.want {
				t.Errorf("got %s, want %s", got, row.want)
			}
		})
	}
	if got := clientIn(Proxies{}, proxy, http.Header{x: {"192.0.2.1"}}); got != proxy {
		t.Errorf("without trusted proxies: got %s", got)
	}
	if got := clientIn(testworld.Must(ParseProxies([]string{"192.0.2.7"}, "X-Forwarded-For")), "192.0.2.7:1", http.Header{x: {"192.0.2.1"}}); got != "192.0.2.1:0" {
		t.Errorf("one address: got %s", got)
	}
}

// TestParseProxies: networks that are none, that trust everyone, and other fields are refused.
func TestParseProxies(t *testing.T) {
	for _, network := range []string{"", "10.0.0.0", "::1", "10.0.0.0/8", "127.0.0.1/32", "fd00::/8", "128.0.0.0/1"} {
		if _, err := ParseProxies([]string{network}, FieldX); (err == nil) != (network != "") {
			t.Errorf("%q: got %v", network, err)
		}
	}
	for _, network := range []string{"0.0.0.0/0", "::/0", "10.0.0.1/8", "10.0.0.0/33", "proxy.example", "fe80::1%eth0", "10.0.0.0/-1"} {
		if _, err := ParseProxies([]string{"10.0.0.0/8", network}, FieldX); wire.ReasonOf(err) != wire.BadRequest {
			t.Errorf("%q: got %v, want %q", network, err, wire.BadRequest)
		}
	}
	for _, field := range []string{"", "x-real-ip", "forwarded, x-forwarded-for"} {
		if _, err := ParseProxies(nil, field); wire.ReasonOf(err) != wire.BadRequest {
			t.Errorf("field %q: got %v, want %q", field, err, wire.BadRequest)
		}
	}
}

// FuzzClient: no field makes a client of what is no address, and no client changes what a trusted
// proxy adds behind it.
func FuzzClient(f *testing.F) {
	f.Add("192.0.2.1, 10.0.0.2")
	f.Add(`for="[2001:db8::1]:80";by="a\",b", for=_x`)
	f.Fuzz(func(t *testing.T, field string) {
		for name, added := range map[string]string{FieldX: "192.0.2.1", FieldStandard: "for=192.0.2.1"} {
			p := testworld.Must(ParseProxies([]string{"10.0.0.0/8"}, name))
			h := http.Header{http.CanonicalHeaderKey(name): {field}}
			if _, err := netip.ParseAddrPort(clientIn(p, "10.0.0.1:1", h)); err != nil {
				t.Errorf("%s: %q: %v", name, field, err)
			}
			h.Add(name, added)
			if got := clientIn(p, "10.0.0.1:1", h); got != "192.0.2.1:0" {
				t.Errorf("%s: %q: got %s", name, field, got)
			}
		}
	})
}
