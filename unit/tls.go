package unit

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"

	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// ServerTLS returns a live TLS 1.3 configuration that presents the unit's newest certificate.
// Handshakes fail when that certificate has expired. The configuration does not close
// connections whose certificate expires later; [Unit.Serve] and [Unit.Listen] do. In a group it
// completes a handshake only with a unit whose role may call this unit's role.
func (u *Unit) ServerTLS() *tls.Config { return u.serverTLS(tls.RequireAnyClientCert) }

// serverTLS is ServerTLS; in a group, peers says whether a client certificate is required or
// only requested.
func (u *Unit) serverTLS(peers tls.ClientAuthType) *tls.Config {
	config := identity.ServerTLS(nil)
	config.GetCertificate = u.certificate
	if u.config.Group != "" {
		config.ClientAuth = peers
		config.GetConfigForClient = u.admitPeers(config)
	}
	return config
}

// certificate returns the certificate for a handshake, and binds the lifetime of its [conn] to
// it.
func (u *Unit) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	e, err := u.currentEnrolment()
	if err != nil {
		return nil, err
	}
	u.counters.handshakes.Add(1)
	if c, ok := hello.Conn.(*conn); ok {
		c.setEnrolment(e, e.notAfter.Sub(u.currentTime()))
	}
	return e.leaf, nil
}

// ClientTLS returns a live TLS 1.3 configuration for calls to units of a task. It presents the
// unit's own certificate, and completes a handshake only with an identity that the newest policy
// names for the task. ClientTLS refuses with "not-allowed" a task that policy does not permit
// this unit's task to call. If a later policy withdraws the permission, handshakes fail.
func (u *Unit) ClientTLS(task string) (*tls.Config, error) {
	e, err := u.currentEnrolment()
	if err != nil {
		return nil, err
	}
	callee, err := findCallee(u.newest(), e.identity.Task, task)
	if err != nil {
		return nil, err
	}
	name := "" // a task without DNS names is identified by the URI in its leaf
	if len(callee.Names) > 0 {
		name = callee.Names[0]
	}
	config := identity.ClientTLS(name, u.authorityRoot, func() identity.Expect { return u.expectCallee(task) })
	config.GetClientCertificate = u.clientCertificate
	return config, nil
}

// clientCertificate returns the newest certificate, for handshakes as a client.
func (u *Unit) clientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	e, err := u.currentEnrolment()
	if err != nil {
		return nil, err
	}
	return e.leaf, nil
}

// findCallee returns a task if policy permits caller to call it.
func findCallee(p policy.Approved, caller, task string) (*policyfile.Task, error) {
	own, err := findTask(p, caller)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(own.Calls, task) {
		return nil, wire.Refuse(wire.NotAllowed, "call: task", task, own.Calls)
	}
	return findTask(p, task)
}

// expectCallee returns the requirements for a server of the task at this time. If policy permits
// none, it returns the zero Expect, which refuses every peer.
func (u *Unit) expectCallee(task string) identity.Expect {
	e, err := u.currentEnrolment()
	if err != nil {
		return identity.Expect{}
	}
	newest := u.newest()
	if _, err := findCallee(newest, e.identity.Task, task); err != nil {
		return identity.Expect{}
	}
	ids, err := identity.LiveIDs(newest, task)
	if err != nil {
		return identity.Expect{}
	}
	return identity.Expect{
		Policy: newest,
		Kinds:  []identity.Kind{identity.KindShared, identity.KindUnit},
		Use:    identity.UseTLS,
		IDs:    ids,
		At:     u.currentTime(),
	}
}

// Credentials are the certificate and key of a unit for TLS, in PEM, for programs that read them
// from files.
type Credentials struct {
	Chain []byte // certificate chain for TLS
	Key   []byte // private key of the leaf, PKCS #8
	Root  []byte // root under which only this identity verifies

	// Replaced is closed when the unit has newer credentials, and when the unit is closed.
	Replaced <-chan struct{}
}

// Credentials returns the newest credentials, even if [Unit.Ready] returns an error. It refuses
// with "not-enrolled" after Close.
func (u *Unit) Credentials() (Credentials, error) {
	e := u.enrolled.Load()
	if e == nil {
		return Credentials{}, wire.Refuse(wire.NotEnrolled, "unit: certificate", "no certificate", "an enrolled unit")
	}
	key, err := x509.MarshalPKCS8PrivateKey(e.leaf.PrivateKey)
	if err != nil {
		return Credentials{}, fmt.Errorf("encoding the key: %w", err)
	}
	c := Credentials{Key: pemOf("PRIVATE KEY", key), Root: pemOf("CERTIFICATE", e.identity.Root), Replaced: e.replaced}
	for _, der := range e.leaf.Certificate {
		c.Chain = append(c.Chain, pemOf("CERTIFICATE", der)...)
	}
	return c, nil
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
