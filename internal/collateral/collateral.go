// Package collateral finds what TEE vendors state beside evidence: certificates of
// chips, revocation lists, statements on firmware. It keeps them, renews them
// before they end, and never runs inside appraisal.
//
// It trusts no source and is trusted with availability only. What to ask for is
// read out of evidence that was not checked yet, and what comes back is
// checked by the appraiser, each time it is used. Here a document need only have
// its form, for its end is read out of it, and a list or statement that ends
// before the one at hand is refused, so that a mirror cannot turn time back. The time
// of fetching is set by this package alone, and ignored where it is in the future.
//
// Vendors limit the rate. So evidence of strangers is screened before anything is
// fetched for it, documents of unknown chips have a small budget of their own, with
// a share for each address, and what all chips need (lists, statements on the
// vendor's own software, chains) is never evicted for them.
//
// Documents come from a directory, from the vendor or from its mirror. A
// vendor who is down or limits the rate is left alone for a while; meanwhile
// what is at hand is given, past its end too, for the appraiser to refuse with
// reason "expired". Evidence of platforms without collateral gets none.
//
//	c := collateral.New(collateral.Config{Documents: platforms.Supported().Documents, Sources: map[string]string{"amd": amd}})
//	go c.Run(ctx) // renews
//	endorsed, err := c.EndorseFor(ctx, evidence, collateral.Stranger{Address: remote, Screen: screen})
//
// Files, each using those before it: budget.go, collateral.go, entries.go.
package collateral

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Config states where documents come from. A source that is left out is not asked.
type Config struct {
	// Documents lists the documents that belong to evidence: platforms.Table.Documents.
	Documents func(unverified attest.Evidence) []attest.Document
	// Mirror holds documents as files, by the names of
	// docs/how-to/collateral.md and [Status]; it is asked first. It is for closed networks.
	Mirror fs.FS
	// Sources are the URLs of the vendors' services or of mirrors with the same paths,
	// by the names of platforms.Table.Sources. A source whose value is its name has
	// each document where the evidence states.
	Sources map[string]string
	// Client asks them. Nil is http.DefaultClient.
	Client *http.Client
	// Cache keeps documents across restarts. Nil keeps them in memory only.
	Cache Cache
	// Clock reports the time. Nil is time.Now.
	Clock func() time.Time
}

// Document is what a vendor published, unchecked. Its JSON is what a [Cache] keeps.
type Document struct {
	Content []byte
	Chain   []byte        // certificates of the signer, where they come apart; PEM
	Fetched time.Time     // zero where it is not known
	Expires time.Time     `json:"-"` // read out of Content and Chain, and nowhere else
	OfChip  bool          `json:"-"` // of one chip or model; such make room for one another
	digest  attest.Digest // of Content, once it is at hand
}

// Cache keeps documents by their names, as well as it can. It
// returns only what was stored under the name: no vendor signs the time of fetching.
// It is called concurrently.
type Cache interface {
	// Load returns the zero Document where there is none.
	Load(ctx context.Context, name string) Document
	Store(ctx context.Context, name string, d Document)
}

// Stranger is the sender of evidence that is not appraised yet.
type Stranger struct {
	Address string // "host:port" or a host; of IPv6 the first 64 bits count
	// Screen refuses what can be refused without a document. It is called before a
	// vendor is asked, and not where all is at hand; it may be called again.
	Screen func() error
}

// Bounds of the memory, at about 10 KiB for a document. Chips that were used least
// lately make room for others; what all chips need does not.
const (
	maxChips  = 4096
	maxShared = 256 // of three vendors, with all their generations, there are some 30
)

// Times of renewal.
const (
	tick     = time.Minute
	daily    = 24 * time.Hour     // lists and statements are renewed at least so often
	idle     = 7 * 24 * time.Hour // what was not requested for so long is forgotten
	absence  = 10 * time.Minute   // what a vendor does not have is not asked for again before
	patience = 15 * time.Second   // for one document
)

// Collateral returns endorsements. It is safe for concurrent use.
type Collateral struct {
	config  Config
	flights singleflight.Group

	mu      sync.Mutex
	entries map[string]*entry      // guarded by mu, by name
	vendors map[vendorLine]backoff // guarded by mu
	budget  budget                 // guarded by mu
}

// vendorLine is what the back-off of a vendor counts for: a limit on requests for chips,
// which strangers name, does not end requests for lists.
type vendorLine struct {
	host   string
	ofChip bool
}

// New makes a Collateral that has nothing yet.
func New(c Config) *Collateral {
	if c.Client == nil {
		c.Client = http.DefaultClient
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	return &Collateral{config: c, entries: map[string]*entry{}, vendors: map[vendorLine]backoff{}, budget: newBudget()}
}

// Endorse returns what belongs to evidence and did not come with it. It asks
// vendors only for what is not at hand. A revocation list that cannot be fetched is
// left out, because policy states what that means, and so is a statement that came
// with the evidence; without any other document it refuses with "unavailable". In
// role [attest.RoleChecked] it states when it had the lists and statements. It is for
// evidence of one's own: for that of others there is [Collateral.EndorseFor].
func (c *Collateral) Endorse(ctx context.Context, e attest.Evidence) (attest.Endorsements, error) {
	return c.endorse(ctx, e, nil)
}

// EndorseFor is Endorse for evidence of a stranger. Screen is called before a vendor
// is asked, and its refusal is returned unchanged. Documents of unknown chips are
// fetched no more often than the budget of all strangers and the share of this one
// allow; beyond it EndorseFor refuses with "rate".
func (c *Collateral) EndorseFor(ctx context.Context, e attest.Evidence, s Stranger) (attest.Endorsements, error) {
	if s.Screen == nil {
		return nil, wire.Refuse(wire.BadRequest, "collateral: stranger", "a stranger without Screen", "a Screen function")
	}
	return c.endorse(ctx, e, &s)
}

// RecordAccepted notes that evidence from an address was accepted: what was fetched for it
// was not fetched in vain, and its share is whole again.
func (c *Collateral) RecordAccepted(address string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.budget.recordAccepted(address, c.config.Clock())
}

func (c *Collateral) endorse(ctx context.Context, e attest.Evidence, s *Stranger) (attest.Endorsements, error) {
	endorsed, checked := attest.Endorsements{}, []attest.Fetched(nil)
	for _, it := range c.items(e) {
		brought := e.Endorsed[it.Role] != nil
		if it.Kind == attest.CertificateDocument && brought {
			continue
		}
		d, current := c.cached(ctx, it)
		if !current {
			if s != nil {
				if err := s.Screen(); err != nil {
					return nil, err
				}
			}
			fresh, err := c.renew(ctx, it, s)
			var spent overBudget
			switch {
			case err == nil:
				d = fresh
			case len(d.Content) > 0: // past its end, for the appraiser to refuse
			case it.Kind == attest.RevocationListDocument || brought:
				continue
			case errors.As(err, &spent):
				return nil, err
			default:
				return nil, wire.Refuse(wire.Unavailable, "collateral: "+it.Name, err, "the vendor's document")
			}
		}
		endorsed[it.Role] = d.Content
		if it.Chain != "" {
			endorsed[it.Role+"_chain"] = d.Chain
		}
		if it.Kind != attest.CertificateDocument && !d.Fetched.IsZero() {
			checked = append(checked, attest.Fetched{Role: it.Role, Digest: d.digest, At: d.Fetched, Until: d.Expires})
		}
	}
	if len(checked) > 0 {
		endorsed[attest.RoleChecked] = attest.FrameFetched(checked)
	}
	return endorsed, nil
}

// Run renews documents before they end, until ctx does. Without it they are
// renewed only once they have ended.
func (c *Collateral) Run(ctx context.Context) {
	every := time.NewTicker(tick)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
			for _, it := range c.dueItems() {
				_, _ = c.renew(ctx, it, nil) // Stats reports the fault
			}
		}
	}
}

// Status is the state of one document.
type Status struct {
	Name    string    // as in a mirror directory
	Role    string    // in endorsements
	Fetched time.Time // its age counts from here; zero while there is none
	Expires time.Time
	Fault   error // why it could not be renewed; nil when it could
}

// Stats is the state of every document that was asked for lately, by name.
func (c *Collateral) Stats() []Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []Status
	for _, name := range slices.Sorted(maps.Keys(c.entries)) {
		e := c.entries[name]
		out = append(out, Status{Name: name, Role: e.item.Role, Fetched: e.doc.Fetched, Expires: e.doc.Expires, Fault: e.fault})
	}
	return out
}

// item is one document, and where it is asked for.
type item struct {
	attest.Document
	url string // empty when no service is asked
}

// items lists the documents that belong to evidence, as far as it can be read.
// Nothing in it is verified, so a document may be of another chip or of none.
func (c *Collateral) items(e attest.Evidence) []item {
	if c.config.Documents == nil {
		return nil
	}
	var items []item
	for _, d := range c.config.Documents(e) {
		it := item{Document: d}
		switch base := c.config.Sources[d.Source]; {
		case base == "" && d.URL != "":
			continue // evidence alone states where it is, and no source is asked
		case base == "":
		case base == d.Source && d.URL != "":
			it.url = d.URL
		default:
			it.url = strings.TrimSuffix(base, "/") + d.Path
		}
		items = append(items, it)
	}
	return items
}

// maxChain bounds the certificates of one text.
const maxChain = 8

// expiry reads when a document ends: the first of its parts.
func (it item) expiry(d Document) (time.Time, error) {
	switch {
	case it.Kind == attest.RevocationListDocument:
		crl, err := x509.ParseRevocationList(d.Content)
		if err != nil {
			return time.Time{}, fmt.Errorf("reading the list: %w", err)
		}
		return crl.NextUpdate, nil
	case it.Kind == attest.StatementDocument:
		return it.statementExpiry(d)
	case strings.HasSuffix(it.Name, ".pem"):
		return chainExpiry(d.Content)
	}
	cert, err := x509.ParseCertificate(d.Content)
	if err != nil {
		return time.Time{}, fmt.Errorf("reading the certificate: %w", err)
	}
	return cert.NotAfter, nil
}

// statementExpiry is when a statement ends: itself, or the certificates of its signer.
func (it item) statementExpiry(d Document) (time.Time, error) {
	end, err := it.Expires(d.Content)
	if err != nil || it.Chain == "" {
		return end, err
	}
	signer, err := chainExpiry(d.Chain)
	if signer.Before(end) {
		end = signer
	}
	return end, err
}

func chainExpiry(text []byte) (end time.Time, err error) {
	ders, err := wire.ParseCertificates("collateral: chain", text, maxChain)
	for _, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return end, fmt.Errorf("reading the chain: %w", err)
		}
		if end.IsZero() || cert.NotAfter.Before(end) {
			end = cert.NotAfter
		}
	}
	if err == nil && end.IsZero() {
		err = errors.New("reading the chain: no certificate")
	}
	return end, err
}
