package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Relayed is a response of an authority that is passed on as it is. Nothing in it is verified
// or parsed.
type Relayed struct {
	Status                                int
	ContentType, CacheControl, RetryAfter string
	Body                                  []byte // at most [wire.MaxResponse] bytes
}

// relayedPiece is how many bytes of a response are read at a time.
const relayedPiece = 64 << 10

// RelayTrust sends a query for trust and returns the response, of any status. It calls grow
// before it reads each piece of the body, with the size of the piece, and returns the error of
// grow. It refuses with "unavailable" a content type that no authority sends.
func (a *Authority) RelayTrust(ctx context.Context, q TrustQuery, grow func(int) error) (Relayed, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, a.base+PathTrust+"?"+q.encode(), nil)
	if err != nil {
		return Relayed{}, err
	}
	r.Header["User-Agent"] = nil
	response, err := a.http.Do(r)
	if err != nil {
		return Relayed{}, fmt.Errorf("sending a request to the authority: %w", err)
	}
	defer response.Body.Close()
	want := TypeProblem
	if response.StatusCode == http.StatusOK {
		want = "application/json"
	}
	if kind, _, err := mime.ParseMediaType(response.Header.Get("Content-Type")); err != nil || kind != want {
		return Relayed{}, wire.Refuse(wire.Unavailable, "response: content type", fmt.Sprintf("%.100q", response.Header.Get("Content-Type")), want)
	}
	body, err := readPieces(response.Body, grow)
	if err != nil {
		return Relayed{}, err
	}
	return Relayed{
		Status: response.StatusCode, ContentType: want, Body: body,
		CacheControl: response.Header.Get("Cache-Control"), RetryAfter: response.Header.Get("Retry-After"),
	}, nil
}

// readPieces reads a body to its end, in memory that grow allows.
func readPieces(body io.Reader, grow func(int) error) (read []byte, err error) {
	for {
		if len(read) == cap(read) {
			if len(read) > wire.MaxResponse {
				return nil, wire.Refuse(wire.TooLarge, "response: size in bytes", fmt.Sprint("more than ", wire.MaxResponse), wire.MaxResponse)
			}
			more := max(relayedPiece, len(read)) // twice as much, so that few bytes are copied
			if err := grow(more); err != nil {
				return nil, err
			}
			read = append(make([]byte, 0, len(read)+more), read...)
		}
		n, err := body.Read(read[len(read):cap(read)])
		read = read[:len(read)+n]
		switch {
		case errors.Is(err, io.EOF) && len(read) <= wire.MaxResponse:
			return read, nil
		case errors.Is(err, io.EOF):
			return nil, wire.Refuse(wire.TooLarge, "response: size in bytes", len(read), wire.MaxResponse)
		case err != nil:
			return nil, fmt.Errorf("reading the authority's response: %w", err)
		}
	}
}
