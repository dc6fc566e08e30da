package channel

import "context"

// callerKey is the context key of a [Caller].
type callerKey struct{}

// CallerOf gives the caller of a request; ok is false when it did not come
// through the channel.
func CallerOf(ctx context.Context) (c Caller, ok bool) {
	c, ok = ctx.Value(callerKey{}).(Caller)
	return c, ok
}
