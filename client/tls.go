package client

import "errors"

// ErrNoTLS is the error of [FetchTrust], [New] and [Verify] on js/wasm. There net/http
// sends each request by the browser's fetch, which never calls VerifyConnection of
// crypto/tls, so that no check of a peer's identity would run.
var ErrNoTLS = errors.New("client: TLS on js/wasm checks no peer: there net/http sends requests by fetch, which never calls VerifyConnection")
