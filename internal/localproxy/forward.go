package localproxy

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/fullduplex"
	"github.com/cohort-tee/cohort/internal/wire"
)

// bufferSize is the size in bytes of the buffer of a response.
const bufferSize = 32 << 10

var bufferPool = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// maxRecorded limits the content of a request, and of a response, for which a receipt is kept, in
// bytes. Both are in memory until the receipt is verified.
const maxRecorded = 64 << 20

// hopByHop are the fields of one connection (RFC 9110, section 7.6.1), and Expect, to which the
// server of net/http responds.
var hopByHop = []string{"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Expect"}

// removeHopByHop removes the fields of one connection, and those that Connection lists.
func removeHopByHop(h http.Header) {
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			h.Del(strings.TrimSpace(name))
		}
	}
	for _, name := range hopByHop {
		h.Del(name)
	}
}

// exchange is one request that the proxy forwards.
type exchange struct {
	p      *Proxy
	record client.Record // complete at the end of the response, if a receipt is kept
}

// forward sends a request to the cluster and its response to the program. It returns the outcome
// for the metrics.
func (p *Proxy) forward(w http.ResponseWriter, r *http.Request) outcome {
	if p.config.Keep != nil && r.ContentLength > maxRecorded {
		return p.respond(w, tooLarge(r.ContentLength))
	}
	x := &exchange{p: p}
	out := x.outgoing(w, r)
	if out.Body != http.NoBody {
		w, out = fullduplex.Enable(w, out)
	}
	response, err := p.config.Through.RoundTrip(out)
	if err != nil {
		return x.respondWithout(w, out, err)
	}
	defer response.Body.Close()
	if s := response.StatusCode; s < http.StatusOK || s > 999 { // net/http switches protocols, or panics
		refused := refusal(http.StatusBadGateway, wire.Malformed, "response: status", s, "a final one")
		refused.Retry = retryUnsafe
		return p.respond(w, refused)
	}
	x.copyHead(w, r, response)
	if err := x.copyContent(w, response); err != nil {
		return x.abort(r, err)
	}
	removeHopByHop(response.Trailer)
	for name, values := range response.Trailer { // their names are known only now
		w.Header()[http.TrailerPrefix+name] = values
	}
	return outcomeDone
}

// outgoing returns the request for the cluster. Its fields are the program's own: the proxy adds
// none, because whatever describes this machine is for the program to send.
func (x *exchange) outgoing(w http.ResponseWriter, r *http.Request) *http.Request {
	ctx := r.Context()
	if x.p.config.Keep != nil {
		ctx = client.WithRecord(ctx, &x.record)
	}
	out := r.Clone(ctx)
	out.Trailer = r.Trailer // filled in while the body is read
	out.URL.Scheme, out.URL.Host = "https", x.p.config.Host()
	out.Host, out.RequestURI, out.RemoteAddr, out.TLS = out.URL.Host, "", "", nil
	x.p.removeToken(out.Header)
	removeHopByHop(out.Header)
	if _, ok := out.Header["User-Agent"]; !ok {
		out.Header["User-Agent"] = nil // so that net/http sends none
	}
	if x.p.config.Keep != nil && out.Body != http.NoBody {
		out.Body = http.MaxBytesReader(w, r.Body, maxRecorded)
	}
	return out
}

// tooLarge is the problem of a request whose receipt would be too large.
func tooLarge(got any) *problem {
	return refusal(http.StatusRequestEntityTooLarge, wire.TooLarge, "request with a receipt: size in bytes", got, maxRecorded)
}

// respondWithout responds to a request, sent as out, that has no response of the service.
func (x *exchange) respondWithout(w http.ResponseWriter, out *http.Request, err error) outcome {
	var large *http.MaxBytesError
	var refused *problem
	switch {
	case errors.As(err, &large):
		refused = tooLarge("more")
		refused.Retry = retryUnsafe // a part was sent
	case out.Context().Err() != nil || fullduplex.HasFailed(out):
		return outcomeCanceled // no program reads a response
	case errors.Is(err, client.ErrClosed):
		refused = refusal(http.StatusServiceUnavailable, wire.Unavailable, "proxy: state", "the proxy ends", "a running proxy")
		refused.again = true
	default:
		refused = problemOf(err)
	}
	return x.p.respond(w, refused)
}

// copyHead sends status and fields of the response.
func (x *exchange) copyHead(w http.ResponseWriter, r *http.Request, response *http.Response) {
	removeHopByHop(response.Header)
	isPage := len(r.Header["Origin"]) > 0
	h := w.Header()
	for name, values := range response.Header {
		// The proxy decides which pages may read a response. Alt-Svc names another server for the
		// address of the proxy, where nothing would verify the cluster.
		if name == "Alt-Svc" || isPage && strings.HasPrefix(name, "Access-Control-") {
			continue
		}
		h[name] = append(h[name], values...)
	}
	if h["Content-Type"] == nil {
		h["Content-Type"] = nil // so that net/http invents none
	}
	hasContent := r.Method != http.MethodHead && response.StatusCode != http.StatusNoContent && response.StatusCode != http.StatusNotModified
	switch {
	case hasContent && x.p.config.Keep != nil:
		// So the response ends with its last chunk, which is sent after the receipt was kept.
		h.Del("Content-Length")
	case hasContent && response.ContentLength >= 0:
		h.Set("Content-Length", strconv.FormatInt(response.ContentLength, 10))
	}
	w.WriteHeader(response.StatusCode)
	if response.ContentLength < 0 {
		_ = http.NewResponseController(w).Flush()
	}
}

// sendError is the error of sending to the program.
type sendError struct{ error }

// copyContent sends the content as it comes, and keeps the receipt at its end.
func (x *exchange) copyContent(w http.ResponseWriter, response *http.Response) error {
	buffer := bufferPool.Get().(*[bufferSize]byte)
	defer bufferPool.Put(buffer)
	control := http.NewResponseController(w)
	for sent := int64(0); ; {
		n, err := response.Body.Read(buffer[:])
		if sent += int64(n); x.p.config.Keep != nil && sent > maxRecorded {
			return wire.Refuse(wire.TooLarge, "response with a receipt: size in bytes", sent, maxRecorded)
		}
		if n > 0 {
			if _, err := w.Write(buffer[:n]); err != nil && !errors.Is(err, http.ErrBodyNotAllowed) {
				return sendError{err}
			}
		}
		switch {
		case err == io.EOF && x.p.config.Keep != nil:
			return x.p.config.Keep(x.record)
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		case n > 0 && sent != response.ContentLength:
			if err := control.Flush(); err != nil {
				return sendError{err}
			}
		}
	}
}

// abort ends a response that is not complete: it closes the connection, so that no program takes
// the response for a complete one.
func (x *exchange) abort(r *http.Request, err error) outcome {
	_, isSend := err.(sendError)
	if isSend || r.Context().Err() != nil || errors.Is(err, context.Canceled) {
		return outcomeCanceled
	}
	x.p.problems.logProblem("response aborted", problemOf(err), time.Now())
	return outcomeAborted
}
