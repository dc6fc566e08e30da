package identity

import (
	"crypto/tls"
	"crypto/x509"
	"slices"

	"github.com/cohort-tee/cohort/internal/wire"
)

// ServerTLS returns a TLS 1.3 server configuration without session tickets. At each handshake
// the server presents the chain that certificate returns: the leaf, then its cross-certificate.
func ServerTLS(certificate func() (*tls.Certificate, error)) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		MaxVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		NextProtos:             []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return certificate()
		},
	}
}

// ClientTLS returns a TLS 1.3 client configuration without session cache. A handshake completes
// only if [Check] accepts the server and its leaf contains serverName. With an empty serverName
// the client sends no name, and only the URI, which Check verifies, identifies the server.
// Every handshake calls authorityRoot and expect, so that the newest policy applies.
func ClientTLS(serverName string, authorityRoot func() *x509.Certificate, expect func() Expect) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		MaxVersion: tls.VersionTLS13,
		ServerName: serverName,
		// This turns off only the chain building and the host name check of crypto/tls.
		// VerifyConnection replaces both; it runs in every handshake and is stricter.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			if _, err := Check(state.PeerCertificates, authorityRoot(), expect()); err != nil {
				return err
			}
			if leaf := state.PeerCertificates[0]; serverName != "" && !slices.Contains(leaf.DNSNames, serverName) {
				return wire.Refuse(wire.WrongName, "server name", leaf.DNSNames, serverName)
			}
			return nil
		},
	}
}
