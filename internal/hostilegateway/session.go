package hostilegateway

import (
	"net/http"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Fields of an open request, and of the response to it, in docs/spec/channel.md, section 2.
const (
	openFields = 6
	openKEM    = 1
	openNonce  = 2
	openPin    = 3
	openWants  = 4

	opened          = 12
	openedKEM       = 0
	openedSession   = 1
	openedUnit      = 2
	openedIdentity  = 3
	openedRing      = 4
	openedHead      = 5
	openedExpiry    = 6
	openedChain     = 7
	openedSignature = 8
	openedEvidence  = 9
	openedTicket    = 10
	openedTime      = 11
)

// onOpen is a manipulation of one field of open requests.
func onOpen(at int, change func([]byte) []byte) func(*Gateway, *message) {
	return func(_ *Gateway, m *message) {
		m.request = field(wire.LabelSessionOpen, m.request, openFields, at, change)
		m.forward()
	}
}

// onOpened is a manipulation of one field of the responses to open requests.
func onOpened(at int, change func([]byte) []byte) func(*Gateway, *message) {
	return func(_ *Gateway, m *message) {
		m.forward()
		if m.status == http.StatusOK {
			m.response = field(wire.LabelSessionResponse, m.response, opened, at, change)
		}
	}
}

// onSession is a manipulation of whole responses to open requests.
func onSession(change func([]byte) []byte) func(*Gateway, *message) {
	return func(_ *Gateway, m *message) {
		m.forward()
		if m.status == http.StatusOK {
			m.response = change(m.response)
		}
	}
}

func empty([]byte) []byte { return nil }
