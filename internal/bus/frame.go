package bus

import (
	"bufio"
	"encoding/binary"
	"io"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Kind is the kind of a frame.
type Kind byte

// The kinds of frames.
const (
	kindHeartbeat Kind = 1
	kindRange     Kind = 2
	Sealed        Kind = 3 // push: a session sealed under a ring key
	kindPull      Kind = 4
	kindCopy      Kind = 5
	Tombstone     Kind = 6 // end of a session, sealed under a ring key
	kindHint      Kind = 7
)

// Sizes in bytes of a frame's header and of the largest body.
const (
	frameHead = 2 + 1
	maxBody   = MaxFrame - frameHead
)

// appendFrame appends a frame to b. The body is the concatenation of parts, at most maxBody
// bytes.
func appendFrame(b []byte, k Kind, parts ...[]byte) []byte {
	size := 1
	for _, p := range parts {
		size += len(p)
	}
	b = append(binary.BigEndian.AppendUint16(b, uint16(size)), byte(k))
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

// frameSize returns the size of the frame that begins with the 2 bytes of head. Its error has
// the reason [wire.Malformed].
func frameSize(head []byte) (int, error) {
	size := int(binary.BigEndian.Uint16(head))
	if size < 1 || size > MaxFrame-2 {
		return 0, wire.Refuse(wire.Malformed, "frame: size in bytes", size, "1 to 8190")
	}
	return 2 + size, nil
}

// nextFrame parses the first frame of b and returns the rest of b. The body is a slice of b.
// Its error has the reason [wire.Malformed].
func nextFrame(b []byte) (k Kind, body, rest []byte, err error) {
	if len(b) < frameHead {
		return 0, nil, nil, wire.Refuse(wire.Malformed, "frame: size in bytes", len(b), "at least 3")
	}
	size, err := frameSize(b)
	if err != nil {
		return 0, nil, nil, err
	}
	if size > len(b) {
		return 0, nil, nil, wire.Refuse(wire.Malformed, "frame: bytes", len(b), size)
	}
	return Kind(b[2]), b[frameHead:size:size], b[size:], nil
}

// frames reads frames from a connection. It buffers at most one frame.
type frames struct {
	in       *bufio.Reader
	deadline func(time.Time) error // sets the read deadline
	pace     bucket                // bytes
	unread   int                   // size of the last returned frame, still in the buffer
}

func newFrames(in io.Reader, deadline func(time.Time) error) *frames {
	return &frames{in: bufio.NewReaderSize(in, MaxFrame), deadline: deadline, pace: newBucket(bytesEach, bytesBurst)}
}

// readFrame returns the next frame. The body is valid until the next call. The whole frame must
// arrive within frameTime. Invalid bytes are an error with the reason [wire.Malformed].
func (f *frames) readFrame() (Kind, []byte, error) {
	if wait := f.pace.reserve(float64(f.unread), time.Now()); wait > 0 {
		time.Sleep(wait) // at most the duration of one frame at the permitted rate
	}
	_, _ = f.in.Discard(f.unread) // no error: the bytes are buffered
	f.unread = 0
	if err := f.deadline(time.Now().Add(frameTime)); err != nil {
		return 0, nil, err
	}
	head, err := f.in.Peek(2)
	if err != nil {
		return 0, nil, err
	}
	size, err := frameSize(head)
	if err != nil {
		return 0, nil, err
	}
	whole, err := f.in.Peek(size)
	if err != nil {
		return 0, nil, err
	}
	f.unread = size
	return Kind(whole[2]), whole[frameHead:], nil
}
