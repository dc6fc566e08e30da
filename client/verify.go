package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/wire"
)

// ReportSchema is the schema of [Report].
const ReportSchema = "cohort/verify/v1"

// Report describes a cluster whose checks all passed. There is no report of a failed check.
type Report struct {
	Schema   string         `json:"schema"`
	Hardware HardwareReport `json:"hardware"`
	Code     CodeReport     `json:"code"`
	Policy   PolicyReport   `json:"policy"`
	Key      KeyReport      `json:"key"`
	Cluster  ClusterReport  `json:"cluster"`
}

// HardwareReport describes the TEEs. The client appraised the authority's own evidence
// for this report. The authority appraised the units' evidence when it issued their
// certificates, on the platforms that the policy accepts.
type HardwareReport struct {
	Authority   attest.Platform   `json:"authority"`
	Chip        string            `json:"authority_chip"`
	Debug       bool              `json:"authority_debug"`
	Units       []attest.Platform `json:"units"`
	Development bool              `json:"development"` // if true, nothing is protected from the host
	// Collateral contains the times at which the authority fetched vendor documents.
	Collateral []attest.Fetched `json:"authority_collateral,omitempty"`
}

// CodeReport describes the program that has the certificate's key.
type CodeReport struct {
	Task         string        `json:"task"`
	Release      string        `json:"release"`
	Identity     attest.Digest `json:"identity"`
	Measurements []string      `json:"measurements"`
	Authority    string        `json:"authority_measurement"`
	// Dynamic lists the releases of the identity that may load unmeasured code: shared
	// libraries, or everything that an interpreter runs.
	Dynamic []string `json:"dynamic"`
}

// PolicyReport describes the policy that the owners signed.
type PolicyReport struct {
	TrustDomain string        `json:"trust_domain"`
	Genesis     attest.Digest `json:"genesis"`
	Sequence    uint64        `json:"sequence"`
	Digest      attest.Digest `json:"digest"`
	Head        attest.Digest `json:"head"`
	Created     time.Time     `json:"created"`
	Owners      []string      `json:"owners"`
	Quorum      int           `json:"quorum"`
}

// KeyReport describes the certificate that the unit presents in TLS.
type KeyReport struct {
	Kind      identity.Kind `json:"kind"`
	Mode      string        `json:"mode"`
	Serial    string        `json:"serial"`
	NotBefore time.Time     `json:"not_before"`
	NotAfter  time.Time     `json:"not_after"`
	Authority attest.Digest `json:"authority_root"`
}

// ClusterReport describes the cluster and the replica at each address. OneIdentity reports
// whether all replicas that responded have the same identity.
type ClusterReport struct {
	ServerName  string          `json:"server_name"`
	OneIdentity bool            `json:"one_identity"`
	Addresses   []AddressReport `json:"addresses"`
}

// AddressReport describes the replica at one address. Error is set if it did not respond.
type AddressReport struct {
	Address  string        `json:"address"`
	Identity attest.Digest `json:"identity,omitzero"`
	Serial   string        `json:"serial,omitempty"`
	Error    string        `json:"error,omitempty"`
}

// Verify does a handshake with every replica at an address, "host:port", and returns a
// report of the verified identities. It refuses when any replica fails a check under
// Trust, and fails with [ErrUnreachable] when no replica responds. It sends no request.
func Verify(ctx context.Context, address string, config Config) (*Report, error) {
	config.Addresses = []string{address}
	c, err := New(config)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.ensureAddresses(ctx); err != nil {
		return nil, err
	}
	cluster := ClusterReport{ServerName: c.config.ServerName, OneIdentity: true}
	var first *conn
	var cause error
	for _, r := range c.pool.allReplicas() {
		opened, err := c.connectUnder(ctx, config.Trust, r)
		if isRefusal(err) {
			return nil, fmt.Errorf("verifying %s: %w", r.address, err)
		}
		if err != nil {
			cause = errors.Join(cause, err)
			cluster.Addresses = append(cluster.Addresses, AddressReport{Address: r.address, Error: err.Error()})
			continue
		}
		if first == nil {
			first = opened
		}
		one := c.describe(opened)
		cluster.OneIdentity = cluster.OneIdentity && one.Identity == c.describe(first).Identity
		cluster.Addresses = append(cluster.Addresses, one)
	}
	if first == nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, cause)
	}
	return c.report(first, cluster)
}

// describe returns the report of a verified peer.
func (c *Client) describe(opened *conn) AddressReport {
	peer, err := c.checkedPeer(opened)
	if err != nil { // only if the peer's certificate has expired since the handshake
		return AddressReport{Address: opened.replica.address, Error: err.Error()}
	}
	serial := opened.peer.PeerCertificates[0].SerialNumber.Text(16)
	return AddressReport{Address: opened.replica.address, Identity: peer.ID(), Serial: serial}
}

func (c *Client) checkedPeer(opened *conn) (identity.Peer, error) {
	trust := c.config.Trust
	return identity.Check(opened.peer.PeerCertificates, trust.root, trust.expect(c.currentTime()))
}

// report returns the report of a cluster. Its certificate and code are those of the first
// replica that responded.
func (c *Client) report(opened *conn, cluster ClusterReport) (*Report, error) {
	peer, err := c.checkedPeer(opened)
	if err != nil {
		return nil, err
	}
	trust := c.config.Trust
	i := slices.IndexFunc(trust.identities, func(i Identity) bool { return i.ID == peer.ID() })
	known, leaf := trust.identities[i], opened.peer.PeerCertificates[0]
	doc, p := trust.Policy().Document(), trust.Policy()
	r := &Report{
		Schema: ReportSchema,
		Hardware: HardwareReport{
			Authority: trust.evidence.Measurement().Platform, Chip: trust.evidence.ChipID(), Debug: trust.evidence.Debug(),
			Development: doc.Development, Collateral: trust.evidence.Fetched(),
		},
		Code: CodeReport{Task: known.Task, Release: known.Release, Identity: known.ID, Authority: trust.evidence.Measurement().String(), Dynamic: trust.Dynamic(known)},
		Policy: PolicyReport{
			TrustDomain: doc.TrustDomain, Genesis: p.Genesis(), Sequence: doc.Sequence, Digest: doc.Digest(), Head: p.PolicyHead(),
			Created: doc.Created, Quorum: doc.Owners.Quorum,
		},
		Key: KeyReport{
			Kind: peer.LeafKind(), Mode: string(peer.KeyMode()), Serial: leaf.SerialNumber.Text(16),
			NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter, Authority: wire.Sum(trust.root.RawSubjectPublicKeyInfo),
		},
		Cluster: cluster,
	}
	for _, o := range doc.Owners.Keys {
		r.Policy.Owners = append(r.Policy.Owners, o.Name)
	}
	for _, m := range peer.Measurements() {
		r.Code.Measurements = append(r.Code.Measurements, m.String())
		if !slices.Contains(r.Hardware.Units, m.Platform) {
			r.Hardware.Units = append(r.Hardware.Units, m.Platform)
		}
	}
	return r, nil
}
