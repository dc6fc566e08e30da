//go:build unix

package localproxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

const (
	hasUnixSockets = true
	addressForms   = "HOST:PORT or unix:PATH"
)

// privateMask leaves a new socket to its owner: mode 0600.
const privateMask = 0o177

// dialTime limits the wait for a program that may listen on a socket.
const dialTime = 2 * time.Second

// listenUnix listens on a socket that has mode 0600 from its first moment.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	defer syscall.Umask(syscall.Umask(privateMask))
	return new(net.ListenConfig).Listen(ctx, "unix", path)
}

// removeStale removes a Unix socket at which no program listens.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return wire.Refuse(wire.BadRequest, "proxy: file at the path of the socket", info.Mode().Type(), "none, or a socket")
	}
	dial, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	c, err := new(net.Dialer).DialContext(dial, "unix", path)
	if err == nil {
		c.Close()
		return fmt.Errorf("listening on %s: %w", path, syscall.EADDRINUSE)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) { // for example: no permission
		return err
	}
	return os.Remove(path)
}
