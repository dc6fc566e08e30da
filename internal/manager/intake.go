package manager

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/wire"
)

// A request counts as in progress only after the gateway has read its start. Until then its
// bytes are charged to a quota and each read has a deadline, so that a stalled request uses
// resources for a short time only.

// Quotas of the gateway. Each name is the rule of a refusal and the label of a metric.
const (
	quotaReading   = "gateway: bytes of requests that are read"
	quotaInFlight  = "gateway: requests under way"
	quotaPerUnit   = "gateway: requests under way at one unit"
	quotaConnect   = "gateway: requests that wait for a connection to one unit"
	quotaPages     = "gateway: pages under way"
	quotaPolls     = "gateway: polls of the policy history"
	quotaExpensive = "gateway: open and one-off requests a second"
	quotaUnknown   = "gateway: requests a second in sessions it does not know"
)

// readingCost returns the number of bytes charged for a request while it is read: the maximum
// that may be buffered of it, but at least minCost.
func readingCost(r *http.Request) int {
	most := 0
	switch {
	case r.URL.Path == wire.PathSession:
		most = maxOpen
	case r.URL.Path == wire.PathOneOff && r.Method == http.MethodPost && inOnePiece(r):
		most = maxOneOff
	}
	if declared := r.ContentLength; declared >= 0 && declared < int64(most) {
		most = int(declared)
	}
	return max(most, minCost)
}

// inOnePiece reports whether a one-off request is a single message of bounded size.
func inOnePiece(r *http.Request) bool { return r.Header.Get("Content-Type") == wire.TypeOneOff }

// readWhole reads and buffers the whole body, of at most limit bytes.
func (x *forwardedRequest) readWhole(limit int) error {
	_ = x.control.SetReadDeadline(time.Now().Add(wholeWait)) // the server may have none
	b, err := io.ReadAll(http.MaxBytesReader(x.w, x.r.Body, int64(limit)))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return wire.Refuse(wire.TooLarge, "request: size in bytes", fmt.Sprint("more than ", limit), limit)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return wire.Refuse(wire.BadRequest, "request: body", "an incomplete body", "a complete body within "+wholeWait.String())
	case err != nil:
		return wire.Refuse(wire.BadRequest, "request: body", err, "a complete body")
	}
	_ = x.control.SetReadDeadline(time.Time{})
	x.body.setBuffered(b)
	x.size = int64(len(b))
	return nil
}

// readPrefix reads the first size bytes of a body. They remain part of the forwarded body.
func (x *forwardedRequest) readPrefix(size int) ([]byte, error) {
	first := make([]byte, size)
	_ = x.control.SetReadDeadline(time.Now().Add(headerWait)) // the server may have none
	if _, err := io.ReadFull(x.r.Body, first); err != nil {
		return nil, wire.Refuse(wire.BadRequest, "request: header", err, "the first bytes within "+headerWait.String())
	}
	_ = x.control.SetReadDeadline(time.Time{})
	x.body.prefix, x.body.consumed = first, len(first)
	return first, nil
}

// readWithQuota calls f to read the start of a request. It charges the request's bytes until
// done is called, since they may be buffered until then.
func (g *gateway) readWithQuota(x *forwardedRequest, f func(*forwardedRequest) error) (done func(), err error) {
	n := readingCost(x.r)
	if err := g.reading.Acquire(x.from, n); err != nil {
		return func() {}, err
	}
	err = f(x)
	if x.r.URL.Path == wire.PathRequest { // its body streams from here on, and few bytes are buffered
		g.reading.Release(x.from, n)
		return func() {}, err
	}
	return func() { g.reading.Release(x.from, n) }, err
}

// withPlace calls f while it counts the request against s.
func withPlace(s *limit.Shares, x *forwardedRequest, f func() error) error {
	if err := s.Acquire(x.from, 1); err != nil {
		return err
	}
	defer s.Release(x.from, 1)
	return f()
}

// setBuffered makes whole the body, which can then be sent any number of times.
func (b *requestBody) setBuffered(whole []byte) {
	b.source, b.prefix, b.consumed, b.readErr = bytes.NewReader(nil), whole, len(whole), io.EOF
}
