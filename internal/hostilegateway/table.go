package hostilegateway

import (
	"bytes"
	"encoding/binary"
	"net/http"
	"slices"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Table lists all manipulations, with the reason for which a client refuses each. A request that is
// not safe and was manipulated has an unknown outcome: the client cannot know what the unit did.
// The policy history of the cluster must have three steps, the last with signatures of two owners.
var Table = []Manipulation{
	{"trust-of-another-cluster", "sends the genuine trust and history of another cluster", Trust, wire.WrongGenesis, wire.PathHistory, otherCluster},
	{"trust-nonce", "sends trust that was made for a nonce of its own", Trust, wire.BadNonce, wire.PathTrust, forAnotherNonce},
	{"trust-unsigned", "leaves out the trust statement", Trust, wire.Malformed, wire.PathTrust, onTrust(func(t *api.TrustResponse) { t.Statement = nil })},
	{"trust-signature", "changes the signature of the trust statement", Trust, wire.BadSignature, wire.PathTrust, onTrust(func(t *api.TrustResponse) { t.Statement = flipped(t.Statement) })},
	{"trust-statement-of-another", "sends the trust statement of another cluster", Trust, wire.BadChain, wire.PathTrust, withOther(func(t, other *api.TrustResponse) { t.Statement = other.Statement })},
	{"trust-trailing", "appends a byte to the trust statement", Trust, wire.Malformed, wire.PathTrust, onTrust(func(t *api.TrustResponse) { t.Statement = append(t.Statement, 0) })},
	{"trust-root", "sends the authority root of another cluster", Trust, wire.WrongRoot, wire.PathTrust, withOther(func(t, other *api.TrustResponse) { t.Authority = other.Authority })},
	{"trust-evidence", "changes a character of the authority's evidence", Trust, wire.BadDigest, wire.PathTrust, onTrust(func(t *api.TrustResponse) {
		at := bytes.LastIndexByte(t.Evidence[:len(t.Evidence)-8], '"') - 5 // inside the last base64 text
		t.Evidence = bytes.Clone(t.Evidence)
		if t.Evidence[at] == 'A' {
			t.Evidence[at] = 'B'
		} else {
			t.Evidence[at] = 'A'
		}
	})},
	{"trust-evidence-of-another", "sends the evidence of another cluster's authority", Trust, wire.BadDigest, wire.PathTrust, withOther(func(t, other *api.TrustResponse) { t.Evidence = other.Evidence })},
	{"trust-identity-missing", "leaves out the roots of the task", Trust, wire.WrongIdentity, wire.PathTrust, onTrust(func(t *api.TrustResponse) { t.Identities = []api.TrustIdentity{} })},
	{"trust-identity-root", "sends the root of another cluster's task", Trust, wire.WrongGenesis, wire.PathTrust, withOther(func(t, other *api.TrustResponse) {
		for i := range min(len(t.Identities), len(other.Identities)) {
			t.Identities[i].Root, t.Identities[i].Cross = other.Identities[i].Root, other.Identities[i].Cross
		}
	})},
	{"history-genesis", "changes a byte of the first policy", Trust, wire.WrongGenesis, wire.PathHistory, onHistory(func(h *api.History) { h.Entries[0].Policy = flipped(h.Entries[0].Policy) })},
	{"history-policy", "changes a byte of the newest policy", Trust, wire.BadSignature, wire.PathHistory, onLast(func(e *api.HistoryEntry) { e.Policy = flipped(e.Policy) })},
	{"history-signature", "leaves out one of two owners' signatures", Trust, wire.NoQuorum, wire.PathHistory, onLast(func(e *api.HistoryEntry) { e.Signatures = e.Signatures[:1] })},
	{"history-owner-twice", "sends one owner's signature twice in place of two owners' signatures", Trust, wire.NoQuorum, wire.PathHistory, onLast(func(e *api.HistoryEntry) { e.Signatures[1] = e.Signatures[0] })},
	{"history-cut", "leaves out the newest step", Trust, wire.Behind, wire.PathHistory, onHistory(func(h *api.History) { h.Entries = h.Entries[:len(h.Entries)-1] })},
	{"history-step-twice", "repeats the first step", Trust, wire.WrongSequence, wire.PathHistory, onHistory(func(h *api.History) { h.Entries = slices.Insert(h.Entries, 1, h.Entries[0]) })},
	{"history-proof", "changes the authority's signature of the policy head", Trust, wire.BadSignature, wire.PathHistory, onHistory(func(h *api.History) { h.ProvedHead = flipped(h.ProvedHead) })},

	{"open-kem-key", "sends the unit another KEM key than the client's", Open, wire.BadDigest, wire.PathSession, onOpen(openKEM, flipped)},
	{"open-nonce", "sends the unit another nonce than the client's", Open, wire.BadDigest, wire.PathSession, onOpen(openNonce, flipped)},
	{"open-without-evidence", "tells the unit that the client wants no fresh evidence", Open, wire.BadDigest, wire.PathSession, onOpen(openWants, func(b []byte) []byte { return []byte{b[0] &^ 1} })},
	{"session-kem", "changes the unit's KEM ciphertext", Open, wire.BadDigest, wire.PathSession, onOpened(openedKEM, flipped)},
	{"session-id", "changes the session id", Open, wire.BadDigest, wire.PathSession, onOpened(openedSession, flipped)},
	{"session-unit", "names another unit", Open, wire.WrongIdentity, wire.PathSession, onOpened(openedUnit, flipped)},
	{"session-identity", "names another identity", Open, wire.WrongIdentity, wire.PathSession, onOpened(openedIdentity, flipped)},
	{"session-ring", "names another ring key", Open, wire.BadDigest, wire.PathSession, onOpened(openedRing, flipped)},
	{"session-head", "names a policy head that no history has", Open, wire.Behind, wire.PathSession, onOpened(openedHead, flipped)},
	{"session-expiry", "moves the session's end a minute ahead", Open, wire.BadDigest, wire.PathSession, onOpened(openedExpiry, func(b []byte) []byte {
		return binary.BigEndian.AppendUint64(nil, binary.BigEndian.Uint64(b)-60)
	})},
	{"session-chain", "changes the unit's certificate chain", Open, wire.BadSignature, wire.PathSession, onOpened(openedChain, flipped)},
	{"session-signature", "changes the unit's signature", Open, wire.BadSignature, wire.PathSession, onOpened(openedSignature, flipped)},
	{"session-evidence-missing", "leaves out the fresh evidence", Open, wire.BadSignature, wire.PathSession, onOpened(openedEvidence, empty)},
	{"session-evidence", "changes the fresh evidence", Open, wire.BadSignature, wire.PathSession, onOpened(openedEvidence, flipped)},
	{"session-ticket", "changes the ticket", Open, wire.BadSignature, wire.PathSession, onOpened(openedTicket, flipped)},
	{"session-time", "changes the unit's time", Open, wire.BadSignature, wire.PathSession, onOpened(openedTime, flipped)},
	{"session-trailing", "appends a byte to the response", Open, wire.Malformed, wire.PathSession, onSession(func(b []byte) []byte { return append(b, 0) })},
	{"session-cut", "cuts the response", Open, wire.Malformed, wire.PathSession, onSession(func(b []byte) []byte { return b[:len(b)-1] })},

	{"request-session", "names another session", Request, wire.OutcomeUnknown, wire.PathRequest, onRequest(func(b []byte) []byte { return flip(b, atSession) })},
	{"request-number", "changes the number of the request", Request, wire.OutcomeUnknown, wire.PathRequest, onRequest(func(b []byte) []byte { return flip(b, atNumber) })},
	{"request-target", "names another unit", Request, wire.OutcomeUnknown, wire.PathRequest, onRequest(func(b []byte) []byte { return flip(b, atTarget) })},
	{"request-unbound", "makes the request one that any unit may execute", Request, wire.OutcomeUnknown, wire.PathRequest, onRequest(func(b []byte) []byte {
		b = bytes.Clone(b)
		clear(b[atTarget:atNotAfter])
		return b
	})},
	{"request-time", "gives the request more time", Request, wire.OutcomeUnknown, wire.PathRequest, onRequest(func(b []byte) []byte { return flip(b, atFlags-2) })},
	{"request-flags", "makes the request one that closes the session", Request, wire.OutcomeUnknown, wire.PathRequest, onRequest(func(b []byte) []byte {
		b = bytes.Clone(b)
		b[atFlags] = 2
		return b
	})},
	{"request-content", "changes a bit of the content", Request, wire.OutcomeUnknown, wire.PathRequest, onRequest(func(b []byte) []byte { return flip(b, -1) })},
	{"request-cut", "cuts the request", Request, wire.OutcomeUnknown, wire.PathRequest, onRequest(func(b []byte) []byte { return b[:len(b)-1] })},
	{"request-twice", "delivers the request twice and sends the second response", Request, wire.OutcomeUnknown, wire.PathRequest, twice},
	{"response-of-another", "sends the response to an earlier request", Request, wire.OutcomeUnknown, wire.PathRequest, ofAnotherRequest},
	{"response-unit", "sends the response in another unit's name", Request, wire.OutcomeUnknown, wire.PathRequest, onResponse(func(b []byte) []byte { return flip(b, 0) })},
	{"response-nonce", "changes the response nonce", Request, wire.OutcomeUnknown, wire.PathRequest, onResponse(func(b []byte) []byte { return flip(b, 16) })},
	{"response-head", "changes a bit of the first chunk", Request, wire.OutcomeUnknown, wire.PathRequest, onResponse(func(b []byte) []byte { return flip(b, responseHead+8) })},
	{"response-in-clear", "makes up a response", Request, wire.OutcomeUnknown, wire.PathRequest, madeUp(http.StatusOK, "text/plain", "hello")},
	{"response-made-up", "makes up a sealed response", Request, wire.OutcomeUnknown, wire.PathRequest, madeUp(http.StatusOK, wire.TypeResponse, string(make([]byte, 512)))},
	{"response-not-executed", "reports that the request was not executed, after it was", Request, wire.OutcomeUnknown, wire.PathRequest, notExecuted},
	{"response-misdirected", "reports that the request was for another unit", Request, wire.OutcomeUnknown, wire.PathRequest, misrouted},
	{"response-rekey", "reports that no unit has the session", Request, wire.OutcomeUnknown, wire.PathRequest, madeUp(http.StatusGone, "application/problem+json", `{"reason":"rekey"}`)},

	{"content-cut", "ends the response before its last chunk", Content, wire.Truncated, wire.PathRequest, cut(false)},
	{"content-broken", "breaks the connection before the last chunk", Content, wire.Truncated, wire.PathRequest, cut(true)},
	{"content-changed", "changes a bit of the last chunk", Content, wire.BadSignature, wire.PathRequest, onChunks(func(c [][]byte) [][]byte {
		c[len(c)-1] = flipped(c[len(c)-1])
		return c
	})},
	{"content-left-out", "leaves out a chunk", Content, wire.BadSignature, wire.PathRequest, onChunks(func(c [][]byte) [][]byte { return slices.Delete(c, 1, 2) })},
	{"content-repeated", "repeats a chunk", Content, wire.BadSignature, wire.PathRequest, onChunks(func(c [][]byte) [][]byte { return slices.Insert(c, 2, c[1]) })},
	{"content-moved", "exchanges two chunks", Content, wire.BadSignature, wire.PathRequest, onChunks(func(c [][]byte) [][]byte {
		c[1], c[2] = c[2], c[1]
		return c
	})},
	{"content-trailing", "appends a byte after the last chunk", Content, wire.Malformed, wire.PathRequest, onResponse(func(b []byte) []byte { return append(b, 0) })},
}
