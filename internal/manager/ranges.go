package manager

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

// rangesFile holds, big-endian, the first number that is not reserved.
const rangesFile = "ranges"

// ranges allocates session numbers, none of them twice. The file is always
// ahead of what was given: numbers that were reserved and not given are skipped
// after a restart. Without the file it begins at a random point of 62 bits, so
// that a manager whose data was wiped meets the former numbers by accident
// only; and if it does, units refuse a second secret for a known id.
type ranges struct {
	path string

	mu       sync.Mutex
	next     uint64    // guarded by mu: given next
	reserved uint64    // guarded by mu: first number that is not reserved on disk
	moved    time.Time // guarded by mu: when another manager's claim made it begin elsewhere
}

func openRanges(dir string) (*ranges, error) {
	r := &ranges{path: filepath.Join(dir, rangesFile)}
	b, err := os.ReadFile(r.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if len(b) == 8 {
		r.next = binary.BigEndian.Uint64(b)
	}
	if r.next == 0 || r.next > math.MaxInt64-rangeReserve {
		r.next = randomPoint()
	}
	r.reserved = r.next
	return r, r.reserve() // a directory that cannot be written shows now
}

// randomPoint is not 0 and leaves 2^62 numbers of 63 bits above it.
func randomPoint() uint64 {
	var b [8]byte
	rand.Read(b[:])
	return binary.BigEndian.Uint64(b[:])>>2 | 1
}

// take gives the next range, reserved on disk before it leaves.
func (r *ranges) take() (bus.Range, error) {
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

// claim is what is reserved and not given yet.
func (r *ranges) claim() bus.Range {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bus.Range{First: r.next, Count: r.reserved - r.next}
}

// heard begins elsewhere when another manager claims the same numbers, by chance
// or because its directory is a copy. Claims are hints: whoever makes them up
// costs a write every few seconds.
func (r *ranges) heard(other bus.Range, now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	apart := other.First >= r.reserved || r.next >= other.First+other.Count
	if apart || now.Sub(r.moved) < moveEvery {
		return nil
	}
	r.moved = now
	r.next = randomPoint()
	r.reserved = r.next
	return r.reserve()
}

// reserve writes a higher mark; the caller holds mu, or is the only one.
func (r *ranges) reserve() error {
	if r.reserved > math.MaxInt64-rangeReserve { // units refuse numbers from 2^63 on
		r.next = randomPoint()
		r.reserved = r.next
	}
	mark := r.reserved + rangeReserve
	if err := replaceFile(r.path, binary.BigEndian.AppendUint64(nil, mark)); err != nil {
		return fmt.Errorf("writing %s: %w", r.path, err)
	}
	r.reserved = mark
	return nil
}

// replaceFile writes a file anew, whole or not at all, and durably.
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
