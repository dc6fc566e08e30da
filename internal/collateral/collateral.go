// Package collateral provides endorsements (RFC 9334), documents of TEE vendors that appraisal
// needs in addition to evidence: certificates of chips, revocation lists, and statements on
// firmware. It caches the documents and renews them before they expire. It never runs inside
// appraisal.
//
// It trusts no source, and only availability depends on it. It reads the names of documents from
// unverified evidence, and the appraiser verifies the documents each time it uses them. This
// package only parses a document to read its expiry. It refuses a revocation list or statement
// that expires before the cached one, so that a mirror cannot serve older documents. Only this
// package sets the time of fetching, and it ignores such a time in the future.
//
// Vendors limit the rate of requests. So the package screens evidence of strangers before it
// fetches documents for it, and limits requests for unknown chips by a small budget with a share
// for each address. It never evicts documents that all chips need (revocation lists, statements
// on the vendor's own software, certificate chains) to cache those of one chip.
//
// Documents come from a directory, from the vendor or from a mirror of the vendor. If a vendor
// fails or limits the rate, the package sends it no requests for a while. Meanwhile it returns
// cached documents, even expired ones, which the appraiser refuses with reason "expired".
// Platforms without collateral need no documents.
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

// Config configures the sources of documents. No request is sent to a source that is not listed.
type Config struct {
	// Documents returns the documents that evidence needs: platforms.Table.Documents.
	Documents func(unverified attest.Evidence) []attest.Document
	// Mirror contains documents as files, with the names of docs/how-to/collateral.md and
	// [Status]. It is read first. It is for closed networks.
	Mirror fs.FS
	// Sources are the URLs of the vendors' services, or of mirrors with the same paths, by the
	// names of platforms.Table.Sources. If the value of a source is the source's own name,
	// documents are fetched from the URLs that the evidence states.
	Sources map[string]string
	// Client sends the requests. Nil means http.DefaultClient.
	Client *http.Client
	// Cache stores documents across restarts. Nil means that they are stored only in memory.
	Cache Cache
	// Clock returns the current time. Nil means time.Now.
	Clock func() time.Time
}

// Document is an unverified document of a vendor. A [Cache] stores its JSON encoding.
type Document struct {
	Content []byte
	Chain   []byte        // certificates of the signer in PEM, if they are separate from Content
	Fetched time.Time     // zero if unknown
	Expires time.Time     `json:"-"` // read only from Content and Chain
	OfChip  bool          `json:"-"` // whether it is of one chip or model; only such documents are evicted
	digest  attest.Digest // digest of Content, set when it is loaded or fetched
}

// Cache stores documents by name, on a best-effort basis. Load must return only a document that
// was stored under that name, since no vendor's signature protects the time of fetching. A Cache
// must be safe for concurrent use.
type Cache interface {
	// Load returns the zero Document if there is none.
	Load(ctx context.Context, name string) Document
	Store(ctx context.Context, name string, d Document)
}

// Stranger is the sender of evidence that was not yet appraised.
type Stranger struct {
	Address string // "host:port" or a host; quotas count an IPv6 address by its first 64 bits
	// Screen refuses evidence that can be refused without documents. It is called before each
	// request to a vendor, and not at all if all documents are cached.
	Screen func() error
}

// Maximum numbers of documents in memory, of about 10 KiB each. The least recently used document
// of a chip is evicted for a new one; documents that all chips need are not evicted.
const (
	maxChips  = 4096
	maxShared = 256 // three vendors with all their generations need about 30
)

// Times of renewal.
const (
	tick     = time.Minute
	daily    = 24 * time.Hour     // revocation lists and statements are renewed at least this often
	idle     = 7 * 24 * time.Hour // documents not used for this long are dropped
	absence  = 10 * time.Minute   // wait before a document that its vendor did not have is requested again
	patience = 15 * time.Second   // time limit for one document
)

// Collateral fetches and caches endorsements. It is safe for concurrent use.
type Collateral struct {
	config  Config
	flights singleflight.Group

	mu      sync.Mutex
	entries map[string]*entry      // guarded by mu, by name
	vendors map[vendorLine]backoff // guarded by mu
	budget  budget                 // guarded by mu
}

// vendorLine is the key of a back-off. Requests for documents of chips, which strangers name,
// have a back-off of their own, so that a vendor's limit on them does not stop requests for
// revocation lists.
type vendorLine struct {
	host   string
	ofChip bool
}

// New makes a Collateral without documents.
func New(c Config) *Collateral {
	if c.Client == nil {
		c.Client = http.DefaultClient
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	return &Collateral{config: c, entries: map[string]*entry{}, vendors: map[vendorLine]backoff{}, budget: newBudget()}
}

// Endorse returns the endorsements that evidence needs but does not contain. It sends requests
// to vendors only for documents without a current copy. It omits a revocation list that cannot
// be fetched, because policy defines what that means, and a statement that cannot be fetched but
// came with the evidence. If any other document is missing, it refuses with "unavailable". The
// role [attest.RoleChecked] contains the times at which revocation lists and statements were
// fetched. Endorse is for the caller's own evidence; for evidence of other parties use
// [Collateral.EndorseFor].
func (c *Collateral) Endorse(ctx context.Context, e attest.Evidence) (attest.Endorsements, error) {
	return c.endorse(ctx, e, nil)
}

// EndorseFor is Endorse for evidence of a stranger. It calls Screen before it sends a request to
// a vendor, and returns its refusal unchanged. Documents of unknown chips count against the
// budget of all strangers and the share of this stranger; when one is used up, EndorseFor
// refuses with "rate".
func (c *Collateral) EndorseFor(ctx context.Context, e attest.Evidence, s Stranger) (attest.Endorsements, error) {
	if s.Screen == nil {
		return nil, wire.Refuse(wire.BadRequest, "collateral: stranger", "a stranger without Screen", "a Screen function")
	}
	return c.endorse(ctx, e, &s)
}

// RecordAccepted records that evidence from an address was accepted. It resets the share of the
// address.
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
			case len(d.Content) > 0: // expired: the appraiser refuses it
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

// Run renews documents before they expire, until ctx is done. Without Run, documents are renewed
// only after they have expired.
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
	Name    string    // file name in a mirror directory
	Role    string    // role in endorsements
	Fetched time.Time // start of its age; zero if there is no document
	Expires time.Time
	Fault   error // error of the last renewal; nil if it succeeded
}

// Stats returns the state of every document in memory, sorted by name.
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

// item is a document and the URL from which it is fetched.
type item struct {
	attest.Document
	url string // empty if it has no source on the network
}

// items returns the documents that evidence needs, as far as the evidence can be parsed. The
// evidence is unverified, so a document may be of a different chip or of none.
func (c *Collateral) items(e attest.Evidence) []item {
	if c.config.Documents == nil {
		return nil
	}
	var items []item
	for _, d := range c.config.Documents(e) {
		it := item{Document: d}
		switch base := c.config.Sources[d.Source]; {
		case base == "" && d.URL != "":
			continue // only the evidence states its URL, and its source is not listed
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

// maxChain is the maximum number of certificates in one chain.
const maxChain = 8

// expiry returns the expiry of a document: the earliest expiry of its parts.
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

// statementExpiry returns the expiry of a statement or of its signer's certificates, whichever
// is earlier.
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
