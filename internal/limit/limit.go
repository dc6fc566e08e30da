// Package limit enforces limits on the resources that the peers of a server can use: requests
// per second ([Buckets]), connections ([Connections]), concurrent requests and their bytes
// ([Shares], [Pool]), places in a queue ([Turns]), and the time of each read and write ([Pace]).
//
// Remote addresses share the resources, so that a flood from some addresses affects requests
// from these addresses and leaves resources for others. An address is not authenticated: all
// clients behind one address use the share of that address. A refusal has the reason "rate" if
// an address exceeds its share, and "overload" if the whole resource is in use. Both name the
// quota.
//
// Files, each using those before it: shares.go, buckets.go, connections.go, limit.go,
// pace.go, pool.go, refusals.go, turns.go.
package limit
