// Package relay distributes sealed sessions between the units of a cluster, and stores
// copies of them for units that join late, until they expire.
//
// It is untrusted and has no key: sealed bytes are opaque to it, and it reads only the
// unauthenticated header beside them (package envelope). It accepts an item of a unit
// only for the unit's own identity or role, refuses a session of another task or group, and
// bounds the copies of each cluster. Copies are a cache and can be lost.
//
// [New] makes a [Relay] over [Copies], a [Journal] that keeps them across restarts, and the
// [Successors] that say which releases continue which. A [ForwardLog] records which units
// received the sessions of a predecessor.
//
// The files, each using those before it: copies.go, journal.go, successors.go,
// forwardlog.go, relay.go.
package relay

import "time"

// CopyLifetime is the maximum lifetime of a session.
const CopyLifetime = 2 * time.Hour

// MaxClusters bounds the clusters with copies.
const MaxClusters = 1_024

// BatchGap is the time between two pushes; items that arrive in between share a batch.
const BatchGap = time.Millisecond

// forwardAgainAfter is how long a unit was away before it receives inherited sessions again.
const forwardAgainAfter = 30 * time.Second
