// Package ranges allocates the session numbers of a cluster, each at most once. Units draw the
// numbers of their sessions from the range that their manager allocated to them.
//
// It trusts its directory: a copy of it allocates the same numbers, until the managers of both
// see the claim of the other. It refuses to allocate a number before the number is reserved on
// disk.
package ranges

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
)

// Sizes, counted in numbers, and times.
const (
	rangeSize    = 1 << 16         // in one allocation to a unit
	reserveSize  = 1 << 32         // reserved by one write to disk
	moveInterval = 3 * time.Second // minimum between two moves to different numbers
)

// rangesFile contains the first number that is not reserved: 8 bytes, big-endian.
const rangesFile = "ranges"

// Ranges allocates session numbers. The number in the file is greater than all allocated
// numbers: after a restart, reserved numbers that were not allocated are skipped.
// Without the file, Ranges starts at a random number of 62 bits, so that a manager whose data
// was deleted is unlikely to repeat numbers. If it does, units refuse a second secret for a
// known session id. It is safe for concurrent use.
type Ranges struct {
	path string

	mu       sync.Mutex
	next     uint64    // guarded by mu: first number of the next range
	reserved uint64    // guarded by mu: first number not reserved on disk
	moved    time.Time // guarded by mu: last move away from numbers of another manager
}

// OpenDir reads the directory of a manager. It fails if the directory is not writable.
func OpenDir(dir string) (*Ranges, error) {
	r := &Ranges{path: filepath.Join(dir, rangesFile)}
	b, err := os.ReadFile(r.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if len(b) == 8 {
		r.next = binary.BigEndian.Uint64(b)
	}
	if r.next == 0 || r.next > math.MaxInt64-reserveSize {
		r.next = randomPoint()
	}
	r.reserved = r.next
	return r, r.reserve() // fails now if the directory is not writable
}

// randomPoint returns a random number, not 0 and below 2^62, so that at least 2^62 numbers of 63
// bits are above it.
func randomPoint() uint64 {
	var b [8]byte
	rand.Read(b[:])
	return binary.BigEndian.Uint64(b[:])>>2 | 1
}

// Allocate returns the next range of rangeSize numbers. The numbers are reserved on disk before
// Allocate returns.
func (r *Ranges) Allocate() (bus.Range, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next+rangeSize > r.reserved {
		if err := r.reserve(); err != nil {
			return bus.Range{}, err
		}
	}
	given := bus.Range{First: r.next, Count: rangeSize}
	r.next += rangeSize
	return given, nil
}

// Unallocated returns the numbers that are reserved and not yet allocated.
func (r *Ranges) Unallocated() bus.Range {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bus.Range{First: r.next, Count: r.reserved - r.next}
}

// AvoidClaim moves to different numbers if another manager has reserved the same ones, by chance
// or because its directory is a copy. Claims of other managers are hints: an invented claim
// costs at most one disk write per moveInterval.
func (r *Ranges) AvoidClaim(other bus.Range, now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	apart := other.First >= r.reserved || r.next >= other.First+other.Count
	if apart || now.Sub(r.moved) < moveInterval {
		return nil
	}
	r.moved = now
	r.next = randomPoint()
	r.reserved = r.next
	return r.reserve()
}

// reserve reserves reserveSize more numbers on disk. The caller holds mu, or is the only user.
func (r *Ranges) reserve() error {
	if r.reserved > math.MaxInt64-reserveSize { // units refuse numbers from 2^63 on
		r.next = randomPoint()
		r.reserved = r.next
	}
	mark := r.reserved + reserveSize
	if err := replaceFile(r.path, binary.BigEndian.AppendUint64(nil, mark)); err != nil {
		return fmt.Errorf("writing %s: %w", r.path, err)
	}
	r.reserved = mark
	return nil
}

// replaceFile replaces a file atomically, and syncs the file and its directory to disk.
func replaceFile(path string, content []byte) error {
	temporary := path + ".new"
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
