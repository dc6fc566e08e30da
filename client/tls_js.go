//go:build js

package client

// tlsVerifies reports whether a TLS handshake calls VerifyConnection.
const tlsVerifies = false
