package risk

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// SaltSize is the size of a run's salt in bytes.
const SaltSize = 32

// A stream is the number of records in 8 bytes, then the records in strictly
// ascending order of their keys. A record is 32 bytes: key, amount, count, the
// numbers big-endian.
const (
	keySize    = 16
	recordSize = keySize + 8 + 8
	maxRecords = 10_000_000
)

type record [recordSize]byte

// key is the first 16 bytes of HMAC-SHA256 under the salt: the same customer has
// the same key at both holders in this run, and another one in the next.
func (r *record) key() []byte { return r[:keySize] }

func (r *record) customer() Customer {
	return Customer{
		Amount: int64(binary.BigEndian.Uint64(r[keySize:])),
		Count:  int64(binary.BigEndian.Uint64(r[keySize+8:])),
	}
}

// Records is the stream of a table's customers under a salt. Their order says
// nothing of the order in the table.
func (t Table) Records(salt [SaltSize]byte) []byte {
	records := make([]record, 0, len(t))
	mac := hmac.New(sha256.New, salt[:])
	var sum [sha256.Size]byte
	for customer, c := range t {
		mac.Reset()
		mac.Write([]byte(customer))
		var r record
		copy(r[:], mac.Sum(sum[:0])[:keySize])
		binary.BigEndian.PutUint64(r[keySize:], uint64(c.Amount))
		binary.BigEndian.PutUint64(r[keySize+8:], uint64(c.Count))
		records = append(records, r)
	}
	slices.SortFunc(records, func(a, b record) int { return bytes.Compare(a.key(), b.key()) })
	out := binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(records)*recordSize), uint64(len(records)))
	for _, r := range records {
		out = append(out, r[:]...)
	}
	return out
}

// stream reads records one by one.
type stream struct {
	side Side
	from *bufio.Reader
	left uint64
	at   record // the record that next gave last
}

func newStream(side Side, r io.Reader) (*stream, error) {
	s := &stream{side: side, from: bufio.NewReaderSize(r, 64<<10)}
	var count [8]byte
	if _, err := io.ReadFull(s.from, count[:]); err != nil {
		return nil, fmt.Errorf("records of the %s: reading their number: %w", side, err)
	}
	if s.left = binary.BigEndian.Uint64(count[:]); s.left > maxRecords {
		return nil, fmt.Errorf("records of the %s: got %d, want at most %d", side, s.left, maxRecords)
	}
	return s, nil
}

// next moves to the next record and reports whether there is one. After the last
// it demands that the stream ends.
func (s *stream) next() (bool, error) {
	if s.left == 0 {
		if _, err := s.from.ReadByte(); !errors.Is(err, io.EOF) {
			return false, fmt.Errorf("records of the %s: got more than their number, want the end (%v)", s.side, err)
		}
		return false, nil
	}
	before := s.at
	if _, err := io.ReadFull(s.from, s.at[:]); err != nil {
		return false, fmt.Errorf("records of the %s: %d are missing: %w", s.side, s.left, err)
	}
	s.left--
	if before != (record{}) && bytes.Compare(before.key(), s.at.key()) >= 0 {
		return false, fmt.Errorf("records of the %s: got a key that does not ascend, want each customer once", s.side)
	}
	if c := s.at.customer(); c.Amount < 0 || c.Amount > maxValue || c.Count < 0 || c.Count > maxCount {
		return false, fmt.Errorf("records of the %s: got values out of bounds, want at most %d and %d", s.side, int64(maxValue), maxCount)
	}
	return true, nil
}
