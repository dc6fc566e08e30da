package api

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// PollRetryAfter is the wait before a caller polls again after a server had no place for its poll.
// The refusal contains it as Retry-After.
const PollRetryAfter = 10 * time.Second

// PollQuery is a request that waits for the next step of the history.
type PollQuery struct {
	Head wire.Digest // newest head that the caller has
	Wait time.Duration
}

// ParsePollQuery parses the query of a history request. ok is false if it names an index, as requests
// that page through the history do without waiting. A head is 64 hexadecimal digits, longer
// than any index. It refuses any other form, and a wait of more than [MaxPoll], with
// "request".
func ParsePollQuery(q url.Values) (p PollQuery, ok bool, err error) {
	from := q.Get("from")
	if len(from) != 2*len(p.Head) {
		if q.Has("wait") {
			return PollQuery{}, false, wire.Refuse(wire.BadRequest, "history: from of a request that waits", from, "a policy head, 64 hexadecimal digits")
		}
		return PollQuery{}, false, nil
	}
	if p.Head, err = wire.ParseDigest(from); err != nil {
		return PollQuery{}, false, err
	}
	if q.Has("wait") {
		p.Wait, err = time.ParseDuration(q.Get("wait"))
		if err != nil || p.Wait < 0 || p.Wait > MaxPoll {
			return PollQuery{}, false, wire.Refuse(wire.BadRequest, "history: wait", q.Get("wait"), "0s to "+MaxPoll.String())
		}
	}
	return p, true, nil
}

// SetPollRetry sets Retry-After to [PollRetryAfter] in a refusal.
func SetPollRetry(h http.Header) {
	h.Set("Retry-After", strconv.Itoa(int(PollRetryAfter/time.Second)))
}

// Gateway reads the policy history and trust from a manager's gateway. It verifies nothing it
// reads. It is safe for concurrent use.
type Gateway struct{ reader Authority }

// NewGateway makes a reader of the gateway at a URL. The caller owns the client.
func NewGateway(at *url.URL, client *http.Client) *Gateway {
	return &Gateway{Authority{base: strings.TrimSuffix(at.Scheme+"://"+at.Host+at.EscapedPath(), "/"), http: client}}
}

// PollHistory is [Authority.PollHistory] at a gateway.
func (g *Gateway) PollHistory(ctx context.Context, head wire.Digest, wait time.Duration) (History, error) {
	return getJSON[History](ctx, &g.reader, wire.PathHistory+"?"+pollQuery(head, wait))
}

// History is [Authority.History] at a gateway.
func (g *Gateway) History(ctx context.Context, from int) (History, error) {
	return getJSON[History](ctx, &g.reader, wire.PathHistory+"?from="+strconv.Itoa(from))
}

// Trust is [Authority.Trust] at a gateway, which may return a copy that it kept.
func (g *Gateway) Trust(ctx context.Context, q TrustQuery) (TrustResponse, error) {
	return getJSON[TrustResponse](ctx, &g.reader, wire.PathTrust+"?"+q.encode())
}

// IsPollRefused reports whether a poll was refused because the server had no place for it, so that
// another server may have one.
func IsPollRefused(err error) bool {
	return errors.Is(err, wire.Overload) || errors.Is(err, wire.TooMany)
}
