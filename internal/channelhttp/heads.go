package channelhttp

import (
	"encoding/base64"
	"net/http"

	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Heads connects the channel to the exchange of proved policy heads (docs/spec/head.md) in HTTP
// header fields. The channel passes heads on as bytes and neither parses nor fetches them; the
// receiver verifies them with [identity.ParseHead]. A lost head only causes a delay. The zero
// Heads exchanges no heads.
type Heads struct {
	// Newest returns the newest proved head, or nil. For the same head it returns the same
	// slice, which is never changed. It must not block.
	Newest func() []byte
	// Received is called with the peer's unverified head, at most [identity.MaxHead] bytes.
	// It may keep the slice. It must not block.
	Received func([]byte)
}

// newest returns the head to send. It is empty if there is none.
func (h Heads) newest() []byte {
	if h.Newest == nil {
		return nil
	}
	return h.Newest()
}

// receive passes the head in a header to Received. It ignores a malformed field.
func (h Heads) receive(header http.Header) {
	field := header.Get(wire.FieldHead)
	if field == "" || h.Received == nil {
		return
	}
	if unverified, err := identity.DecodeHeadField(field); err == nil {
		h.Received(unverified)
	}
}

// setHead sets the header field for a head, unless the head is empty.
func setHead(header http.Header, head []byte) {
	if len(head) > 0 {
		header.Set(wire.FieldHead, base64.RawURLEncoding.EncodeToString(head))
	}
}
