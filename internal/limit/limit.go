// Package limit bounds what the peers of a server can take of it: how many requests a second
// ([Buckets]), connections ([Connections]), bytes and requests at once ([Shares], [Pool]),
// places in a queue ([Turns]), and time for each read and write ([Pace]).
//
// Everything is divided by remote address, so that a flood from some addresses costs those
// addresses their requests and leaves room for others. An address proves nothing: a client
// behind a shared address shares its part. Refusals are "rate", where one address has more
// than its part, and "overload", where there is no room; both name the quota.
package limit
