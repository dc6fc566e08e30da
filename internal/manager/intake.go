package manager

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/wire"
)

// A request takes one of the places in the gateway only when it can be worked on.
// What is read of it before that counts in bytes, and each of these reads has a
// deadline of its own, so that a request that stalls holds nothing for long.

// quotas are what the gateway refuses requests by. They are the rules of the
// refusals, and the labels of a metric.
const (
	quotaReading  = "gateway: bytes of requests that are read"
	quotaInFlight = "gateway: requests under way"
	quotaPerUnit  = "gateway: requests under way at one unit"
	quotaConnect  = "gateway: requests that wait for a connection to one unit"
	quotaPages    = "gateway: pages under way"
	quotaPolls    = "gateway: polls of the policy history"
	quotaDear     = "gateway: open and one-off requests a second"
	quotaUnknown  = "gateway: requests a second in sessions it does not know"
)

// cost is how many bytes a request counts for while it is read: as many as may be
// kept of it, and no fewer than it costs to have one at all.
func cost(r *http.Request) int {
	most := 0
	switch {
	case r.URL.Path == wire.PathSession:
		most = maxOpen
	case r.URL.Path == wire.PathOneOff && r.Method == http.MethodPost && inOnePiece(r):
		most = maxOneOff
	}
	if said := r.ContentLength; said >= 0 && said < int64(most) {
		most = int(said)
	}
	return max(most, minCost)
}

// inOnePiece reports whether a one-off request comes in one piece, of bounded size.
func inOnePiece(r *http.Request) bool { return r.Header.Get("Content-Type") == wire.TypeOneOff }

// whole reads the whole body of a request, of at most limit bytes, and keeps it.
func (x *exchange) whole(limit int) error {
	_ = x.control.SetReadDeadline(time.Now().Add(wholeWait)) // the server may have none
	b, err := io.ReadAll(http.MaxBytesReader(x.w, x.r.Body, int64(limit)))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return wire.Refuse(wire.TooLarge, "request: size in bytes", "more", limit)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return wire.Refuse(wire.BadRequest, "request: body", "a part of it", "all of it within "+wholeWait.String())
	case err != nil:
		return wire.Refuse(wire.BadRequest, "request: body", err, "a whole one")
	}
	_ = x.control.SetReadDeadline(time.Time{})
	x.body.keep(b)
	x.size = int64(len(b))
	return nil
}

// first reads the first bytes of a body, which are passed on with the others.
func (x *exchange) first(size int) ([]byte, error) {
	first := make([]byte, size)
	_ = x.control.SetReadDeadline(time.Now().Add(headerWait)) // the server may have none
	if _, err := io.ReadFull(x.r.Body, first); err != nil {
		return nil, wire.Refuse(wire.BadRequest, "request: header", err, "its first bytes within "+headerWait.String())
	}
	_ = x.control.SetReadDeadline(time.Time{})
	x.body.begin, x.body.read = first, len(first)
	return first, nil
}

// read reads what the gateway reads of a request before it takes a place, and has
// it counted for as long as it may be kept.
func (g *gateway) read(x *exchange, f func(*exchange) error) (done func(), err error) {
	n := cost(x.r)
	if err := g.reading.Take(x.from, n); err != nil {
		return func() {}, err
	}
	err = f(x)
	if x.r.URL.Path == wire.PathRequest { // it streams from here on, and nothing is kept
		g.reading.Give(x.from, n)
		return func() {}, err
	}
	return func() { g.reading.Give(x.from, n) }, err
}

// placed runs f with a place of those that addresses share.
func placed(s *limit.Shares, x *exchange, f func() error) error {
	if err := s.Take(x.from, 1); err != nil {
		return err
	}
	defer s.Give(x.from, 1)
	return f()
}

// keep makes b the whole of a body, which goes as often as it is wanted.
func (b *body) keep(whole []byte) {
	b.source, b.begin, b.read, b.end = bytes.NewReader(nil), whole, len(whole), io.EOF
}
