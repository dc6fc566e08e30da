package history_test

import (
	"crypto/x509"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/history"
	"github.com/cohort-tee/cohort/internal/systest"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

func cluster(t *testing.T) *systest.Cluster {
	return systest.New(t, systest.Task{Name: "scoring", KeyMode: policyfile.Shared, Life: time.Hour, Programs: []string{"p"}})
}

// extend is the history of the steps.
func extend(t *testing.T, pin attest.Digest, steps []policy.Step) history.History {
	t.Helper()
	h, err := history.History{}.Extend(pin, testworld.Entries(steps))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func dial(t *testing.T, c *systest.Cluster, p policy.Approved) *history.Peer {
	t.Helper()
	peer, err := history.NewPeer(history.Config{Address: c.URL(), Clock: time.Now, LeafPolicy: func(*x509.Certificate) (policy.Approved, time.Time, error) { return p, time.Now(), nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(peer.Close)
	return peer
}

func TestFollow(t *testing.T) {
	c := cluster(t)
	genesis := extend(t, c.Genesis, c.Steps)
	peer := dial(t, c, genesis.Policy())
	h, err := peer.Follow(t.Context(), history.History{}, c.Genesis)
	if err != nil || h.Policy().PolicyHead() != genesis.Policy().PolicyHead() {
		t.Fatalf("from nothing: got head %v, %v", h.Policy().PolicyHead(), err)
	}
	_, err = peer.Follow(t.Context(), history.History{}, wire.Sum([]byte("another genesis")))
	testworld.Refused(t, err, wire.WrongGenesis)

	c.NextPolicy("lifetime = \"1h0m0s\"", "lifetime = \"59m0s\"")
	newer := extend(t, c.Genesis, c.Steps)
	_, err = peer.Follow(testworld.ShortContext(t), newer, c.Genesis) // a caller that takes such a peer for one ahead asks it without end
	testworld.Refused(t, err, wire.Behind)
	if err := peer.PushHistory(t.Context(), newer); err != nil {
		t.Fatalf("teaching: %v", err)
	}
	if h, err = peer.Follow(t.Context(), h, c.Genesis); err != nil || h.Policy().PolicyHead() != newer.Policy().PolicyHead() {
		t.Errorf("after teaching: got head %v, %v, want %v", h.Policy().PolicyHead(), err, newer.Policy().PolicyHead())
	}
}

// TestFork: two histories that the owners signed. Who has seen one never
// follows the other.
func TestFork(t *testing.T) {
	c := cluster(t)
	genesis := c.Steps
	c.NextPolicy("lifetime = \"1h0m0s\"", "lifetime = \"58m0s\"")
	seen := extend(t, c.Genesis, c.Steps)
	c.Steps = genesis
	c.NextPolicy("lifetime = \"1h0m0s\"", "lifetime = \"59m0s\"")
	c.NextPolicy("lifetime = \"59m0s\"", "lifetime = \"57m0s\"")
	fork := extend(t, c.Genesis, c.Steps)
	peer := dial(t, c, fork.Policy())
	if err := peer.PushHistory(t.Context(), fork); err != nil {
		t.Fatal(err)
	}
	_, err := peer.Follow(t.Context(), seen, c.Genesis)
	testworld.Refused(t, err, wire.Behind)
}

// TestForkOfOtherOwners: the step that a peer has next is signed by owners that this history never had. The
// peer is behind, so that it is shown this history, whatever is wrong with its own.
func TestForkOfOtherOwners(t *testing.T) {
	c := cluster(t)
	seen := extend(t, c.Genesis, c.Steps)
	for name, signatures := range map[string][]string{"nobody": nil, "other owners": {"-----BEGIN SSH SIGNATURE-----"}} {
		server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_ = json.NewEncoder(w).Encode(api.History{From: 1, Entries: []api.HistoryEntry{{Policy: []byte("x"), Signatures: signatures}}, Head: wire.Digest{1}})
		}))
		defer server.Close()
		peer, err := history.NewPeer(history.Config{Address: server.URL, Clock: time.Now, LeafPolicy: func(*x509.Certificate) (policy.Approved, time.Time, error) { return seen.Policy(), time.Now(), nil }})
		if err != nil {
			t.Fatal(err)
		}
		defer peer.Close()
		if _, err = peer.Follow(t.Context(), seen, c.Genesis); wire.ReasonOf(err) != wire.Behind {
			t.Errorf("signed by %s: got %v, want reason %q", name, err, wire.Behind)
		}
	}
}

// TestOtherAuthority: nothing but the history is asked of an authority without
// the root that policy names.
func TestOtherAuthority(t *testing.T) {
	mine, theirs := cluster(t), cluster(t)
	peer := dial(t, theirs, extend(t, mine.Genesis, mine.Steps).Policy())
	_, err := peer.Authority.Policy(t.Context())
	testworld.Refused(t, err, wire.WrongRoot)
}

// TestChainPresented: an authority presents its leaf and its root.
func TestChainPresented(t *testing.T) {
	c := cluster(t)
	server := httptest.NewTLSServer(http.NotFoundHandler()) // presents one certificate
	defer server.Close()
	peer, err := history.NewPeer(history.Config{Address: server.URL, Clock: time.Now, LeafPolicy: func(*x509.Certificate) (policy.Approved, time.Time, error) {
		return extend(t, c.Genesis, c.Steps).Policy(), time.Now(), nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	_, err = peer.Authority.Policy(t.Context())
	testworld.Refused(t, err, wire.BadChain)
}

func TestExtendRefuses(t *testing.T) {
	c := cluster(t)
	h := extend(t, c.Genesis, c.Steps)
	tests := []struct {
		name    string
		from    history.History
		entries []api.HistoryEntry
		want    wire.Reason
	}{
		{"nothing", history.History{}, nil, wire.TooLarge},
		{"too many", history.History{}, make([]api.HistoryEntry, wire.MaxHistory+1), wire.TooLarge},
		{"the genesis twice", h, testworld.Entries(c.Steps), wire.WrongSequence},
		{"unsigned", h, []api.HistoryEntry{{Policy: c.Steps[0].Policy}}, wire.NoQuorum},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := tt.from.Extend(c.Genesis, tt.entries)
			testworld.Refused(t, err, tt.want)
		})
	}
}
