package channelhttp

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/retry"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// recordKey is the context key of a wanted [unitauth.Record].
type recordKey struct{}

// WithRecord makes a request want a receipt. The record is filled in when the
// response's body was read to its end; a body without the receipt of the unit that
// responded ends in an error.
func WithRecord(ctx context.Context, r *unitauth.Record) context.Context {
	return context.WithValue(ctx, recordKey{}, r)
}

// call is one request with all its attempts.
type call struct {
	t         *Transport
	request   *http.Request
	record    *unitauth.Record // nil: no receipt wanted
	small     bool             // it fits into one chunk
	content   []byte           // if it was read whole
	bodyTaken bool             // the body was passed on, and is closed there
	budget    retryBudget
	tried     []wire.UnitID
	turn      *time.Timer // releases the probe slot; nil: the call has none
}

// RoundTrip sends a request through the channel and gives its response, which is
// a unit's of this cluster, unchanged and for this request. A request whose
// method is not safe is bound to one unit, which executes it at most once.
//
// A request that is safe, or carries an Idempotency-Key, is sent again when an
// attempt brings no response; any other only when it certainly was not executed, and
// otherwise the error is [ErrOutcomeUnknown]. A response that ends early is an
// [channel.ErrTruncated] of its body. RoundTrip blocks until there is a response, nothing
// is left to try, or the request's context is done.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	c := &call{t: t, request: r, budget: newRetryBudget()}
	c.record, _ = r.Context().Value(recordKey{}).(*unitauth.Record)
	if err := c.readSmall(); err != nil {
		return nil, err
	}
	defer c.releaseProbe()
	for {
		response, failed := c.attemptOnce()
		if response != nil {
			return response, nil
		}
		if err := c.nextAttempt(failed); err != nil {
			if c.content == nil && !c.bodyTaken {
				r.Body.Close()
			}
			return nil, fmt.Errorf("calling %s %s: %w", r.Method, r.URL.Redacted(), err)
		}
	}
}

// readSmall reads the content of a small request whose body cannot be read again.
func (c *call) readSmall() error {
	r := c.request
	if r.Body == nil || r.Body == http.NoBody {
		c.small, c.content = true, []byte{}
		return nil
	}
	c.small = 0 < r.ContentLength && r.ContentLength <= channel.MaxSmall && len(r.Trailer) == 0
	if !c.small || r.GetBody != nil {
		return nil
	}
	defer r.Body.Close()
	c.content = make([]byte, r.ContentLength)
	if _, err := io.ReadFull(r.Body, c.content); err != nil {
		return fmt.Errorf("reading the request's body: %w", err)
	}
	return nil
}

// failure is an attempt that brought no response.
type failure struct {
	err     error
	hint    hint
	attempt attempt
	session *activeSession // nil: none
}

// nextAttempt decides how the call goes on: nil for another attempt.
func (c *call) nextAttempt(f failure) error {
	if ctx := c.request.Context(); ctx.Err() != nil {
		f.attempt.Whole = false
		f.err = errors.Join(f.err, context.Cause(ctx))
	}
	switch decide(f.attempt) {
	case outcomeUnknown:
		return fmt.Errorf("%w: %w", ErrOutcomeUnknown, f.err)
	case giveUp:
		return f.err
	}
	if f.session == nil || errors.Is(f.err, channel.ErrClosed) {
		return f.err
	}
	return c.prepareRetry(f)
}

// prepareRetry prepares another attempt as the hint says, while the call may.
func (c *call) prepareRetry(f failure) error {
	reason := f.hint.Reason
	switch {
	case f.attempt.NotExecuted:
		reason = wire.NotExecuted
	case isCut(f.err):
		reason = wire.CutOff
	case f.session.Alone() && (reason == wire.Misdirected || reason == wire.TicketWanted):
		reason = wire.Rekey // no other unit has it
	}
	allowed := c.budget.allow(reason)
	switch reason {
	case wire.Misdirected:
		if !allowed {
			return fmt.Errorf("%w: %w", errMisdirected, f.err)
		}
	case wire.Rekey, wire.TicketWanted:
		c.t.dropSession(f.session)
		c.tried = nil // none in the next session
		if !allowed {
			return fmt.Errorf("%w: %w", errRekey, f.err)
		}
	case wire.CutOff:
		c.t.dropSession(f.session)
		if !allowed {
			return f.err
		}
	case wire.NotExecuted:
		if !allowed {
			return fmt.Errorf("%w: %w", ErrNotExecuted, f.err)
		}
	case wire.Expired:
		if !allowed {
			return f.err
		}
	default:
		if !allowed || !c.acquireProbe() {
			return fmt.Errorf("%w: %w", ErrUnreachable, f.err)
		}
	}
	return nil
}

// acquireProbe pauses before an attempt after one that reached no unit, or an overloaded
// one, and takes a probe slot. While the gateway or all units are unavailable, every call
// of a transport gets here: if all of them retried, units that return would be overloaded
// at once. So a few calls probe at a time, and the others wait, at most probeWait. A slot
// is released with its call, or when the attempt has run for probeTime, because then a
// unit is probably there.
func (c *call) acquireProbe() bool {
	rest := retryPause << (maxOthers - 1 - c.budget.others)
	begin := time.Now()
	if c.turn == nil || !c.turn.Stop() {
		long := time.NewTimer(probeWait)
		defer long.Stop()
		select {
		case c.t.probeSlots <- struct{}{}:
		case <-long.C:
			return false
		case <-c.request.Context().Done():
			return false
		}
	}
	_ = retry.Sleep(c.request.Context(), rest-time.Since(begin))
	c.turn = time.AfterFunc(probeTime, func() { <-c.t.probeSlots })
	return true
}

// releaseProbe releases the call's probe slot, if it has one.
func (c *call) releaseProbe() {
	if c.turn != nil && c.turn.Stop() {
		<-c.t.probeSlots
	}
}

// attemptOnce sends the request once, and the same bytes again with the ticket if the
// unit asks for it.
func (c *call) attemptOnce() (*http.Response, failure) {
	f := failure{attempt: c.knownAttempt()}
	h, err := c.t.acquire(c.request.Context())
	if err != nil {
		f.err = err
		return nil, f
	}
	defer c.t.release(h)
	f.session = h
	x, out, err := c.prepare(h)
	if err != nil {
		f.err, f.attempt.Whole = err, false // another attempt would fail too
		return nil, f
	}
	ticket := ""
	if out.stream != nil || c.budget.ticket < 1 {
		ticket = encodeTicket(h.Session) // a stream cannot be sent again, and a ticket that was wanted is wanted again
	}
	outer, err := c.sendOuter(h, out, ticket, &f)
	if err == nil && f.hint.Reason == wire.TicketWanted && !h.Alone() && out.stream == nil && c.budget.allow(wire.TicketWanted) {
		out.resent.Store(true)
		outer, err = c.sendOuter(h, out, encodeTicket(h.Session), &f)
	}
	f.attempt.Left, f.attempt.Whole = out.mayHaveLeft(err), c.knownAttempt().Whole
	if err != nil || outer == nil {
		f.err = errors.Join(f.err, err)
		return nil, f
	}
	response, err := c.openResponse(x, outer, &f)
	if err != nil {
		outer.Body.Close()
		f.err = err
	}
	return response, f
}

// knownAttempt returns the facts of an attempt before it is made.
func (c *call) knownAttempt() attempt {
	return attempt{
		Safe:   channel.IsSafe(c.request.Method),
		Marked: channel.HasIdempotencyKey(c.request.Header),
		Whole:  c.content != nil || !c.bodyTaken || c.request.GetBody != nil,
	}
}

// prepare seals the request for a session: whole, or as a stream.
func (c *call) prepare(h *activeSession) (*channel.ClientRequest, *outgoing, error) {
	target := c.target(h)
	if target != (wire.UnitID{}) {
		c.tried = append(c.tried, target)
	}
	flags := wire.Flags(0)
	if c.record != nil {
		flags = wire.FlagReceipt
	}
	x, err := h.NewRequest(channel.RequestConfig{Target: target, NotAfter: c.t.notAfter(h, target), Flags: flags, Pool: &c.t.chunks,
		Valid: func() error { return c.t.cutOff(h.Session) }})
	if err != nil {
		return nil, nil, err
	}
	request := c.innerHead()
	body, err := c.requestBody()
	if err != nil {
		return nil, nil, err
	}
	if c.small {
		defer body.Close()
		raw, err := x.Whole(request, body)
		return x, &outgoing{raw: raw, target: target}, err
	}
	s, err := x.Stream(request, body, c.request.Trailer)
	return x, &outgoing{stream: s, target: target}, err
}

// target returns the unit that the next attempt is bound to; zero: none.
func (c *call) target(h *activeSession) wire.UnitID {
	opener := h.OpenedBy().UnitID()
	switch {
	case h.Alone():
		return opener
	case c.budget.rekey == 0 && !slices.Contains(c.tried, opener): // it certainly has the new session
		return opener
	case !channel.IsSafe(c.request.Method) || c.t.isWary():
		return c.t.chooseUnit(h, c.tried)
	}
	return wire.UnitID{}
}

// requestBody returns the content to send.
func (c *call) requestBody() (io.ReadCloser, error) {
	switch {
	case c.content != nil:
		return io.NopCloser(bytes.NewReader(c.content)), nil
	case c.bodyTaken:
		return c.request.GetBody()
	}
	c.bodyTaken = true
	return c.request.Body, nil
}

// innerHead returns the head of the inner request.
func (c *call) innerHead() bhttp.Head {
	h := headOf(c.request)
	if !c.small && c.request.ContentLength <= 0 {
		h.Length = bhttp.Indeterminate
	}
	return h
}

func headOf(r *http.Request) bhttp.Head {
	h := bhttp.Head{Method: r.Method, Scheme: r.URL.Scheme, Authority: r.Host, Path: r.URL.RequestURI(), Fields: r.Header, Length: r.ContentLength}
	if h.Method == "" {
		h.Method = http.MethodGet
	}
	if h.Authority == "" {
		h.Authority = r.URL.Host
	}
	if r.Header["Content-Length"] != nil { // the framing has the length
		h.Fields = r.Header.Clone()
		h.Fields.Del("Content-Length")
	}
	return h
}

// outgoing is the sealed request of one attempt.
type outgoing struct {
	target wire.UnitID
	raw    []byte // all of it; nil if it is
	stream *channel.RequestStream
	resent atomic.Bool // raw may have been sent more than once
}

// mayHaveLeft reports whether a part of the request may have left this machine, when
// sending it ended in err: always, except for a stream that was not read and a first
// connection that could not be made.
func (o *outgoing) mayHaveLeft(err error) bool {
	if o.stream != nil {
		return o.stream.Started()
	}
	e, ok := errors.AsType[*net.OpError](err)
	return o.resent.Load() || !ok || e.Op != "dial"
}

// outer changes r into the outer request of a sealed one, and returns it. The same sealed bytes may
// be sent twice, since no unit executes them twice: the inner transport may do
// so when a kept-alive connection turns out to be gone.
func (t *Transport) outer(r *http.Request, h *activeSession, o *outgoing, ticket string) *http.Request {
	r.Method, r.URL, r.Host = http.MethodPost, t.requestURL, t.requestURL.Host
	r.Proto, r.ProtoMajor, r.ProtoMinor = "HTTP/1.1", 1, 1
	r.TransferEncoding, r.Trailer, r.Close, r.Form, r.PostForm, r.MultipartForm = nil, nil, false, nil, nil, nil
	r.Header = http.Header{"Content-Type": {wire.TypeRequest}, "User-Agent": nil}
	r.Body, r.ContentLength, r.GetBody = o.stream, bhttp.Indeterminate, nil
	if o.stream == nil {
		// net/http knows that a reader of this type does not block.
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(o.raw)), int64(len(o.raw))
		r.GetBody = func() (io.ReadCloser, error) {
			o.resent.Store(true)
			return io.NopCloser(bytes.NewReader(o.raw)), nil
		}
		r.Header["X-Idempotency-Key"] = []string{} // makes net/http retry; it is not sent
	}
	if ticket != "" {
		r.Header[wire.FieldTicket] = []string{ticket}
	}
	if head := t.config.Heads.newest(); h.Unsent(head) {
		setHead(r.Header, head)
	}
	return r
}

// sendOuter makes one outer request. It returns an outer response that contains an
// inner one, or fills in the hint.
func (c *call) sendOuter(h *activeSession, o *outgoing, ticket string, f *failure) (*http.Response, error) {
	outer := *c.request // a copy, with its context
	response, err := c.t.config.Inner.RoundTrip(c.t.outer(&outer, h, o, ticket))
	if err != nil {
		f.hint = hint{Reason: wire.Unavailable}
		return nil, err
	}
	f.hint = hintOf(response)
	c.t.noteUnits(f.hint)
	c.t.config.Heads.receive(response.Header)
	if !f.hint.Time.IsZero() {
		c.t.times.noteTime(o.target, f.hint.Time, c.t.config.Clock())
	}
	if response.StatusCode == http.StatusOK && response.Header.Get("Content-Type") == wire.TypeResponse {
		return response, nil
	}
	_, _ = io.CopyN(io.Discard, response.Body, channel.MaxOpenRequest) // so that the connection is used again
	response.Body.Close()
	f.err = wire.Refuse(f.hint.Reason, "outer response: status", response.StatusCode, http.StatusOK)
	if !f.hint.Time.IsZero() {
		f.err = errors.Join(unitauth.CheckSkew(f.hint.Time, c.t.config.Clock()), f.err)
	}
	return nil, nil
}

// encodeTicket is the value of the ticket's header field.
func encodeTicket(s *channel.Session) string { return base64.RawURLEncoding.EncodeToString(s.Ticket()) }

// openResponse opens the inner response.
func (c *call) openResponse(x *channel.ClientRequest, outer *http.Response, f *failure) (*http.Response, error) {
	a, err := x.Open(outer.Body)
	if err != nil {
		return nil, err
	}
	c.t.times.noteTime(a.Unit, a.Time, c.t.config.Clock())
	if a.Kind != channel.KindResponse {
		// A request that is not safe is bound, and then Open has checked that the
		// response is the bound unit's.
		f.attempt.NotExecuted = a.Kind == channel.KindNotExecuted
		return nil, wire.Refuse(wire.NotExecuted, "response: reason", a.Reason, "a response")
	}
	r, err := a.Head.Response(c.request, a.Content)
	if err != nil {
		return nil, err
	}
	a.Content.Closer = outer.Body
	if x.Record() != nil {
		at := c.t.config.Clock()
		a.Content.After = func(end error) error {
			if end == io.EOF {
				return c.verifyReceipt(x, a, at)
			}
			return end
		}
	}
	return r, nil
}

// verifyReceipt verifies the receipt at a response's end. It returns io.EOF for a valid one.
func (c *call) verifyReceipt(x *channel.ClientRequest, a channel.Response, at time.Time) error {
	record := x.Record()
	record.Receipt = a.Receipt()
	if record.Receipt == nil {
		return wire.Refuse(wire.EvidenceMissing, "response: receipt", "no receipt after the content", "that of the unit")
	}
	expect := unitauth.ReceiptExpect{Pin: c.t.config.Pin, At: at}
	receipt, err := unitauth.VerifyReceipt(*record, c.t.config.Trust.Trust(), expect)
	if err != nil { // perhaps of a release newer than the known policy
		receipt, err = unitauth.VerifyReceipt(*record, c.t.config.Trust.Renew(c.request.Context()), expect)
	}
	if err == nil && receipt.Later != nil {
		err = receipt.Later.Cause
	}
	if err != nil {
		return fmt.Errorf("verifying the receipt: %w", err)
	}
	if receipt.Session != x.Session().ID() || receipt.Number != x.Number() || receipt.Unit.UnitID() != a.Unit {
		return wire.Refuse(wire.WrongIdentity, "receipt: session, number and unit", fmt.Sprint(receipt.Session, ", ", receipt.Number, ", ", receipt.Unit.UnitID()), fmt.Sprint(x.Session().ID(), ", ", x.Number(), ", ", a.Unit))
	}
	*c.record = *record
	return io.EOF
}
