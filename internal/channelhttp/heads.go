package channelhttp

import (
	"encoding/base64"
	"net/http"

	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Heads is how proved policy heads (docs/spec/head.md) travel beside sessions: as
// bytes that their receiver checks with [identity.ParseHead]. The channel reads nothing
// in them and fetches nothing; a head that is lost costs time. The zero Heads passes
// none.
type Heads struct {
	// Newest is the newest proved head there is, and nil where there is none. It is
	// the same slice for the same head, and nobody changes it. It does not block.
	Newest func() []byte
	// Received is called with what came from the other side, unchecked, at most
	// [identity.MaxHead] bytes, which it may keep. It does not block.
	Received func([]byte)
}

// newest is the head to send.
func (h Heads) newest() []byte {
	if h.Newest == nil {
		return nil
	}
	return h.Newest()
}

// receive hands on the head in a header. What is none is passed over, as a head that is
// lost.
func (h Heads) receive(header http.Header) {
	field := header.Get(wire.FieldHead)
	if field == "" || h.Received == nil {
		return
	}
	if unverified, err := identity.DecodeHeadField(field); err == nil {
		h.Received(unverified)
	}
}

// setHead puts a head into a header; an empty one is none.
func setHead(header http.Header, head []byte) {
	if len(head) > 0 {
		header.Set(wire.FieldHead, base64.RawURLEncoding.EncodeToString(head))
	}
}
