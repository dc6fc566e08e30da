// Package forwarded finds the address of a client behind proxies that the operator trusts to name
// it, in X-Forwarded-For or in Forwarded (RFC 7239), so that limits for each address count the
// client and not the proxy.
//
// It believes only what a trusted proxy has added, and only in the one field that the operator
// names: a client can send either field itself, and a proxy passes on the one that it does not
// write. From the last element on it goes back through elements of trusted proxies to the first
// one that is not, which the last trusted proxy has added. It refuses to trust every address.
package forwarded

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Fields that proxies write, in lower case.
const (
	FieldX        = "x-forwarded-for"
	FieldStandard = "forwarded"
)

// maxElements is the maximum number of elements that are read, from the last one.
const maxElements = 32

// Proxies are the trusted proxies and the field that they write. The zero Proxies trusts none.
type Proxies struct {
	trusted []netip.Prefix
	field   string
}

// ParseProxies reads networks (CIDR) or addresses of proxies, and the field that they write. It
// refuses all addresses as a network with "request", since every client could name any address.
func ParseProxies(networks []string, field string) (Proxies, error) {
	p := Proxies{field: strings.ToLower(field)}
	if p.field != FieldX && p.field != FieldStandard {
		return Proxies{}, wire.Refuse(wire.BadRequest, "trusted proxies: field", fmt.Sprintf("%q", field), FieldX+" or "+FieldStandard)
	}
	for _, network := range networks {
		prefix, err := netip.ParsePrefix(network)
		if address, single := netip.ParseAddr(network); single == nil && address.Zone() == "" {
			prefix, err = netip.PrefixFrom(address, address.BitLen()), nil
		}
		if err != nil || prefix.Masked() != prefix {
			return Proxies{}, wire.Refuse(wire.BadRequest, "trusted proxies: network", fmt.Sprintf("%q", network), "an address, or a network such as 10.0.0.0/8 without further bits")
		}
		if prefix.Bits() == 0 {
			return Proxies{}, wire.Refuse(wire.BadRequest, "trusted proxies: network", network, "the addresses of your proxies: every client could name any address")
		}
		p.trusted = append(p.trusted, prefix)
	}
	return p, nil
}

// Handler returns h with the RemoteAddr of each request that a trusted proxy sent replaced by the
// client's address, with port 0.
func (p Proxies) Handler(h http.Handler) http.Handler {
	if len(p.trusted) == 0 {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if client := p.clientOf(r); client.IsValid() {
			r = r.WithContext(r.Context()) // the server keeps using the original request
			r.RemoteAddr = netip.AddrPortFrom(client, 0).String()
		}
		h.ServeHTTP(w, r)
	})
}

// clientOf returns the address of the client of a request: the one that the last trusted proxy
// saw. If that proxy named none, it is the proxy's own. It is invalid if no trusted proxy sent
// the request.
func (p Proxies) clientOf(r *http.Request) (client netip.Addr) {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !p.trusts(peer.Addr()) {
		return netip.Addr{}
	}
	client = peer.Addr().Unmap()
	for _, node := range slices.Backward(p.nodes(r.Header)) {
		next, ok := parseNode(node)
		if !ok {
			return client
		}
		if client = next; !p.trusts(client) {
			return client
		}
	}
	return client
}

// nodes returns the nodes in the field, of the last maxElements elements. It reads each line by
// itself: a string that a client began must not hide what a proxy added in a line of its own.
func (p Proxies) nodes(h http.Header) (nodes []string) {
	for _, line := range h.Values(p.field) {
		if p.field == FieldX {
			nodes = append(nodes, strings.Split(line, ",")...)
			continue
		}
		for _, element := range splitField(line, ',') {
			nodes = append(nodes, parameterFor(element))
		}
	}
	return nodes[max(0, len(nodes)-maxElements):]
}

func (p Proxies) trusts(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	return slices.ContainsFunc(p.trusted, func(n netip.Prefix) bool { return n.Contains(a) })
}

// parameterFor returns the node of the parameter "for" of an element of Forwarded, without
// quotation marks, or "" if the element has none or several.
func parameterFor(element string) (node string) {
	for _, pair := range splitField(element, ';') {
		name, value, _ := strings.Cut(strings.TrimSpace(pair), "=")
		if !strings.EqualFold(name, "for") {
			continue
		}
		if node != "" {
			return ""
		}
		node = value
		if len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' {
			node = value[1 : len(value)-1] // an address contains no escaped character
		}
	}
	return node
}

// parseNode parses an address with or without a port. An IPv6 address with a port has brackets.
func parseNode(s string) (netip.Addr, bool) {
	s = strings.TrimSpace(s)
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		s = s[1 : len(s)-1]
	}
	address, err := netip.ParseAddr(s)
	if err != nil {
		with, portErr := netip.ParseAddrPort(s)
		address, err = with.Addr(), portErr
	}
	if err != nil || address.Zone() != "" {
		return netip.Addr{}, false
	}
	return address.Unmap(), true
}

// splitField splits a field at a separator outside of quoted strings (RFC 9110, section 5.6.4).
func splitField(s string, separator byte) (parts []string) {
	begin, quoted := 0, false
	for i := 0; i < len(s); i++ {
		switch {
		case quoted && s[i] == '\\':
			i++
		case s[i] == '"':
			quoted = !quoted
		case !quoted && s[i] == separator:
			parts = append(parts, s[begin:i])
			begin = i + 1
		}
	}
	return append(parts, s[min(begin, len(s)):])
}
