package natsd

import (
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"net/url"
	"regexp"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/nats-io/nats-server/v2/server"
)

// Join configures the NATS cluster that a server joins as a leaf node. The zero Join means no
// cluster. The cluster is untrusted; the check of its certificate protects only availability.
type Join struct {
	URLs []string       // URLs of leaf node ports; they may contain a user and password
	CA   *x509.CertPool // nil: the system's roots

	// JetStream is the cluster's JetStream domain, in which a stream stores the items that
	// managers push. "" means that no stream is used.
	JetStream string
}

// Times of the link to an external cluster.
const (
	reconnectInterval = 500 * time.Millisecond // between attempts to connect, plus jitter of up to the same time
	joinDial          = time.Second
)

// domainName matches the names of JetStream domains.
var domainName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// Validate checks the URLs and the domain. A URL is tls://host:port, or nats://IP:port on
// loopback.
func (j Join) Validate() error {
	if j.JetStream != "" && (len(j.URLs) == 0 || !domainName.MatchString(j.JetStream)) {
		return wire.Refuse(wire.BadRequest, "nats: domain of JetStream", j.JetStream, "1 to 64 of A-Z, a-z, 0-9, _ and -, and a URL")
	}
	_, err := j.parseURLs()
	return err
}

func (j Join) parseURLs() (list []*url.URL, err error) {
	for _, text := range j.URLs {
		u, err := url.Parse(text)
		if err != nil || u.Hostname() == "" || u.Port() == "" || u.Path != "" || u.Scheme != "tls" && !isLoopbackURL(u) {
			// Do not repeat the URL, which may contain a password.
			return nil, wire.Refuse(wire.BadRequest, "nats: URL", "a URL of another form", "tls://host:port, or nats://IP:port on loopback")
		}
		list = append(list, u)
	}
	return list, nil
}

func isLoopbackURL(u *url.URL) bool {
	ip, err := netip.ParseAddr(u.Hostname())
	return err == nil && ip.IsLoopback() && u.Scheme == "nats"
}

// configure configures the server as a leaf node.
func (j Join) configure(o *server.Options) error {
	urls, err := j.parseURLs()
	if err != nil || len(urls) == 0 {
		return err
	}
	remote := &server.RemoteLeafOpts{URLs: urls, DialTimeout: joinDial}
	for _, u := range urls {
		remote.TLS = remote.TLS || u.Scheme == "tls"
	}
	if remote.TLS {
		remote.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: j.CA}
	}
	o.LeafNode = server.LeafNodeOpts{Remotes: []*server.RemoteLeafOpts{remote}, ReconnectInterval: reconnectInterval}
	return nil
}

// Joined reports whether the link to the external cluster is up.
func (s *Server) Joined() bool { return s.nats.NumLeafNodes() > 0 }
