package client

import (
	"context"
	"net/http"

	"github.com/cohort-tee/cohort/internal/history"
)

// FetchTrustFor is [FetchTrust] from one authority whose response was made for a nonce that was
// chosen before. Only the nonce of the comparison differs.
func FetchTrustFor(ctx context.Context, config TrustConfig, nonce [32]byte) (*Trust, error) {
	f := &trustFetch{config: &config}
	var err error
	if f.peer, err = history.NewPeer(history.Config{Address: config.Authorities[0], LeafPolicy: f.currentPolicy, Clock: config.Clock}); err != nil {
		return nil, err
	}
	defer f.peer.Close()
	query, pinned, err := f.prepare(ctx)
	if err != nil {
		return nil, err
	}
	unverified, err := f.requestTrust(ctx, &query)
	if err != nil {
		return nil, err
	}
	query.Nonce = nonce
	return f.verifyTrust(query, unverified, pinned)
}

// CheckTarget is the check that [Channel] and [OneOff] make of a request before they send it.
func (t *Trust) CheckTarget(r *http.Request) error { return t.checkTarget(r) }
