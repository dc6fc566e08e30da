package channel

import (
	"context"
	"encoding/hex"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Caller is who sent a request through the channel, as the app may know it.
type Caller struct {
	Unit    wire.UnitID // that serves the request
	session wire.SessionID
}

// Tag is the same for all requests of one session, at every unit, and differs
// between sessions. It says nothing else, and anybody on the way can compute it.
func (c Caller) Tag() string {
	digest := wire.Sum(c.session[:])
	return hex.EncodeToString(digest[:16])
}

// callerKey is the context key of a [Caller].
type callerKey struct{}

// CallerOf gives the caller of a request; ok is false when it did not come
// through the channel.
func CallerOf(ctx context.Context) (c Caller, ok bool) {
	c, ok = ctx.Value(callerKey{}).(Caller)
	return c, ok
}
