package localproxy

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/cohort-tee/cohort/internal/wire"
)

// unixPrefix begins the address of a Unix socket.
const unixPrefix = "unix:"

// Address is where a proxy listens: HOST:PORT, or unix:PATH for a Unix socket.
type Address struct {
	path string // of a Unix socket, or empty
	host string
	port string
}

// ParseAddress parses the text of an address. It refuses, with "request", any other form.
func ParseAddress(text string) (a Address, err error) {
	path, isUnix := strings.CutPrefix(text, unixPrefix)
	if isUnix && path != "" && hasUnixSockets {
		return Address{path: path}, nil
	}
	if a.host, a.port, err = net.SplitHostPort(text); err != nil || isUnix {
		return Address{}, wire.Refuse(wire.BadRequest, "proxy: address", text, addressForms)
	}
	return a, nil
}

// IsLocal reports whether only programs of this machine can reach the address. It looks up a name.
func (a Address) IsLocal(ctx context.Context) (bool, error) {
	if a.path != "" {
		return true, nil
	}
	if a.host == "" {
		return false, nil
	}
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", a.host)
	for _, ip := range found {
		if !ip.Unmap().IsLoopback() {
			return false, nil
		}
	}
	return err == nil, err
}

// HostName returns the name of the listener, for [Config.Name].
func (a Address) HostName() string {
	if _, err := netip.ParseAddr(a.host); err == nil {
		return ""
	}
	return a.host
}

// Listen listens at the address. A Unix socket is for this user alone (mode 0600); Listen replaces
// one at which no program listens, and refuses any other file.
func (a Address) Listen(ctx context.Context) (net.Listener, error) {
	if a.path != "" {
		return listenUnix(ctx, a.path)
	}
	return new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(a.host, a.port))
}

// BaseURL returns the URL that programs use as base, or the form of the address for a Unix socket.
func (a Address) BaseURL(l net.Listener) string {
	if a.path != "" {
		return unixPrefix + a.path
	}
	at := l.Addr().(*net.TCPAddr)
	if host := at.IP.String(); a.host != "" && !at.IP.IsUnspecified() {
		return "http://" + net.JoinHostPort(host, strconv.Itoa(at.Port))
	}
	return "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(at.Port))
}

// portOf returns the port of an address as text.
func portOf(a netip.AddrPort) string { return strconv.Itoa(int(a.Port())) }
