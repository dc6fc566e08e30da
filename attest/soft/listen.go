//go:build linux

package soft

import (
	"fmt"
	"net"
	"os"

	"github.com/cohort-tee/cohort/internal/wire"
	"golang.org/x/sys/unix"
)

// maxSocketPath is the length in bytes of the longest socket path: the kernel
// takes 108, the last of them zero.
const maxSocketPath = 107

// network is SOCK_SEQPACKET: messages keep their borders and their descriptors.
const network = "unixpacket"

// Listen makes the daemon's socket, which only its own user may connect to. A
// socket that a dead daemon left is replaced; one that responds is refused with
// reason "unavailable".
func Listen(path string) (net.Listener, error) {
	if len(path) == 0 || len(path) > maxSocketPath {
		return nil, wire.Refuse(wire.BadRequest, "soft daemon: length of the socket's path", len(path), "1 to 107 bytes")
	}
	if err := removeDead(path); err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("making the daemon's socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if err := listenPrivately(fd, path); err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(true)
	return ln, nil
}

// listenPrivately narrows the socket's mode before a client can connect.
func listenPrivately(fd int, path string) error {
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	return unix.Listen(fd, unix.SOMAXCONN)
}

func removeDead(path string) error {
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != os.ModeSocket {
		return nil // what else stands there makes bind state so
	}
	if conn, err := net.Dial(network, path); err == nil {
		conn.Close()
		return wire.Refuse(wire.Unavailable, "soft daemon: socket "+path, "a path where a running daemon listens", "a path of its own")
	}
	return os.Remove(path)
}
