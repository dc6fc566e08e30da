package sshkey

import "golang.org/x/sys/unix"

// Requests of ioctl that read and set the modes of a terminal.
const (
	getTermios = unix.TIOCGETA
	setTermios = unix.TIOCSETA
)
