package hostilegateway

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"slices"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
)

// onTrust is a manipulation of genuine trust responses.
func onTrust(change func(*api.TrustResponse)) func(*Gateway, *message) {
	return func(_ *Gateway, m *message) {
		m.forward()
		var t api.TrustResponse
		if json.Unmarshal(m.response, &t) != nil {
			return
		}
		change(&t)
		m.response, _ = json.Marshal(t)
	}
}

// onHistory is a manipulation of genuine pages of the policy history.
func onHistory(change func(*api.History)) func(*Gateway, *message) {
	return func(_ *Gateway, m *message) {
		m.forward()
		var h api.History
		if json.Unmarshal(m.response, &h) != nil || len(h.Entries) == 0 {
			return
		}
		change(&h)
		m.response, _ = json.Marshal(h)
	}
}

// withOther is a manipulation of genuine trust responses that takes something from the other
// cluster's response to the same query.
func withOther(change func(t, other *api.TrustResponse)) func(*Gateway, *message) {
	return func(g *Gateway, m *message) {
		genuine := &message{ctx: m.ctx, path: m.path, query: m.query}
		g.send(g.other, genuine)
		var other api.TrustResponse
		if json.Unmarshal(genuine.response, &other) == nil {
			onTrust(func(t *api.TrustResponse) { change(t, &other) })(g, m)
		}
	}
}

// forAnotherNonce sends what the authority sent for a nonce that the client did not choose.
func forAnotherNonce(_ *Gateway, m *message) {
	var nonce [32]byte
	rand.Read(nonce[:])
	m.query.Set("nonce", hex.EncodeToString(nonce[:]))
	m.forward()
}

// otherCluster sends the genuine messages of the other cluster.
func otherCluster(g *Gateway, m *message) { g.send(g.other, m) }

// onLast is a manipulation of the newest step of the policy history.
func onLast(change func(*api.HistoryEntry)) func(*Gateway, *message) {
	return onHistory(func(h *api.History) { change(&h.Entries[len(h.Entries)-1]) })
}

// field changes one field of framed bytes of n fields, if they have that form.
func field(label wire.Label, b []byte, n, at int, change func([]byte) []byte) []byte {
	fields, err := wire.Unframe(label, b, n)
	if err != nil {
		return b
	}
	fields = slices.Clone(fields)
	fields[at] = change(fields[at])
	return wire.Frame(label, fields...)
}

// flipped flips the lowest bit of the last byte.
func flipped(b []byte) []byte {
	if len(b) == 0 {
		return b
	}
	return flip(b, -1)
}
