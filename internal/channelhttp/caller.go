package channelhttp

import (
	"context"

	"github.com/cohort-tee/cohort/internal/channel"
)

// callerKey is the context key of a [channel.Caller].
type callerKey struct{}

// CallerOf returns the caller of a request. ok is false if the request did not arrive in a session.
func CallerOf(ctx context.Context) (c channel.Caller, ok bool) {
	c, ok = ctx.Value(callerKey{}).(channel.Caller)
	return c, ok
}
