package localproxy

import (
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestSenders: of all requests that a program, a page or another user of the machine can send,
// those of the machine's programs arrive in the cluster, and no other.
func TestSenders(t *testing.T) {
	arrived := 0
	through := served(t, func(w http.ResponseWriter, r *http.Request) { arrived++; w.WriteHeader(http.StatusOK) })
	for _, row := range []struct {
		name   string
		config Config
		head   string // of the request, with ADDRESS for the proxy's
		status int
		reason wire.Reason
	}{
		{"the address", Config{}, "GET / HTTP/1.1\nHost: ADDRESS", 200, ""},
		{"localhost", Config{}, "GET / HTTP/1.1\nHost: LOCALHOST", 200, ""},
		{"a name of the listener", Config{Name: "desk.example"}, "GET / HTTP/1.1\nHost: DESK", 200, ""},
		{"a name that resolves to it", Config{}, "GET / HTTP/1.1\nHost: evil.example", 403, wire.WrongName},
		{"such a name with its port", Config{}, "GET / HTTP/1.1\nHost: EVIL", 403, wire.WrongName},
		{"a name that ends like its own", Config{}, "GET / HTTP/1.1\nHost: evil.LOCALHOST", 403, wire.WrongName},
		{"its address at another port", Config{}, "GET / HTTP/1.1\nHost: 127.0.0.1:1", 403, wire.WrongName},
		{"its address without a port", Config{}, "GET / HTTP/1.1\nHost: 127.0.0.1", 403, wire.WrongName},
		{"another address of the machine", Config{}, "GET / HTTP/1.1\nHost: OTHER", 403, wire.WrongName},
		{"the cluster's own name", Config{}, "GET / HTTP/1.1\nHost: " + inside, 403, wire.WrongName},
		{"no host", Config{}, "GET / HTTP/1.1\nHost:", 403, wire.WrongName},
		{"a page", Config{}, "POST / HTTP/1.1\nHost: ADDRESS\nOrigin: https://evil.example\nContent-Length: 0", 403, wire.NotAllowed},
		{"a page without origin", Config{}, "POST / HTTP/1.1\nHost: ADDRESS\nOrigin: null\nContent-Length: 0", 403, wire.NotAllowed},
		{"an empty origin", Config{}, "GET / HTTP/1.1\nHost: ADDRESS\nOrigin:", 403, wire.NotAllowed},
		{"an image in a page", Config{}, "GET / HTTP/1.1\nHost: ADDRESS\nSec-Fetch-Site: cross-site", 403, wire.NotAllowed},
		{"an image in a page of another port", Config{}, "GET / HTTP/1.1\nHost: ADDRESS\nSec-Fetch-Site: same-site", 403, wire.NotAllowed},
		{"typed in a browser", Config{}, "GET / HTTP/1.1\nHost: ADDRESS\nSec-Fetch-Site: none", 200, ""},
		{"Node's fetch", Config{}, "GET / HTTP/1.1\nHost: ADDRESS\nSec-Fetch-Mode: cors", 200, ""},
		{"an allowed page", Config{Origins: []string{"http://localhost:3000"}}, "GET / HTTP/1.1\nHost: ADDRESS\nOrigin: http://localhost:3000\nSec-Fetch-Site: same-site", 200, ""},
		{"beside an allowed page", Config{Origins: []string{"http://localhost:3000"}}, "GET / HTTP/1.1\nHost: ADDRESS\nOrigin: http://localhost:3001", 403, wire.NotAllowed},
		{"two origins", Config{Origins: []string{"http://localhost:3000"}}, "GET / HTTP/1.1\nHost: ADDRESS\nOrigin: http://localhost:3000\nOrigin: http://evil.example", 403, wire.NotAllowed},
		{"a preflight of no allowed page", Config{}, "OPTIONS / HTTP/1.1\nHost: ADDRESS\nOrigin: https://evil.example\nAccess-Control-Request-Method: POST", 403, wire.NotAllowed},
		{"no token", Config{Token: token}, "GET / HTTP/1.1\nHost: ADDRESS", 401, wire.NotAllowed},
		{"a wrong token", Config{Token: token}, "GET / HTTP/1.1\nHost: ADDRESS\nCohort-Proxy-Token: " + token + "x", 401, wire.NotAllowed},
		{"a beginning of the token", Config{Token: token}, "GET / HTTP/1.1\nHost: ADDRESS\nAuthorization: Bearer " + token[:23], 401, wire.NotAllowed},
		{"the token without a scheme", Config{Token: token}, "GET / HTTP/1.1\nHost: ADDRESS\nAuthorization: " + token, 401, wire.NotAllowed},
		{"the token", Config{Token: token}, "GET / HTTP/1.1\nHost: ADDRESS\nCohort-Proxy-Token: " + token, 200, ""},
		{"the token as API key", Config{Token: token}, "GET / HTTP/1.1\nHost: ADDRESS\nAuthorization: Bearer " + token, 200, ""},
		{"the token as API key in lower case", Config{Token: token}, "GET / HTTP/1.1\nHost: ADDRESS\nauthorization: bearer " + token, 200, ""},
		{"the token in the other field for API keys", Config{Token: token}, "GET / HTTP/1.1\nHost: ADDRESS\nX-Api-Key: " + token, 200, ""},
		{"the token in a field for other things", Config{Token: token}, "GET / HTTP/1.1\nHost: ADDRESS\nCookie: " + token, 401, wire.NotAllowed},
		{"an allowed page without token", Config{Token: token, Origins: []string{"http://localhost:3000"}}, "GET / HTTP/1.1\nHost: ADDRESS\nOrigin: http://localhost:3000", 401, wire.NotAllowed},
		{"a proxy's CONNECT", Config{}, "CONNECT evil.example:443 HTTP/1.1\nHost: evil.example:443", 405, wire.BadRequest},
		{"a proxy's URL", Config{}, "GET http://ADDRESS/ HTTP/1.1\nHost: ADDRESS", 400, wire.BadRequest},
		{"a proxy's URL elsewhere", Config{}, "GET http://evil.example/ HTTP/1.1\nHost: ADDRESS", 400, wire.BadRequest},
		{"no path", Config{}, "OPTIONS * HTTP/1.1\nHost: ADDRESS", 400, wire.BadRequest},
		{"HTTP/1.0", Config{}, "GET / HTTP/1.0\nHost: ADDRESS", 505, wire.BadRequest},
	} {
		t.Run(row.name, func(t *testing.T) {
			row.config.Through = through
			s := start(t, row.config)
			_, port, _ := net.SplitHostPort(s.address)
			head := strings.NewReplacer("\n", "\r\n", "LOCALHOST", "localhost:"+port, "DESK", "Desk.example:"+port, "EVIL", "evil.example:"+port, "OTHER", "127.0.0.2:"+port).Replace(row.head)
			arrived = 0
			response := s.raw(t, head+"\r\n\r\n")
			if response.StatusCode != row.status {
				t.Fatalf("got status %d, want %d", response.StatusCode, row.status)
			}
			if row.reason == "" {
				if arrived != 1 {
					t.Errorf("%d requests arrived, want 1", arrived)
				}
				return
			}
			if p := problemIn(t, response); p.Reason != row.reason || p.Retry != retrySafe {
				t.Errorf("got %+v, want reason %q", p, row.reason)
			}
			if arrived > 0 || response.Header["Access-Control-Allow-Origin"] != nil && row.config.Origins == nil {
				t.Errorf("%d requests arrived, and the fields are %q", arrived, response.Header)
			}
		})
	}
}

// TestPreflight: the proxy itself permits what an allowed page asks for, without the token, which
// browsers send only afterwards.
func TestPreflight(t *testing.T) {
	s := start(t, Config{Token: token, Origins: []string{"https://app.example"}, Through: cluster(func(*http.Request) (*http.Response, error) {
		t.Error("a preflight arrived in the cluster")
		return nil, wire.Refuse(wire.Internal, "test", "a request", "no request")
	})})
	response := s.raw(t, "OPTIONS /v1/chat HTTP/1.1\r\nHost: ADDRESS\r\nOrigin: https://app.example\r\nAccess-Control-Request-Method: POST\r\n"+
		"Access-Control-Request-Headers: cohort-proxy-token,content-type\r\n\r\n")
	for name, want := range map[string]string{
		"Access-Control-Allow-Origin": "https://app.example", "Access-Control-Allow-Methods": "POST", "Vary": "Origin",
		"Access-Control-Allow-Headers": "cohort-proxy-token,content-type", "Access-Control-Allow-Credentials": "",
	} {
		if got := response.Header.Get(name); got != want || response.StatusCode != http.StatusNoContent {
			t.Errorf("%s: got %q with status %d, want %q with 204", name, got, response.StatusCode, want)
		}
	}
}

// TestPageReads: an allowed page reads the response of the service and problems, and the service's
// own opinion of pages does not count.
func TestPageReads(t *testing.T) {
	refuses := false
	through := served(t, func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Access-Control-Allow-Origin", "*") })
	s := start(t, Config{Origins: []string{"https://app.example"}, Through: cluster(func(r *http.Request) (*http.Response, error) {
		if refuses {
			return nil, wire.Refuse(wire.Unavailable, "test", "no unit", "a unit")
		}
		return through(r)
	})})
	for _, refuses = range []bool{false, true} {
		response := s.raw(t, "GET / HTTP/1.1\r\nHost: ADDRESS\r\nOrigin: https://app.example\r\n\r\n")
		if got := response.Header["Access-Control-Allow-Origin"]; !slices.Equal(got, []string{"https://app.example"}) {
			t.Errorf("got %q, want the page's origin", got)
		}
	}
}

// TestOnUnixSocket: a Unix socket has no address, so its programs use the name localhost.
func TestOnUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := (Address{path: path}).Listen(t.Context())
	testworld.NoError(t, err)
	s := startOn(t, Config{Through: served(t, func(http.ResponseWriter, *http.Request) {})}, l)
	through := &http.Transport{Dial: func(string, string) (net.Conn, error) { return net.Dial("unix", path) }}
	defer through.CloseIdleConnections()
	for host, want := range map[string]int{"localhost": http.StatusOK, "evil.example": http.StatusForbidden} {
		response, err := (&http.Client{Transport: through}).Get("http://" + host + "/")
		testworld.NoError(t, err)
		if response.Body.Close(); response.StatusCode != want {
			t.Errorf("%s: got status %d, want %d", host, response.StatusCode, want)
		}
	}
	s.end()
	<-s.ended
	if _, err := net.Dial("unix", path); err == nil {
		t.Error("the socket is still there")
	}
}

// TestConfigRefusals: a configuration that would protect less than it seems to is refused.
func TestConfigRefusals(t *testing.T) {
	good := func() Config {
		return Config{Through: http.DefaultTransport, Host: func() string { return inside }, Log: nil}
	}
	for name, change := range map[string]func(*Config){
		"a short token":         func(c *Config) { c.Token = "fifteen letters" },
		"all origins":           func(c *Config) { c.Origins = []string{"*"} },
		"the origin null":       func(c *Config) { c.Origins = []string{"null"} },
		"an origin with a path": func(c *Config) { c.Origins = []string{"https://app.example/"} },
		"negative requests":     func(c *Config) { c.Requests = -1 },
		"no host":               func(c *Config) { c.Host = nil },
	} {
		c := good()
		c.Log = start(t, Config{Through: http.DefaultTransport}).config.Log
		if _, err := NewProxy(c); err != nil {
			t.Fatal(err)
		}
		change(&c)
		_, err := NewProxy(c)
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		testworld.Refused(t, err, wire.BadRequest)
	}
}
