package agent

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/unit/unittest"
)

// TestAgentPeers: a program that knows nothing of Cohort calls a peer in plain
// HTTP, and is told the role of its own callers.
func TestAgentPeers(t *testing.T) {
	w := unittest.Grouped(t)
	a := w.Authority(w.AuthorityKeys)
	address := holders(t, join(w, "holder", "keys", a))
	scorer := join(w, "scorer", "scoring", a)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testworld.NoError(t, err)
	dead := l.Addr().String()
	testworld.NoError(t, l.Close())
	proxy, err := Config{Unit: scorer, Log: slog.New(slog.DiscardHandler), Peers: []Peer{{Role: "holder", Addresses: []string{dead, address}}}}.openPeers()
	testworld.NoError(t, err)
	defer proxy.close()
	url := strings.TrimPrefix(proxy.environment()[0], "PEER_HOLDER=")
	if got := proxy.expandURLs("--to={peer.holder}/x"); got != "--to="+url+"/x" {
		t.Errorf("got argument %q", got)
	}
	for range 4 {
		answer, err := http.Get(url + "/table")
		testworld.NoError(t, err)
		body, err := io.ReadAll(answer.Body)
		testworld.NoError(t, err)
		answer.Body.Close()
		if string(body) != "scorer calls /table" {
			t.Errorf("got %q", body)
		}
	}
	for name, peer := range map[string]Peer{
		"no address":        {Role: "holder"},
		"a role not called": {Role: "idler", Addresses: []string{address}},
	} {
		if _, err := (Config{Unit: scorer, Log: slog.New(slog.DiscardHandler), Peers: []Peer{peer}}).openPeers(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	behind := runAgentIn(t, w, join(w, "holder", "keys", a), "http", nil)
	config, err := scorer.PeerTLS("trial", "holder")
	testworld.NoError(t, err)
	behind.user = &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
	var seen struct{ Header http.Header }
	behind.json("/request", &seen, RoleField, "owner")
	if got := seen.Header.Values(RoleField); len(got) != 1 || got[0] != "scorer" {
		t.Errorf("the program is told role %q, want scorer", got)
	}
	var plain struct{ Header http.Header }
	runAgentIn(t, w, started(w, "scoring", a), "http", nil).json("/request", &plain, RoleField, "owner")
	if got := plain.Header.Values(RoleField); len(got) != 0 {
		t.Errorf("without a peer the program is told role %q", got)
	}
}
