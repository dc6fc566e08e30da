package unit

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"slices"

	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// Peer is a unit of a different role or task, with a verified certificate.
type Peer = identity.Peer

// PeerOf returns the unit of the group that sent a request to [Unit.Serve]. The group permits
// the role [Peer.Role] to call this unit's role. ok is false for requests of sessions.
func PeerOf(ctx context.Context) (p Peer, ok bool) {
	c, _ := ctx.Value(connKey{}).(*conn)
	if c == nil {
		return Peer{}, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.peer, c.peer.Verified()
}

// PeerTLS returns a live TLS 1.3 configuration for connections with units of a role in the
// unit's own group. A client uses it to call them and a server to be called by them, each only
// if the group's calls permit it. It presents the unit's newest certificate. It completes a
// handshake only with a leaf of exactly that role, under the newest roster that the unit has
// seen and that the group's parties approve.
//
// The configuration does not close connections whose peer is cut off later: [Unit.Serve] and
// [Unit.Dial] do.
//
// PeerTLS refuses a group other than the unit's with "group", and a role that may neither call
// the unit's role nor be called by it with "not-allowed".
func (u *Unit) PeerTLS(group, role string) (*tls.Config, error) {
	if _, err := u.currentEnrolment(); err != nil {
		return nil, err
	}
	if group == "" || group != u.config.Group {
		return nil, wire.Refuse(wire.WrongGroup, "peer: group", group, u.config.Group)
	}
	if len(u.expectPeer(u.mayCall, role).Roles)+len(u.expectPeer(u.mayBeCalledBy, role).Roles) == 0 {
		return nil, wire.Refuse(wire.NotAllowed, "peer: role", role, "a role that "+u.config.Role+" calls or is called by")
	}
	config := identity.ClientTLS("", u.authorityRoot, nil)
	config.GetClientCertificate = u.clientCertificate
	config.VerifyConnection = func(s tls.ConnectionState) error {
		_, err := u.checkPeer(s, u.expectPeer(u.mayCall, role))
		return err
	}
	server := identity.ServerTLS(nil)
	server.GetCertificate, server.ClientAuth = u.certificate, tls.RequireAnyClientCert
	server.VerifyConnection = func(s tls.ConnectionState) error {
		_, err := u.checkPeer(s, u.expectPeer(u.mayBeCalledBy, role))
		return err
	}
	config.GetCertificate, config.ClientAuth = u.certificate, tls.RequireAnyClientCert
	config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return server, nil }
	return config, nil
}

// admitPeers returns a function that, for each connection, returns config with a check of the
// peer's certificate. The check records the peer on the connection.
func (u *Unit) admitPeers(config *tls.Config) func(*tls.ClientHelloInfo) (*tls.Config, error) {
	return func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		own := config.Clone()
		own.VerifyConnection = func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return nil // the certificate was only requested: a gateway has none, and membersOnly refuses other clients
			}
			p, err := u.checkPeer(s, u.expectPeer(u.mayBeCalledBy, u.roles()...))
			if c, ok := hello.Conn.(*conn); ok && err == nil {
				c.setPeer(p, u.currentTime())
				return c.checkStillAllowed() // the unit may have adopted a policy in the meantime
			}
			return err
		}
		return own, nil
	}
}

// checkPeer verifies the chain that the peer presented. An unknown identity may come from a
// policy that the unit has not seen yet, so the unit requests an early renewal.
func (u *Unit) checkPeer(s tls.ConnectionState, e identity.Expect) (Peer, error) {
	p, err := identity.Check(s.PeerCertificates, u.authorityRoot(), e)
	if errors.Is(err, wire.StaleRoster) || errors.Is(err, wire.NoQuorum) || errors.Is(err, wire.Withdrawn) {
		u.renewSoon()
	}
	return p, err
}

// groupState returns the newest state of the unit's group that its parties approve, including
// the unit's own party, or nil if there is none.
func (u *Unit) groupState() *policy.GroupState {
	at := u.currentTime()
	for p := u.seen.Load().Policy().GroupByName(u.config.Group); p != nil; p = p.Predecessor {
		for _, root := range p.Roots(at) {
			if identity.CheckApprovers(p, root, u.config.PartyKeys, at) == nil {
				return p
			}
		}
	}
	return nil
}

func (u *Unit) roles() []string {
	if p := u.groupState(); p != nil {
		return p.Group.RoleNames()
	}
	return nil
}

func (u *Unit) mayCall(p *policy.GroupState, role string) bool {
	return p.Group.MayCall(u.config.Role, role)
}

func (u *Unit) mayBeCalledBy(p *policy.GroupState, role string) bool {
	return p.Group.MayCall(role, u.config.Role)
}

// expectPeer returns the requirements for a peer in one of the roles at this time. It omits
// roles for which may returns false. If no role is left, the requirements refuse every peer.
func (u *Unit) expectPeer(may func(*policy.GroupState, string) bool, roles ...string) identity.Expect {
	e := identity.Expect{
		Policy: u.seen.Load().Policy(), Kinds: []identity.Kind{identity.KindGroup}, Use: identity.UseTLS,
		At: u.currentTime(), Group: u.config.Group, Parties: u.config.PeerParties, Approvers: u.config.PartyKeys,
	}
	if p := u.groupState(); p != nil {
		e.Roles = slices.DeleteFunc(slices.Clone(roles), func(role string) bool { return !may(p, role) })
	}
	return e
}

// membersOnly restricts h to requests of the group's units and of sessions. Outside groups it
// returns h.
func (u *Unit) membersOnly(h http.Handler) http.Handler {
	if u.config.Group == "" {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, session := CallerOf(r.Context())
		if _, peer := PeerOf(r.Context()); !session && !peer {
			err := wire.Refuse(wire.NotAllowed, "request", "without a certificate of the group", "a unit whose role may call "+u.config.Role+", or a session")
			api.ProblemOf(err).Write(w)
			return
		}
		h.ServeHTTP(w, r)
	})
}
