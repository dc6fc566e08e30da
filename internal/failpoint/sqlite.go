package failpoint

import (
	"unsafe"

	"modernc.org/libc"
	sqlite3 "modernc.org/sqlite/lib"
)

// SQLite puts a point before each write, sync and truncation of a file by SQLite, for
// databases opened from then on. A process that is killed at a write has written half of
// it.
func (p *Points) SQLite() {
	tls := libc.NewTLS()
	if rc := sqlite3.Xsqlite3_initialize(tls); rc != sqlite3.SQLITE_OK {
		panic(rc)
	}
	vfs := objectAt[sqlite3.Tsqlite3_vfs](sqlite3.Xsqlite3_vfs_find(tls, 0))
	open := function[func(*libc.TLS, uintptr, uintptr, uintptr, int32, uintptr) int32](vfs.FxOpen)
	vfs.FxOpen = p.pointer(func(tls *libc.TLS, vfs, name, file uintptr, flags int32, out uintptr) int32 {
		rc := open(tls, vfs, name, file, flags, out)
		if f := objectAt[sqlite3.Tsqlite3_file](file); rc == sqlite3.SQLITE_OK && f.FpMethods != 0 {
			methods := p.methods(objectAt[sqlite3.Tsqlite3_io_methods](f.FpMethods), fileKind(flags))
			// Allocated in SQLite's memory: the race detector forbids a pointer from it
			// into Go's.
			f.FpMethods = libc.Xmalloc(tls, libc.Tsize_t(unsafe.Sizeof(methods)))
			*objectAt[sqlite3.Tsqlite3_io_methods](f.FpMethods) = methods
		}
		return rc
	})
}

func fileKind(flags int32) string {
	switch {
	case flags&sqlite3.SQLITE_OPEN_MAIN_DB != 0:
		return "database"
	case flags&sqlite3.SQLITE_OPEN_WAL != 0:
		return "wal"
	}
	return "other"
}

// methods returns the methods of an open file, with points.
func (p *Points) methods(of *sqlite3.Tsqlite3_io_methods, kind string) sqlite3.Tsqlite3_io_methods {
	write := function[func(*libc.TLS, uintptr, uintptr, int32, int64) int32](of.FxWrite)
	sync := function[func(*libc.TLS, uintptr, int32) int32](of.FxSync)
	truncate := function[func(*libc.TLS, uintptr, int64) int32](of.FxTruncate)
	wrapped := *of
	wrapped.FxWrite = p.pointer(func(tls *libc.TLS, file, from uintptr, size int32, offset int64) int32 {
		p.passAfter(kind+"-write", func() { write(tls, file, from, size/2, offset) })
		return write(tls, file, from, size, offset)
	})
	wrapped.FxSync = p.pointer(func(tls *libc.TLS, file uintptr, flags int32) int32 {
		p.PassPoint(kind + "-sync")
		return sync(tls, file, flags)
	})
	wrapped.FxTruncate = p.pointer(func(tls *libc.TLS, file uintptr, size int64) int32 {
		p.PassPoint(kind + "-truncate")
		return truncate(tls, file, size)
	})
	return wrapped
}

// objectAt returns the object at an address in SQLite's memory.
func objectAt[T any](address uintptr) *T { return *(**T)(unsafe.Pointer(&address)) }

// function returns the Go function behind a function pointer of SQLite.
func function[F any](pointer uintptr) F {
	held := struct{ uintptr }{pointer}
	return *(*F)(unsafe.Pointer(&held))
}

// pointer returns a function in SQLite's form, and keeps it alive: only SQLite points to it
// then.
func (p *Points) pointer(f any) uintptr {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keep = append(p.keep, f)
	return (*[2]uintptr)(unsafe.Pointer(&f))[1]
}
