package channel

import (
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
