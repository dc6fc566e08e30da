package relay

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
)

// journalFile contains the stored copies as records, oldest first:
//
//	cluster 16 ‖ item ‖ CRC-32C 4 (of both)
//
// The file is a cache. It is not synced to disk, is read up to the first incomplete or damaged
// record, and is rewritten when most of it is out of date.
const journalFile = "sessions"

// journalSlack is the number of bytes that the file may exceed twice the size of the stored
// copies before it is rewritten.
const journalSlack = 1 << 20

// maxRecord is an upper bound of the size of a record in bytes: a cluster, an item's header and
// sealed bytes, and a checksum.
const maxRecord = 16 + 64 + bus.MaxSealed + 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Journal saves copies to a file, so that they survive restarts. One goroutine owns it.
type Journal struct {
	path string
	file *os.File
	out  *bufio.Writer
	size int
}

// OpenJournal loads the copies that a previous process saved into c, and rewrites the file.
func OpenJournal(dir string, c *Copies, now time.Time) (*Journal, error) {
	j := &Journal{path: filepath.Join(dir, journalFile)}
	if err := j.readRecords(c, now); err != nil {
		return nil, err
	}
	return j, j.compact(c)
}

func (j *Journal) readRecords(c *Copies, now time.Time) error {
	f, err := os.Open(j.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	in := bufio.NewReaderSize(f, 16*maxRecord)
	for {
		b, err := in.Peek(maxRecord)
		if err != nil && err != io.EOF {
			return err
		}
		cluster, item, rest, ok := nextRecord(b)
		if !ok {
			return nil
		}
		c.Store(cluster, item, now)
		_, _ = in.Discard(len(b) - len(rest)) // no error: the bytes are buffered
	}
}

// nextRecord parses the first record of b. ok is false if it is incomplete or damaged.
func nextRecord(b []byte) (cluster bus.Cluster, item bus.Item, rest []byte, ok bool) {
	if len(b) < len(cluster) {
		return cluster, item, nil, false
	}
	cluster = bus.Cluster(b)
	item, rest, err := bus.NextItem(b[len(cluster):])
	if err != nil || len(rest) < 4 {
		return cluster, item, nil, false
	}
	body := b[:len(b)-len(rest)]
	return cluster, item, rest[4:], crc32.Checksum(body, castagnoli) == binary.BigEndian.Uint32(rest)
}

func appendRecord(b []byte, cluster bus.Cluster, item bus.Item) []byte {
	begin := len(b)
	b = item.Append(append(b, cluster[:]...))
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[begin:], castagnoli))
}

// append writes an item to the buffer.
func (j *Journal) append(cluster bus.Cluster, item bus.Item) error {
	n, err := j.out.Write(appendRecord(j.out.AvailableBuffer(), cluster, item))
	j.size += n
	return err
}

// flush writes the buffer to the file, or rewrites the file if most of it is out of date.
func (j *Journal) flush(c *Copies) error {
	if _, live := c.Totals(); j.size > 2*live+journalSlack {
		return j.compact(c)
	}
	return j.out.Flush()
}

// compact replaces the file with a new one that contains the current copies.
func (j *Journal) compact(c *Copies) error {
	f, err := os.OpenFile(j.path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	fresh := &Journal{path: j.path, file: f, out: bufio.NewWriterSize(f, bus.MaxBatch)}
	err = errors.Join(c.forEach(fresh.append), fresh.out.Flush())
	if err == nil {
		err = os.Rename(f.Name(), j.path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("rewriting the copies: %w", err), f.Close())
	}
	j.Close()
	*j = *fresh
	return nil
}

// Close writes the buffer and closes the file. It ignores errors: they lose no more copies than
// a crash would.
func (j *Journal) Close() {
	if j.file != nil {
		_ = j.out.Flush()
		_ = j.file.Close()
	}
}
