// Package relay distributes sealed sessions between the units of a cluster. It stores copies of
// them until they expire, for units that join late.
//
// The relay is untrusted and has no key: it cannot decrypt sealed bytes, and parses only their
// unauthenticated header (package envelope). It accepts an item from a unit only if the item is
// sealed for the unit's own identity or role, refuses a session that belongs to a different task
// or group, and limits the size of each cluster's copies. Copies are a cache and can be lost.
//
// [New] makes a [Relay] from [Copies], a [Journal] that saves them for the next start, and the
// [Successors] of each release. A [ForwardLog] records which units received the sessions of a
// predecessor.
//
// The files, each using those before it: copies.go, journal.go, successors.go,
// forwardlog.go, relay.go.
package relay

import "time"

// CopyLifetime is the maximum remaining lifetime of a session that the relay stores.
const CopyLifetime = 2 * time.Hour

// MaxClusters is the maximum number of clusters with copies.
const MaxClusters = 1_024

// BatchGap is the minimum time between two pushes. Items that arrive in that time share a batch.
const BatchGap = time.Millisecond

// forwardAgainAfter is the time without heartbeats after which a unit receives inherited
// sessions again.
const forwardAgainAfter = 30 * time.Second
