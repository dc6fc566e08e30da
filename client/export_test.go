package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/history"
	"github.com/cohort-tee/cohort/internal/trustresponse"
)

// FetchTrustFor is [FetchTrust] from one source whose response was made for a nonce that was
// chosen before, or for none if nonce is nil. Only the nonce of the comparison differs.
func FetchTrustFor(ctx context.Context, config TrustConfig, nonce []byte) (*Trust, error) {
	f := &trustFetch{config: &config}
	if len(config.Gateways) > 0 {
		at, err := url.Parse(config.Gateways[0])
		if err != nil {
			return nil, err
		}
		inner := newGateway(config.GatewayCA)
		defer inner.CloseIdleConnections()
		f.source = &relayed{gateway: newGatewayReader(at, inner)}
	} else {
		peer, err := history.NewPeer(history.Config{Address: config.Authorities[0], LeafPolicy: f.currentPolicy, Clock: config.Clock})
		if err != nil {
			return nil, err
		}
		defer peer.Close()
		f.source = connected{peer}
	}
	return f.trust(ctx, func(ctx context.Context, query api.TrustQuery, check *trustresponse.Check) (api.TrustResponse, error) {
		check.Nonce = nonce
		return f.source.requestTrust(ctx, query)
	})
}

// CheckTarget is the check that [Channel] and [OneOff] make of a request before they send it.
func (t *Trust) CheckTarget(r *http.Request) error { return t.checkTarget(r) }
