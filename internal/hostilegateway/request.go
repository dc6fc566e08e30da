package hostilegateway

import (
	"encoding/binary"
	"net/http"
	"slices"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Places in the header of a request (docs/spec/channel.md, section 4), and in a response.
const (
	atNumber   = 1 + 24
	atTarget   = atNumber + 8
	atNotAfter = atTarget + 16
	atFlags    = atNotAfter + 8
	atSession  = 1

	responseHead = 16 + 16 // unit id and response nonce
)

// onRequest is a manipulation of sealed requests.
func onRequest(change func([]byte) []byte) func(*Gateway, *message) {
	return func(_ *Gateway, m *message) {
		m.request = change(m.request)
		m.forward()
	}
}

// onResponse is a manipulation of sealed responses.
func onResponse(change func([]byte) []byte) func(*Gateway, *message) {
	return func(_ *Gateway, m *message) {
		m.forward()
		if isSealed(m) {
			m.response = change(m.response)
		}
	}
}

// isSealed reports whether a message has a response of a unit.
func isSealed(m *message) bool {
	return m.status == http.StatusOK && len(m.response) > responseHead+4
}

// chunksOf returns where the chunks of a sealed response begin, and its length at the end.
func chunksOf(response []byte) (ends []int) {
	at := responseHead
	for at+4 <= len(response) {
		ends = append(ends, at)
		at += 4 + int(binary.BigEndian.Uint32(response[at:])&^(1<<31))
	}
	return append(ends, len(response))
}

// cut leaves out the last chunks, and breaks the connection or ends the response.
func cut(isCut bool) func(*Gateway, *message) {
	return func(_ *Gateway, m *message) {
		m.forward()
		if isSealed(m) {
			ends := chunksOf(m.response)
			m.response, m.isCut = m.response[:ends[len(ends)-2]], isCut
		}
	}
}

// onChunks is a manipulation of the chunks of sealed responses that have at least three.
func onChunks(change func(chunks [][]byte) [][]byte) func(*Gateway, *message) {
	return onResponse(func(response []byte) []byte {
		ends := chunksOf(response)
		if len(ends) < 4 {
			return response
		}
		var chunks [][]byte
		for i := range len(ends) - 1 {
			chunks = append(chunks, response[ends[i]:ends[i+1]])
		}
		return append(slices.Clone(response[:responseHead]), slices.Concat(change(chunks)...)...)
	})
}

// twice delivers a request twice and sends the second response.
func twice(_ *Gateway, m *message) {
	m.forward()
	m.forward()
}

// ofAnotherRequest sends the response to an earlier request of the session. The first request
// that passes gets the response of a copy with another number, which no unit accepts.
func ofAnotherRequest(g *Gateway, m *message) {
	m.forward()
	if !isSealed(m) {
		return
	}
	if earlier := g.before("response-of-another"); earlier != nil {
		m.response = earlier
	}
	g.keep("response-of-another", m.response)
}

// madeUp sends a response that no unit made.
func madeUp(status int, kind string, body string) func(*Gateway, *message) {
	return func(_ *Gateway, m *message) {
		m.status, m.response, m.fields = status, []byte(body), http.Header{"Content-Type": {kind}}
	}
}

// notExecuted lets the unit execute the request and reports that it did not.
func notExecuted(_ *Gateway, m *message) {
	m.forward()
	madeUp(http.StatusServiceUnavailable, "application/problem+json", `{"type":"urn:cohort:problem:not-executed","status":503,"reason":"not-executed"}`)(nil, m)
}

// misrouted names units that do not exist, and reports that the request was for one of them.
func misrouted(_ *Gateway, m *message) {
	m.status, m.response = http.StatusMisdirectedRequest, nil
	m.fields = http.Header{wire.FieldUnits: {"0123456789abcdef0123456789abcdef"}}
}
