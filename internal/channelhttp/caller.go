package channelhttp

import (
	"context"

	"github.com/cohort-tee/cohort/internal/channel"
)

// callerKey is the context key of a [channel.Caller].
type callerKey struct{}

// CallerOf gives the caller of a request; ok is false when it did not come
// through the channel.
func CallerOf(ctx context.Context) (c channel.Caller, ok bool) {
	c, ok = ctx.Value(callerKey{}).(channel.Caller)
	return c, ok
}
