package groupcheck

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/wire"
)

// genuineChain returns the chain that a genuine unit of the asked role presents to its peers.
func (d cluster) genuineChain(ctx context.Context) (chain [][]byte, err error) {
	err = d.asRole(ctx, d.asked(), func(config *tls.Config) error {
		chain = config.Certificates[0].Certificate
		return nil
	})
	return chain, err
}

// forgedRefused forges certificates like an authority that ignores policy and the parties:
// copies of the asked role's certificates, under a new group root. It returns an error unless
// the holders abort the handshake, and unless the only defect of the forgery is that the parties
// do not approve its root.
func (d cluster) forgedRefused(ctx context.Context, genuine [][]byte) (string, error) {
	forged, err := forge(genuine)
	if err != nil {
		return "", fmt.Errorf("forging the %s's certificates: %w", d.roleName(d.asked()), err)
	}
	t, err := authorityclient.Trust(ctx, d.App, d.ClientPins())
	if err != nil {
		return "", err
	}
	chain := make([]*x509.Certificate, len(forged.Certificate))
	for i, der := range forged.Certificate {
		if chain[i], err = x509.ParseCertificate(der); err != nil {
			return "", err
		}
	}
	_, err = identity.Check(chain, t.AuthorityRoot(), identity.Expect{
		Policy: t.Policy(), Kinds: []identity.Kind{identity.KindGroup}, Use: identity.UseTLS, At: d.App.Now(), Group: d.Doc.Group, Roles: []string{d.roleName(d.asked())},
	})
	expected := []wire.Reason{wire.NoQuorum, wire.StaleRoster, wire.Withdrawn, wire.NotFound}
	if !slices.ContainsFunc(expected, func(r wire.Reason) bool { return errors.Is(err, r) }) {
		return "", fmt.Errorf("checking the forged certificates: got %v, want one of %v", err, expected)
	}
	for _, role := range d.Bin.Example.Holders() {
		config := &tls.Config{InsecureSkipVerify: true, ServerName: d.Doc.ServerName, MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{forged}}
		if err := turnedAway(ctx, d.Doc.Units[role].Address, config); !frame.IsAlert(err) {
			return "", fmt.Errorf("%s, called with forged certificates: got %v, want a TLS alert", d.roleName(role), err)
		}
	}
	return fmt.Sprintf("the %s's certificates under another group root refused [%s]", d.roleName(d.asked()), wire.ReasonOf(err)), nil
}

// forge returns copies of the leaf and the group root of a chain, with new keys.
func forge(genuine [][]byte) (tls.Certificate, error) {
	if len(genuine) < 2 {
		return tls.Certificate{}, fmt.Errorf("got %d certificates, want leaf and group root", len(genuine))
	}
	leaf, leafErr := x509.ParseCertificate(genuine[0])
	root, rootErr := x509.ParseCertificate(genuine[1])
	leafKey, leafKeyErr := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	rootKey, rootKeyErr := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err := errors.Join(leafErr, rootErr, leafKeyErr, rootKeyErr); err != nil {
		return tls.Certificate{}, err
	}
	for _, c := range []*x509.Certificate{leaf, root} {
		c.SubjectKeyId, c.AuthorityKeyId = nil, nil
		for _, e := range c.Extensions {
			if standard := len(e.Id) == 4 && e.Id[0] == 2 && e.Id[1] == 5 && e.Id[2] == 29; !standard {
				c.ExtraExtensions = append(c.ExtraExtensions, e)
			}
		}
	}
	root.PublicKey = rootKey.Public() // self-signed
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, rootKey.Public(), rootKey)
	if err != nil {
		return tls.Certificate{}, err
	}
	parent, err := x509.ParseCertificate(rootDER)
	if err != nil {
		return tls.Certificate{}, err
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, parent, leafKey.Public(), rootKey)
	return tls.Certificate{Certificate: [][]byte{leafDER, rootDER}, PrivateKey: leafKey}, err
}
