package systest

import (
	"bytes"
	"encoding/binary"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A minimal file system in user space for devices: the kernel's FUSE protocol 7.31 over
// /dev/fuse, one request at a time, without caching.

// fsNode is one file or folder.
type fsNode struct {
	dir   bool
	read  func() ([]byte, error)
	write func([]byte) error
	// ioctl returns the bytes that replace a command's argument; pid is the calling thread.
	ioctl func(pid uint32, command uint32, argument []byte) ([]byte, error)
	// mkdir returns the content of a folder that the caller creates in this one.
	mkdir func() map[string]*fsNode

	id       uint64
	children map[string]*fsNode
}

// userFS serves a tree.
type userFS struct {
	device int
	nodes  map[uint64]*fsNode
	opened map[uint64][]byte // content of each open file
	handle uint64
}

// serveFS serves a tree on a new FUSE connection, from its first mount to the end of its
// last. The returned file is used for mounting.
func serveFS(t *testing.T, tree map[string]*fsNode) *os.File {
	t.Helper()
	device, err := syscall.Open("/dev/fuse", syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("SKIPPED: no device is faked by the kernel's means: %v", err)
	}
	s := &userFS{device: device, nodes: map[uint64]*fsNode{}, opened: map[uint64][]byte{}}
	root := s.add(&fsNode{dir: true})
	for name, n := range tree {
		at := root
		for _, folder := range strings.Split(path.Dir(name), "/") {
			if at.children[folder] == nil {
				at.children[folder] = s.add(&fsNode{dir: true})
			}
			at = at.children[folder]
		}
		at.children[path.Base(name)] = s.add(n)
	}
	var over atomic.Bool
	var serving sync.WaitGroup
	serving.Go(func() { s.serve(&over) })
	file := os.NewFile(uintptr(device), "/dev/fuse")
	t.Cleanup(func() { over.Store(true); serving.Wait(); file.Close() })
	return file
}

func (s *userFS) add(n *fsNode) *fsNode {
	n.id = uint64(len(s.nodes) + 1)
	for s.nodes[n.id] != nil {
		n.id++
	}
	s.nodes[n.id] = n
	if n.dir && n.children == nil {
		n.children = map[string]*fsNode{}
	}
	for _, child := range n.children {
		s.add(child)
	}
	return n
}

// serve responds until the last mount is gone, or until over is set before the first mount.
// It does not use Go's poller, which gets an error from the file until it is mounted.
func (s *userFS) serve(over *atomic.Bool) {
	b := make([]byte, 1<<20)
	for {
		n, err := syscall.Read(s.device, b)
		if err == syscall.EPERM && !over.Load() { // not mounted yet
			time.Sleep(time.Millisecond)
			continue
		}
		if err != nil || n < 40 {
			return
		}
		out, err := s.answer(b[:n])
		if err == errNoAnswer {
			continue
		}
		errno, ok := err.(syscall.Errno)
		if err != nil && !ok {
			errno = syscall.EIO
		}
		if errno != 0 {
			out = nil
		}
		head := append(words(uint32(16+len(out)), uint32(-int32(errno))), b[8:16]...)
		_, _ = syscall.Write(s.device, append(head, out...))
	}
}

const errNoAnswer = syscall.Errno(1 << 20)

// answer processes one request: a header of 40 bytes, then the body.
func (s *userFS) answer(b []byte) ([]byte, error) {
	le := binary.LittleEndian
	n, pid, body := s.nodes[le.Uint64(b[16:])], le.Uint32(b[32:]), b[40:]
	if code := le.Uint32(b[4:]); code == 26 { // INIT
		out := words(7, 31, 0, 0, 0, 1<<16, 0, 0)
		return append(out, make([]byte, 64-len(out))...), nil
	} else if code == 2 || code == 42 || code == 36 { // FORGET, BATCH_FORGET, INTERRUPT
		return nil, errNoAnswer
	} else if n == nil {
		return nil, syscall.ENOENT
	} else if code == 15 || code == 16 || code == 39 || code == 14 || code == 27 || code == 18 {
		return s.file(n, code, pid, body)
	} else {
		return s.entry(n, code, body)
	}
}

// entry processes the operations on names.
func (s *userFS) entry(n *fsNode, code uint32, body []byte) ([]byte, error) {
	name, _, _ := strings.Cut(string(body), "\x00")
	switch code {
	case 1: // LOOKUP
		if n.children[name] == nil {
			return nil, syscall.ENOENT
		}
		return n.children[name].found(), nil
	case 3, 4: // GETATTR, SETATTR
		return append(words(0, 0, 0, 0), n.attributes()...), nil
	case 9: // MKDIR
		if n.mkdir == nil {
			return nil, syscall.EPERM
		}
		name, _, _ = strings.Cut(string(body[8:]), "\x00")
		n.children[name] = s.add(&fsNode{dir: true, children: n.mkdir()})
		return n.children[name].found(), nil
	case 11: // RMDIR
		delete(n.children, name)
		return nil, nil
	case 25, 29: // FLUSH, RELEASEDIR
		return nil, nil
	}
	return nil, syscall.ENOSYS
}

// file processes the operations on content. It reads a file's content once, at open.
func (s *userFS) file(n *fsNode, code, pid uint32, body []byte) ([]byte, error) {
	le := binary.LittleEndian
	switch code {
	case 14, 27: // OPEN, OPENDIR
		s.handle++
		if n.read != nil && le.Uint32(body)&syscall.O_ACCMODE == syscall.O_RDONLY {
			content, err := n.read()
			if err != nil {
				return nil, err
			}
			s.opened[s.handle] = content
		}
		return append(le.AppendUint64(nil, s.handle), words(1, 0)...), nil // direct I/O
	case 15: // READ
		content := s.opened[le.Uint64(body)]
		content = content[min(le.Uint64(body[8:]), uint64(len(content))):]
		return content[:min(int(le.Uint32(body[16:])), len(content))], nil
	case 16: // WRITE
		if n.write == nil {
			return nil, syscall.EPERM
		}
		size := le.Uint32(body[16:])
		return words(size, 0), n.write(bytes.Clone(body[40:][:size]))
	case 39: // IOCTL
		if n.ioctl == nil {
			return nil, syscall.ENOTTY
		}
		out, err := n.ioctl(pid, le.Uint32(body[12:]), bytes.Clone(body[32:][:le.Uint32(body[24:])]))
		return append(words(0, 0, 0, 0), out...), err
	}
	delete(s.opened, le.Uint64(body)) // RELEASE
	return nil, nil
}

func words(values ...uint32) []byte {
	var b []byte
	for _, v := range values {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

// found is the response to a look-up, with a validity of zero.
func (n *fsNode) found() []byte {
	return append(append(binary.LittleEndian.AppendUint64(nil, n.id), make([]byte, 32)...), n.attributes()...)
}

func (n *fsNode) attributes() []byte {
	mode := uint32(syscall.S_IFREG | 0o600)
	if n.dir {
		mode = syscall.S_IFDIR | 0o700
	}
	b := append(binary.LittleEndian.AppendUint64(nil, n.id), make([]byte, 52)...)
	return append(b, words(mode, 1, 0, 0, 0, 4096, 0)...)
}
