package channelhttp

import (
	"encoding/base64"
	"net/http"

	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Heads is how proved policy heads (docs/spec/head.md) travel beside sessions: as
// bytes that their receiver checks with [identity.ParseHead]. The channel does not
// parse or fetch them; a lost head costs time. The zero Heads passes none.
type Heads struct {
	// Newest returns the newest proved head, or nil. It returns the same slice for the
	// same head, which is never changed. It does not block.
	Newest func() []byte
	// Received is called with the other side's head, unchecked, at most
	// [identity.MaxHead] bytes, which it may keep. It does not block.
	Received func([]byte)
}

// newest returns the head to send; empty: none.
func (h Heads) newest() []byte {
	if h.Newest == nil {
		return nil
	}
	return h.Newest()
}

// receive passes on the head in a header. A field that is no head is ignored.
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
