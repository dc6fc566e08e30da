//go:build linux || darwin

package sshkey

import (
	"bytes"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// readSilently reads a line from a terminal that does not show it.
func readSilently(tty *os.File) ([]byte, error) {
	fd := int(tty.Fd())
	before, err := unix.IoctlGetTermios(fd, getTermios)
	if err != nil {
		return nil, err
	}
	silent := *before
	silent.Lflag &^= unix.ECHO
	silent.Lflag |= unix.ICANON
	if err := unix.IoctlSetTermios(fd, setTermios, &silent); err != nil {
		return nil, err
	}
	defer func() {
		_ = unix.IoctlSetTermios(fd, setTermios, before)
		fmt.Fprintln(tty)
	}()
	line := make([]byte, 1024) // the kernel hands over one line
	n, err := tty.Read(line)
	return bytes.TrimRight(line[:n], "\r\n"), err
}
