// Package limit bounds the resources that the peers of a server can use: requests a second
// ([Buckets]), connections ([Connections]), bytes and requests at once ([Shares], [Pool]),
// places in a queue ([Turns]), and the time of each read and write ([Pace]).
//
// Resources are divided between remote addresses, so that a flood from some addresses affects
// the requests of those addresses and leaves room for others. An address is not authenticated:
// clients behind one address share its part. A refusal is "rate" if one address exceeds its
// part, and "overload" if there is no room; both name the quota.
//
// Files, each using those before it: shares.go, buckets.go, connections.go, limit.go,
// pace.go, pool.go, refusals.go, turns.go.
package limit
