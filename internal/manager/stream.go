package manager

import (
	"io"
	"net/http"
	"sync"

	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/wire"
)

// buffers are the pieces in which answers are passed on.
var buffers = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// answer passes a unit's answer on as it comes, each piece at once. A client
// that stops reading stops the unit, and is cut off in the end at the server's
// pace. When the unit breaks off, so does the client's connection: a short answer
// never looks whole.
func (x *exchange) answer(answer *http.Response) {
	answer.Header.Del(wire.FieldUnits) // the gateway's own word, and it is set
	copyFields(x.w.Header(), answer.Header)
	x.w.Header().Set("X-Accel-Buffering", "no") // nginx would hold it back
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

// lastOn says of a request that may not be read to its end, though its answer
// begins, that it is the last on its connection, where that is of HTTP/1.1: the
// client might send the next one while the connection is closed, and not know its
// outcome.
func (x *exchange) lastOn() {
	if x.r.ProtoMajor == 1 && x.early && !x.body.ended() {
		x.w.Header().Set("Connection", "close")
	}
}

// pass writes one piece, and flushes it when more will follow.
func (x *exchange) pass(piece []byte, more bool) bool {
	_, err := x.w.Write(piece)
	if err == nil && more {
		err = x.control.Flush()
	}
	return err == nil
}
