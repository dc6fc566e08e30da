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

	"github.com/cohort-tee/cohort/internal/affinity"
	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/retry"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// recordKey is the context key of the [unitauth.Record] to fill in.
type recordKey struct{}

// WithRecord requests a receipt for a request. r is complete once the response's body was read
// to its end. A body that arrives without the receipt of its unit ends with an error.
func WithRecord(ctx context.Context, r *unitauth.Record) context.Context {
	return context.WithValue(ctx, recordKey{}, r)
}

// call is one request with all its attempts.
type call struct {
	t         *Transport
	request   *http.Request
	record    *unitauth.Record // nil: no receipt wanted
	small     bool             // the request fits into one chunk
	content   []byte           // the whole content; nil if it was not read
	bodyTaken bool             // an attempt uses the body and closes it
	budget    retryBudget
	affinity  affinity.Key  // empty: none
	tried     []wire.UnitID // units to which an attempt was bound, the newest last
	turn      *time.Timer   // releases the probe slot; nil: the call has no slot
}

// RoundTrip sends a request through the channel. It returns the response of a unit of this
// cluster to exactly this request, unchanged. A request whose method is not safe is bound to one
// unit, which executes it at most once.
//
// RoundTrip sends a request that is safe or carries an Idempotency-Key again when an attempt
// ends without a response. It sends any other request again only if that request certainly was
// not executed; otherwise it returns [ErrOutcomeUnknown]. Reading the body of a response that
// ends early returns [chunk.ErrTruncated]. RoundTrip blocks until there is a response, nothing is
// left to try, or the request's context is done.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	c := &call{t: t, request: r, budget: newRetryBudget(), affinity: t.blinder.Blind(r.Header.Get(wire.FieldAffinity))}
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

// failure describes an attempt that ended without a response.
type failure struct {
	err     error
	hint    hint
	attempt attempt
	session *activeSession // nil: no session was acquired
}

// nextAttempt returns the error of the call, or nil if the call makes a further attempt.
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

// prepareRetry prepares a further attempt according to the hint. It returns the call's error
// when the call has used up its attempts.
func (c *call) prepareRetry(f failure) error {
	reason := f.hint.Reason
	switch {
	case f.attempt.NotExecuted:
		reason = wire.NotExecuted
	case isCut(f.err):
		reason = wire.CutOff
	case f.session.Alone() && (reason == wire.Misdirected || reason == wire.TicketWanted):
		reason = wire.Rekey // no other unit has the session
	}
	allowed := c.budget.allow(reason)
	switch reason {
	case wire.Misdirected:
		if !allowed {
			return fmt.Errorf("%w: %w", errMisdirected, f.err)
		}
	case wire.Rekey, wire.TicketWanted:
		c.t.dropSession(f.session)
		c.tried = nil // no unit was tried with the next session
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

// acquireProbe pauses and acquires a probe slot. A call does so before every attempt that
// follows an attempt without a unit that could serve. While the gateway or all units are
// unavailable, every call of a transport needs a slot: if all calls retried together, they would
// overload the first units that return. So a few calls probe at a time, and the others wait, at
// most probeWait. A slot is released when its call ends, or when the attempt has run for
// probeTime, because then a unit probably serves it.
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

// attemptOnce sends the request once. If the unit asks for the ticket, it sends the same bytes
// again with the ticket.
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
		f.err, f.attempt.Whole = err, false // a further attempt would fail too
		return nil, f
	}
	ticket := ""
	if out.stream != nil || c.budget.ticket < 1 {
		ticket = encodeTicket(h.Session) // a stream cannot be sent again; a unit that wanted the ticket wants it again
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

// knownAttempt returns the facts that are known about an attempt before it is sent.
func (c *call) knownAttempt() attempt {
	return attempt{
		Safe:   channel.IsSafe(c.request.Method),
		Marked: channel.HasIdempotencyKey(c.request.Header),
		Whole:  c.content != nil || !c.bodyTaken || c.request.GetBody != nil,
	}
}

// prepare seals the request in a session, as a whole or as a stream.
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

// target returns the unit to which the next attempt is bound, or zero for an unbound attempt.
func (c *call) target(h *activeSession) wire.UnitID {
	opener := h.OpenedBy().UnitID()
	switch {
	case h.Alone():
		return opener
	case c.budget.rekey == 0 && !slices.Contains(c.tried, opener): // the opener certainly has the new session
		return opener
	case !channel.IsSafe(c.request.Method) || c.t.isWary():
		return c.t.chooseUnit(h, c.tried, c.affinity)
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
	if r.Header["Content-Length"] != nil || r.Header[wire.FieldAffinity] != nil { // the framing contains the length, and only the gateway receives a key
		h.Fields = r.Header.Clone()
		h.Fields.Del("Content-Length")
		h.Fields.Del(wire.FieldAffinity)
	}
	return h
}

// outgoing is the sealed request of one attempt.
type outgoing struct {
	target wire.UnitID
	raw    []byte                 // the whole request; nil if stream is set
	stream *channel.RequestStream // nil if raw is set
	resent atomic.Bool            // raw may have been sent more than once
}

// mayHaveLeft reports whether a part of the request may have left this machine, if sending it
// ended with err. It returns false only for a stream that was not read, and for a request that
// was sent once and whose connection could not be opened.
func (o *outgoing) mayHaveLeft(err error) bool {
	if o.stream != nil {
		return o.stream.Started()
	}
	e, ok := errors.AsType[*net.OpError](err)
	return o.resent.Load() || !ok || e.Op != "dial"
}

// outer changes r into the outer request for a sealed request, and returns it. The inner
// transport may send the same sealed bytes twice, if an idle connection turns out to be closed.
// That is safe, because no unit executes them twice.
func (t *Transport) outer(r *http.Request, h *activeSession, o *outgoing, ticket string) *http.Request {
	r.Method, r.URL, r.Host = http.MethodPost, t.requestURL, t.requestURL.Host
	r.Proto, r.ProtoMajor, r.ProtoMinor = "HTTP/1.1", 1, 1
	r.TransferEncoding, r.Trailer, r.Close, r.Form, r.PostForm, r.MultipartForm = nil, nil, false, nil, nil, nil
	r.Header = http.Header{"Content-Type": {wire.TypeRequest}, "User-Agent": nil}
	r.Body, r.ContentLength, r.GetBody = o.stream, bhttp.Indeterminate, nil
	if o.stream == nil {
		// net/http knows that a bytes.Reader does not block.
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

// sendOuter sends one outer request and fills in the hint of f. It returns the outer response
// if that contains an inner response, and nil otherwise.
func (c *call) sendOuter(h *activeSession, o *outgoing, ticket string, f *failure) (*http.Response, error) {
	outer := *c.request // a copy with the same context
	sent := c.t.outer(&outer, h, o, ticket)
	if c.affinity != "" {
		sent.Header[wire.FieldAffinity] = []string{string(c.affinity)}
	}
	response, err := c.t.config.Inner.RoundTrip(sent)
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
	_, _ = io.CopyN(io.Discard, response.Body, channel.MaxOpenRequest) // so that net/http can reuse the connection
	response.Body.Close()
	f.err = wire.Refuse(f.hint.Reason, "outer response: status", response.StatusCode, http.StatusOK)
	if !f.hint.Time.IsZero() {
		f.err = errors.Join(unitauth.CheckSkew(f.hint.Time, c.t.config.Clock()), f.err)
	}
	return nil, nil
}

// encodeTicket returns the value of the header field for the session's ticket.
func encodeTicket(s *channel.Session) string { return base64.RawURLEncoding.EncodeToString(s.Ticket()) }

// openResponse opens the inner response in an outer response.
func (c *call) openResponse(x *channel.ClientRequest, outer *http.Response, f *failure) (*http.Response, error) {
	a, err := x.Open(outer.Body)
	if err != nil {
		return nil, err
	}
	c.t.times.noteTime(a.Unit, a.Time, c.t.config.Clock())
	if a.Kind != channel.KindResponse {
		// A request that is not safe is bound to a unit, and Open has checked that the
		// response is from that unit.
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

// verifyReceipt verifies the receipt at the end of a response. It returns io.EOF if the receipt
// is valid.
func (c *call) verifyReceipt(x *channel.ClientRequest, a channel.Response, at time.Time) error {
	record := x.Record()
	record.Receipt = a.Receipt()
	if record.Receipt == nil {
		return wire.Refuse(wire.EvidenceMissing, "response: receipt", "no receipt after the content", "that of the unit")
	}
	expect := unitauth.ReceiptExpect{Pin: c.t.config.Pin, At: at}
	receipt, err := unitauth.VerifyReceipt(*record, c.t.config.Trust.Trust(), expect)
	if err != nil { // the unit may be of a release that the known policy does not name yet
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
