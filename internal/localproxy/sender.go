package localproxy

import (
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/cohort-tee/cohort/internal/wire"
)

// FieldToken is the request field for the token of the proxy. SDKs have no use of their own for
// it. It is never forwarded.
const FieldToken = "Cohort-Proxy-Token"

// fieldKey is the field in which some SDKs send an API key, and others in Authorization.
const fieldKey = "X-Api-Key"

// loopbackName is the name of this machine for itself, which no DNS server resolves.
const loopbackName = "localhost"

// maxPreflight limits the fields that a page may ask for, in bytes.
const maxPreflight = 4 << 10

// checkSender returns the problem of a request that the proxy must not forward, or nil. A page in
// a browser on this machine can send requests to the proxy, and so can other users of the machine.
// A page cannot choose the field Host, Origin or Sec-Fetch-Site.
func (p *Proxy) checkSender(r *http.Request) *problem {
	if refused := checkForm(r); refused != nil {
		return refused
	}
	if host := r.Host; !p.isOwnHost(r) {
		return refusal(http.StatusForbidden, wire.WrongName, "request: field Host", host, "the address at which the proxy listens, or its name: the base URL is the one that the proxy printed")
	}
	origin := r.Header["Origin"]
	if len(origin) > 0 && !p.allowsOrigin(r) {
		return refusal(http.StatusForbidden, wire.NotAllowed, "request: field Origin", strings.Join(origin, ", "), "none, or one of --allow-origin: pages use the proxy only with it")
	}
	// Browsers leave out Origin in some requests of pages, for example for images.
	if from := r.Header.Get("Sec-Fetch-Site"); len(origin) == 0 && from != "" && from != "none" && from != "same-origin" {
		return refusal(http.StatusForbidden, wire.NotAllowed, "request: field Sec-Fetch-Site", from, "none or same-origin: another page sent the request")
	}
	if !isPreflight(r) && !p.hasToken(r.Header) {
		return refusal(http.StatusUnauthorized, wire.NotAllowed, "request: token", "a missing or wrong one", "that of --token-file in "+FieldToken+", or as API key")
	}
	return nil
}

// checkForm refuses a request that is for another server or that has no end of its own.
func checkForm(r *http.Request) *problem {
	switch {
	case r.ProtoMajor != 1 || r.ProtoMinor < 1:
		// A response of unknown length over HTTP/1.0 ends with the connection, also when it was cut.
		return refusal(http.StatusHTTPVersionNotSupported, wire.BadRequest, "request: version", r.Proto, "HTTP/1.1")
	case r.Method == http.MethodConnect:
		return refusal(http.StatusMethodNotAllowed, wire.BadRequest, "request: method", r.Method, "one for a path: the proxy is a base URL, and not for a variable like https_proxy")
	case !strings.HasPrefix(r.RequestURI, "/"):
		return refusal(http.StatusBadRequest, wire.BadRequest, "request: target", "not a path", "a path: the proxy is a base URL, and not for a variable like http_proxy")
	}
	return nil
}

// isOwnHost reports whether the field Host is the address at which the request arrived, or a name
// of the listener. Otherwise a page whose name resolves to this machine (DNS rebinding) could use
// the proxy and read responses.
func (p *Proxy) isOwnHost(r *http.Request) bool {
	host := (&url.URL{Host: r.Host}).Hostname()
	local, isTCP := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	if !isTCP { // a Unix socket, which no browser reaches
		return strings.EqualFold(host, loopbackName)
	}
	at := local.AddrPort()
	if port := (&url.URL{Host: r.Host}).Port(); port != portOf(at) && !(port == "" && at.Port() == 80) {
		return false
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap() == at.Addr().Unmap().WithZone("")
	}
	isLoopback := at.Addr().Unmap().IsLoopback() && strings.EqualFold(host, loopbackName)
	return isLoopback || p.config.Name != "" && strings.EqualFold(host, p.config.Name)
}

// allowsOrigin reports whether the request is of one page, and its origin is allowed.
func (p *Proxy) allowsOrigin(r *http.Request) bool {
	origin := r.Header["Origin"]
	return len(origin) == 1 && slices.Contains(p.config.Origins, origin[0])
}

// hasToken reports whether the fields contain the token, in constant time. Programs that can set
// nothing but an API key send it as that.
func (p *Proxy) hasToken(h http.Header) bool {
	if p.config.Token == "" || p.isToken(h.Get(FieldToken)) || p.isToken(h.Get(fieldKey)) {
		return true
	}
	scheme, key, _ := strings.Cut(h.Get("Authorization"), " ")
	return strings.EqualFold(scheme, "Bearer") && p.isToken(key)
}

// isToken reports whether a text is the token. Digests are compared, so that neither the text nor
// the length of the token shows in the time.
func (p *Proxy) isToken(text string) bool {
	got, want := sha256.Sum256([]byte(text)), sha256.Sum256([]byte(p.config.Token))
	return subtle.ConstantTimeCompare(got[:], want[:]) == 1
}

// removeToken removes the token from all fields. What else they contain, such as an API key of the
// service, stays.
func (p *Proxy) removeToken(h http.Header) {
	h.Del(FieldToken)
	if p.config.Token == "" {
		return
	}
	for name, values := range h {
		if h[name] = slices.DeleteFunc(values, func(v string) bool { return strings.Contains(v, p.config.Token) }); len(h[name]) == 0 {
			delete(h, name)
		}
	}
}

// isPreflight reports whether a browser asks whether a page may send a request (Fetch standard).
func isPreflight(r *http.Request) bool {
	return r.Method == http.MethodOptions && len(r.Header["Origin"]) > 0 && r.Header.Get("Access-Control-Request-Method") != ""
}

// openToPage lets the page of an allowed origin read the response.
func openToPage(h http.Header, origin string) {
	h.Set("Access-Control-Allow-Origin", origin)
	h.Set("Access-Control-Expose-Headers", "*")
	h.Add("Vary", "Origin")
}

// servePreflight permits what an allowed page asks for.
func servePreflight(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Access-Control-Allow-Methods", r.Header.Get("Access-Control-Request-Method"))
	if fields := strings.Join(r.Header.Values("Access-Control-Request-Headers"), ","); fields != "" && len(fields) <= maxPreflight {
		h.Set("Access-Control-Allow-Headers", fields)
	}
	h.Set("Access-Control-Allow-Private-Network", "true")
	h.Set("Access-Control-Max-Age", "600")
	w.WriteHeader(http.StatusNoContent)
}
