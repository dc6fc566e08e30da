package channelhttp

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Maximum sizes, in bytes, of messages before fresh evidence.
const (
	maxRetryProblem = 16 << 10 // a problem with an introduction in base64
	maxCredential   = 1 << 10
)

// retryProblem is the problem (RFC 9457) that asks a client to send its open request again.
type retryProblem struct {
	api.Problem
	Introduction []byte `json:"introduction,omitempty"`
}

// wantAgain responds to an open request that the client must send again. The response contains
// the cookie and, if the client must challenge the unit, the unit's introduction.
func (s *Server) wantAgain(w http.ResponseWriter, body []byte, at time.Time, cause error) error {
	cookie, err := s.config.Host.Cookie(body, at)
	if err != nil {
		return errors.Join(cause, err)
	}
	p := retryProblem{problemFor(cause), nil}
	if channel.WantsEvidence(body) {
		if tee, ok := s.config.Attester.(attest.CredentialAttester); ok {
			p.Introduction = unitauth.Introduction{Unit: s.config.Host.ID(), TPMKeys: tee.TPMKeys()}.Encode()
		}
	}
	w.Header().Set(wire.FieldCookie, base64.RawURLEncoding.EncodeToString(cookie))
	w.Header().Set("Content-Type", api.TypeProblem)
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // the client may be gone
	return nil
}

// credentialOf returns the credential in a request. It is empty if the request has none.
func credentialOf(r *http.Request) ([]byte, error) {
	credential, err := base64.RawURLEncoding.DecodeString(r.Header.Get(wire.FieldCredential))
	if err != nil || len(credential) > maxCredential {
		return nil, wire.Refuse(wire.BadRequest, "open request: credential", len(credential), "at most 1024 bytes in base64url")
	}
	return credential, nil
}

// retryWith contains the header fields of an open request that is sent again. The zero value has
// no field.
type retryWith struct {
	cookie     string
	unit       wire.UnitID // unit to send the request to; zero: any unit
	credential []byte      // challenge for that unit; nil if it did not introduce itself
}

// retryOf returns the fields that a unit wants in the next open request. It challenges a unit
// that introduces itself.
func (t *Transport) retryOf(o *channel.ClientHandshake, response *http.Response) (next retryWith, err error) {
	o.Unchallenge()
	next.cookie = response.Header.Get(wire.FieldCookie)
	verifier := t.config.Trust.Trust().Verifier
	if next.cookie == "" || t.config.Options&channel.WantEvidence == 0 || verifier == nil {
		return next, nil
	}
	var p retryProblem
	b, err := io.ReadAll(io.LimitReader(response.Body, maxRetryProblem))
	if err != nil || json.Unmarshal(b, &p) != nil || len(p.Introduction) == 0 {
		return next, err
	}
	next.unit, next.credential, err = o.Challenge(p.Introduction, verifier)
	if err != nil {
		return retryWith{}, err
	}
	return next, nil
}

// setHeader sets the fields in the header of a request.
func (a retryWith) setHeader(h http.Header) {
	if a.cookie != "" {
		h.Set(wire.FieldCookie, a.cookie)
	}
	if a.credential != nil {
		h.Set(wire.FieldCredential, base64.RawURLEncoding.EncodeToString(a.credential))
	}
	if a.unit != (wire.UnitID{}) {
		h.Set(wire.FieldUnit, a.unit.String())
	}
}
