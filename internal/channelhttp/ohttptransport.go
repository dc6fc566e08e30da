package channelhttp

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/ohttp"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// OHTTPConfig configures an [OHTTPTransport]. Every field is required except Valid, Whole and
// Blinder.
type OHTTPConfig struct {
	URL   *url.URL          // URL at the gateway, or at a relay; untrusted
	Inner http.RoundTripper // sends outer requests
	Keys  unitauth.OHTTPKeys
	// Valid returns an error once policy has cut off a unit that may have the keys. From then
	// on the rest of a response is refused. Nil never refuses.
	Valid func() error
	// Whole sends requests in one piece, for gateways that support only RFC 9458. Requests
	// and responses are then buffered whole, at most 256 KiB each.
	Whole bool
	// Blinder makes the affinity keys of requests. Nil sends none.
	Blinder *Blinder
}

// OHTTPTransport is an [http.RoundTripper] that sends each request independently, over
// Oblivious HTTP, to any server that has the private keys. An intermediary can deliver a request
// many times. An OHTTPTransport is safe for concurrent use.
type OHTTPTransport struct {
	config OHTTPConfig
	form   ohttp.Form
}

// NewOHTTPTransport makes a transport. It refuses an incomplete configuration with "request".
func NewOHTTPTransport(c OHTTPConfig) (*OHTTPTransport, error) {
	if c.URL == nil || c.Inner == nil || !c.Keys.IsSet() {
		return nil, wire.Refuse(wire.BadRequest, "one-off: configuration", "a required field is not set", "URL, inner, keys")
	}
	o := &OHTTPTransport{config: c, form: ohttp.Chunks}
	if c.Whole {
		o.form = ohttp.Whole
	}
	return o, nil
}

// RoundTrip sends a request once. It returns the response of a server that has the private key
// to exactly this request, unchanged. It fails with "ohttp-key" when the gateway reports that no
// unit has the key, with "rate" when the gateway reports too many requests, with "unavailable"
// for any other response of the gateway itself, and with "truncated" when a response ends early.
func (o *OHTTPTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := o.roundTrip(r)
	if err != nil {
		return nil, fmt.Errorf("calling %s %s: %w", r.Method, r.URL.Redacted(), err)
	}
	return response, nil
}

func (o *OHTTPTransport) roundTrip(r *http.Request) (*http.Response, error) {
	sent, err := o.sealRequest(r)
	if err != nil {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, err
	}
	outer := (&http.Request{
		Method: http.MethodPost, URL: o.config.URL, Host: o.config.URL.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Content-Type": {o.form.RequestType}, "User-Agent": nil}, Body: sent, ContentLength: bhttp.Indeterminate,
	}).WithContext(r.Context())
	if whole := sent.Whole(); whole != nil { // net/http may send it again if an idle connection turns out to be closed
		defer sent.Close()
		outer.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(whole)), nil }
		outer.Body, outer.ContentLength = io.NopCloser(bytes.NewReader(whole)), int64(len(whole))
		outer.Header["X-Idempotency-Key"] = []string{} // makes net/http retry; it is not sent
	}
	if o.form.Chunked {
		outer.Header["Incremental"] = []string{"?1"} // so that no relay buffers the whole request
	}
	if name := r.Header.Get(wire.FieldAffinity); name != "" && o.config.Blinder != nil {
		outer.Header[wire.FieldAffinity] = []string{string(o.config.Blinder.Blind(name))}
	}
	response, err := o.config.Inner.RoundTrip(outer)
	if err != nil {
		return nil, err
	}
	opened, err := openOHTTP(sent, r, response)
	if err != nil {
		response.Body.Close()
	}
	return opened, err
}

// sealRequest seals a request.
func (o *OHTTPTransport) sealRequest(r *http.Request) (*channel.OHTTPClientRequest, error) {
	h, body := headOf(r), r.Body
	if body == nil || body == http.NoBody {
		h.Length, body = 0, http.NoBody
	} else if h.Length <= 0 {
		h.Length = bhttp.Indeterminate
	}
	return channel.SealOHTTP(o.config.Keys, h, channel.OHTTPRequestConfig{Form: o.form, Body: body, Trailer: r.Trailer, Valid: o.config.Valid})
}

// openOHTTP opens the inner response in an outer response.
func openOHTTP(sent *channel.OHTTPClientRequest, r *http.Request, outer *http.Response) (*http.Response, error) {
	f, err := ohttp.ResponseForm(outer.Header.Get("Content-Type"))
	if outer.StatusCode != http.StatusOK || err != nil {
		return nil, gatewayRefusal(outer)
	}
	h, content, err := sent.Open(f, outer.Body)
	if err != nil {
		return nil, err
	}
	content.Closer = outer.Body
	return h.Response(r, content)
}

// maxGatewayResponse is the maximum number of bytes read of a response of the gateway itself.
const maxGatewayResponse = 16 << 10

// gatewayRefusal returns the error for an outer response that contains no inner response. The
// outer response is not authenticated.
func gatewayRefusal(outer *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(outer.Body, maxGatewayResponse))
	var p struct{ Type string }
	if json.Unmarshal(bytes.TrimSpace(b), &p) == nil && p.Type == typeOneOffKey {
		return wire.Refuse(wire.OneOffKey, "one-off: key", "not known to the units", "a key of the current key configuration")
	}
	if outer.StatusCode == http.StatusTooManyRequests {
		return wire.Refuse(wire.TooMany, "one-off: requests of this address", "more than its quota", "fewer")
	}
	return wire.Refuse(wire.Unavailable, "one-off: status of the outer response", outer.StatusCode, http.StatusOK)
}
