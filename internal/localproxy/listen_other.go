//go:build !unix

package localproxy

import (
	"context"
	"errors"
	"net"
)

// The mode of a Unix socket protects nothing on this system.
const (
	hasUnixSockets = false
	addressForms   = "HOST:PORT"
)

func listenUnix(context.Context, string) (net.Listener, error) { return nil, errors.ErrUnsupported }
