package manager

import (
	"io"
	"net/http"
	"sync"

	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/wire"
)

// buffers are the buffers in which responses are copied.
var buffers = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// answer copies a unit's response to the client as it arrives and flushes each piece. A client
// that stops reading blocks the unit, and is disconnected by the server's write limit. If the
// unit's connection breaks, answer aborts the client's connection, so that a truncated
// response never looks complete.
func (x *exchange) answer(answer *http.Response) {
	answer.Header.Del(wire.FieldUnits) // set by the gateway alone
	copyFields(x.w.Header(), answer.Header)
	x.w.Header().Set("X-Accel-Buffering", "no") // keep nginx from buffering
	x.lastOn()
	x.w.WriteHeader(answer.StatusCode)
	buffer := buffers.Get().(*[chunkSize]byte)
	defer buffers.Put(buffer)
	for left := answer.ContentLength; ; {
		n, err := answer.Body.Read(buffer[:])
		left -= int64(n)
		if opened := x.opened; n > 0 && opened != nil {
			x.opened = nil
			if id, ok := envelope.OpenedSession(buffer[:n]); ok && answer.StatusCode == http.StatusOK {
				opened.add(id)
			}
		}
		if n > 0 && !x.pass(buffer[:n], left != 0) {
			panic(http.ErrAbortHandler) // the client is gone
		}
		if err == io.EOF {
			return
		}
		if err != nil {
			panic(http.ErrAbortHandler)
		}
	}
}

// lastOn asks the client to close an HTTP/1.1 connection whose request may not be read to its
// end although the response has begun. Otherwise the client might send the next request while
// the server closes the connection, and not know its outcome.
func (x *exchange) lastOn() {
	if x.r.ProtoMajor == 1 && x.early && !x.body.ended() {
		x.w.Header().Set("Connection", "close")
	}
}

// pass writes one piece, and flushes it if more follow.
func (x *exchange) pass(piece []byte, more bool) bool {
	_, err := x.w.Write(piece)
	if err == nil && more {
		err = x.control.Flush()
	}
	return err == nil
}
