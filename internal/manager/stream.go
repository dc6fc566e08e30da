package manager

import (
	"io"
	"net/http"
	"sync"

	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/wire"
)

// buffers are reused to copy responses.
var buffers = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// copyResponse copies a unit's response to the client as it arrives and flushes each piece. A
// client that stops reading blocks the unit until the server's write deadline disconnects the
// client. If the unit's connection breaks, copyResponse aborts the client's connection, so that
// a truncated response never looks complete.
func (x *forwardedRequest) copyResponse(response *http.Response) {
	response.Header.Del(wire.FieldUnits) // only the gateway sets it
	copyFields(x.w.Header(), response.Header)
	x.w.Header().Set("X-Accel-Buffering", "no") // stops nginx from buffering
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
			panic(http.ErrAbortHandler) // the client has disconnected
		}
		if err == io.EOF {
			return
		}
		if err != nil {
			panic(http.ErrAbortHandler)
		}
	}
}

// closeUnreadConnection asks the client to close an HTTP/1.1 connection if the response starts
// before the request was read to its end. Otherwise the client might send the next request while
// the server closes the connection, and would not learn whether that request was processed.
func (x *forwardedRequest) closeUnreadConnection() {
	if x.r.ProtoMajor == 1 && x.fullDuplex && !x.body.atEOF() {
		x.w.Header().Set("Connection", "close")
	}
}

// writePiece writes one piece, flushes it if more follow, and reports whether that worked.
func (x *forwardedRequest) writePiece(piece []byte, more bool) bool {
	_, err := x.w.Write(piece)
	if err == nil && more {
		err = x.control.Flush()
	}
	return err == nil
}
