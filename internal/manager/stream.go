package manager

import (
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// buffers are the pieces in which answers are passed on.
var buffers = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// answer passes a unit's answer on as it comes, each piece at once. A client
// that stops reading stops the unit, and is cut off in the end. When the unit
// breaks off, so does the client's connection: a short answer never looks whole.
func (x *exchange) answer(answer *http.Response) {
	answer.Header.Del(wire.FieldUnits) // the gateway's own word, and it is set
	copyFields(x.w.Header(), answer.Header)
	x.w.Header().Set("X-Accel-Buffering", "no") // nginx would hold it back
	x.w.WriteHeader(answer.StatusCode)
	buffer := buffers.Get().(*[chunkSize]byte)
	defer buffers.Put(buffer)
	defer func() { _ = x.control.SetWriteDeadline(time.Time{}) }() // the connection may go on
	for left := answer.ContentLength; ; {
		n, err := answer.Body.Read(buffer[:])
		left -= int64(n)
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

// pass writes one piece, and flushes it when more will follow.
func (x *exchange) pass(piece []byte, more bool) bool {
	_ = x.control.SetWriteDeadline(time.Now().Add(writeWait))
	_, err := x.w.Write(piece)
	if err == nil && more {
		err = x.control.Flush()
	}
	return err == nil
}
