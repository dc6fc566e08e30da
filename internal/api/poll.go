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

// PollAgain is the wait before a caller polls again after a server had no place for its poll.
// The refusal contains it as Retry-After.
const PollAgain = 10 * time.Second

// Poll is a request that waits for the next step of the history.
type Poll struct {
	Head wire.Digest // newest head that the caller has
	Wait time.Duration
}

// PollOf parses the query of a history request. ok is false if it names an index, as requests
// that page through the history do without waiting. A head is 64 hexadecimal digits, longer
// than any index. It refuses any other form, and a wait of more than [MaxPoll], with
// "request".
func PollOf(q url.Values) (p Poll, ok bool, err error) {
	from := q.Get("from")
	if len(from) != 2*len(p.Head) {
		if q.Has("wait") {
			return Poll{}, false, wire.Refuse(wire.BadRequest, "history: from of a request that waits", from, "a policy head, 64 hexadecimal digits")
		}
		return Poll{}, false, nil
	}
	if p.Head, err = wire.ParseDigest(from); err != nil {
		return Poll{}, false, err
	}
	if q.Has("wait") {
		p.Wait, err = time.ParseDuration(q.Get("wait"))
		if err != nil || p.Wait < 0 || p.Wait > MaxPoll {
			return Poll{}, false, wire.Refuse(wire.BadRequest, "history: wait", q.Get("wait"), "0s to "+MaxPoll.String())
		}
	}
	return p, true, nil
}

// RetryPoll sets Retry-After to [PollAgain] in a refusal.
func RetryPoll(h http.Header) {
	h.Set("Retry-After", strconv.Itoa(int(PollAgain/time.Second)))
}

// Gateway reads the policy history from a manager's gateway. It verifies nothing it reads. It
// is safe for concurrent use.
type Gateway struct{ reader Authority }

// NewGateway makes a reader of the gateway at a URL. The caller owns the client.
func NewGateway(at *url.URL, client *http.Client) *Gateway {
	return &Gateway{Authority{base: strings.TrimSuffix(at.Scheme+"://"+at.Host+at.EscapedPath(), "/"), http: client}}
}

// Poll is [Authority.Poll] at a gateway.
func (g *Gateway) Poll(ctx context.Context, head wire.Digest, wait time.Duration) (History, error) {
	return get[History](ctx, &g.reader, wire.PathHistory+"?"+pollQuery(head, wait))
}

// PollFull reports whether a poll was refused because the server had no place for it, so that
// another server may have one.
func PollFull(err error) bool {
	return errors.Is(err, wire.Overload) || errors.Is(err, wire.TooMany)
}
