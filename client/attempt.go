package client

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"
)

// errRejected is the error of reading a body before its attempt may send it.
var errRejected = errors.New("connection may carry no further request")

// attemptKey is the context key under which a dial finds its attempt.
type attemptKey struct{}

// attempt is one try to send a call's request to one replica. It waits for a
// connection of the replica's transport, asks the call whether to send on it, and
// reports its result. The fields from began on belong to the goroutine of
// [call.runCall], the fields from current on to the goroutine of runAttempt.
type attempt struct {
	call     *call
	replica  *replica
	context  context.Context
	cancel   context.CancelCauseFunc
	hasConn  atomic.Bool
	admitted chan bool // whether the call allows the attempt to send on its connection

	began  time.Time // start of the sending
	conn   *conn     // nil until the call allows the attempt to send
	writes int64     // conn's write count before the sending
	wrote  bool      // an earlier connection may have written a part of the request
	late   bool

	current  *conn // the connection that the transport chose last
	rejected bool  // current may not carry the request
	response *http.Response
	err      error
}

// newAttempt makes an attempt on r. It ends when the context of the request ends.
func (k *call) newAttempt(r *replica) *attempt {
	a := &attempt{call: k, replica: r, admitted: make(chan bool)}
	ctx, cancel := context.WithCancelCause(context.WithValue(k.request.Context(), attemptKey{}, a))
	a.cancel = cancel
	a.context = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn: func(string) { a.hasConn.Store(false) },
		GotConn: a.gotConn,
		PutIdleConn: func(err error) {
			if err == nil { // on an error the transport closes the connection
				k.client.pool.release(a.current, a)
			}
		},
	})
	return a
}

// needsConn reports whether the attempt still waits for a connection.
func (a *attempt) needsConn() bool { return !a.hasConn.Load() && a.context.Err() == nil }

// runAttempt sends the request and reads a short response whole. A rejected connection
// has carried no byte of the request, so runAttempt tries again on another connection.
func (a *attempt) runAttempt() {
	for {
		a.rejected = false
		a.response, a.err = a.roundTrip()
		if !a.rejected || a.context.Err() != nil {
			break
		}
	}
	if a.err != nil {
		a.cancel(nil)
	}
	select {
	case a.call.events <- event{attempt: a}:
	case <-a.call.done:
		a.cancel(nil)
		if a.response != nil {
			a.response.Body.Close()
		}
	}
}

func (a *attempt) roundTrip() (*http.Response, error) {
	request := a.call.request.WithContext(a.context)
	body, err := a.call.body.openBody()
	if err != nil {
		return nil, err
	}
	request.Body, request.GetBody = body, a.call.body.reopen
	if a.call.body.once != nil {
		request.Body = &attemptBody{ReadCloser: body, attempt: a}
	}
	response, err := a.replica.transport.RoundTrip(request)
	if err == nil {
		err = readWhole(response)
	}
	return response, err
}

// gotConn asks the call whether to send on a connection. The transport calls gotConn
// before it writes to that connection.
func (a *attempt) gotConn(info httptrace.GotConnInfo) {
	a.hasConn.Store(true)
	a.current = info.Conn.(*tls.Conn).NetConn().(*conn)
	a.rejected = !a.call.client.pool.acquire(a.current, a, info.Reused) || !a.askCall(a.current)
	if a.rejected {
		a.current.reject()
	}
}

func (a *attempt) askCall(c *conn) bool {
	select {
	case a.call.events <- event{attempt: a, conn: c}:
		return <-a.admitted
	case <-a.call.done:
		return false
	}
}

// mayHaveSent reports whether a part of the request may have been written. After it
// returns false, no part is written any more.
func (a *attempt) mayHaveSent() bool {
	return a.wrote || a.conn != nil && a.call.client.pool.wrote(a)
}

// attemptBody passes a body that can be read only once to one attempt. Until that
// attempt may send, attemptBody leaves the body untouched for the other attempts.
type attemptBody struct {
	io.ReadCloser
	attempt *attempt
}

func (b *attemptBody) Read(p []byte) (int, error) {
	if b.attempt.rejected || !b.attempt.hasConn.Load() {
		return 0, errRejected
	}
	return b.ReadCloser.Read(p)
}

func (b *attemptBody) Close() error {
	if b.attempt.rejected || !b.attempt.hasConn.Load() {
		return nil
	}
	return b.ReadCloser.Close()
}
