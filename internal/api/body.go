package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"

	"github.com/cohort-tee/cohort/internal/wire"
)

// ReadBody parses the JSON body of a request of at most limit bytes into v. It refuses another
// content type, an unknown field and trailing data with reason "request", and a longer body
// with "too-large".
func ReadBody(w http.ResponseWriter, r *http.Request, limit int64, v any) error {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" {
		return wire.Refuse(wire.BadRequest, "request: content type", r.Header.Get("Content-Type"), "application/json")
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		return wire.Refuse(wire.TooLarge, "request: size in bytes", fmt.Sprint("more than ", limit), limit)
	}
	if err != nil {
		return wire.Refuse(wire.BadRequest, "request: body", err, "a complete body")
	}
	return Decode(body, v)
}

// Decode parses exactly one JSON value into v, which must have a field for every name in the
// value. It refuses other input with reason "request". A refusal by a field's own decoder
// keeps its reason.
func Decode(body []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		var refusal *wire.Refusal
		if errors.As(err, &refusal) {
			return refusal
		}
		return wire.Refuse(wire.BadRequest, "request: JSON", err, "the fields of the API")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return wire.Refuse(wire.BadRequest, "request: JSON", fmt.Sprint("trailing data after byte ", d.InputOffset()), "one value")
	}
	return nil
}
