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

// copyResponse copies a unit's response to the client as it arrives and flushes each piece. A client
// that stops reading blocks the unit, and is disconnected by the server's write limit. If the
// unit's connection breaks, copyResponse aborts the client's connection, so that a truncated
// response never looks complete.
func (x *forwardedRequest) copyResponse(response *http.Response) {
	response.Header.Del(wire.FieldUnits) // set by the gateway alone
	copyFields(x.w.Header(), response.Header)
	x.w.Header().Set("X-Accel-Buffering", "no") // keep nginx from buffering
	x.closeUnreadConnection()
	x.w.WriteHeader(response.StatusCode)
	buffer := buffers.Get().(*[chunkSize]byte)
	defer buffers.Put(buffer)
	for left := response.ContentLength; ; {
		n, err := response.Body.Read(buffer[:])
		left -= int64(n)
		if opened := x.openedSessions; n > 0 && opened != nil {
			x.openedSessions = nil
			if id, ok := envelope.OpenedSession(buffer[:n]); ok && response.StatusCode == http.StatusOK {
				opened.insert(id)
			}
		}
		if n > 0 && !x.writePiece(buffer[:n], left != 0) {
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

// closeUnreadConnection asks the client to close an HTTP/1.1 connection whose request may not be read to its
// end although the response has begun. Otherwise the client might send the next request while
// the server closes the connection, and not know its outcome.
func (x *forwardedRequest) closeUnreadConnection() {
	if x.r.ProtoMajor == 1 && x.fullDuplex && !x.body.atEOF() {
		x.w.Header().Set("Connection", "close")
	}
}

// writePiece writes one piece, and flushes it if more follow.
func (x *forwardedRequest) writePiece(piece []byte, more bool) bool {
	_, err := x.w.Write(piece)
	if err == nil && more {
		err = x.control.Flush()
	}
	return err == nil
}
