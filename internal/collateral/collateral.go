// Package collateral finds what TEE vendors say beside evidence: certificates of
// chips, revocation lists, statements on firmware. It keeps them, renews them
// before they end, and never runs inside appraisal.
//
// It trusts nobody and is trusted with availability only. What to ask for is
// read out of evidence that nobody has checked yet, and what comes back is
// checked by the appraiser, each time it is used. Here a document need only have
// its form, for its end is read out of it, and a list or statement that ends
// before the one at hand is refused, so that a mirror cannot turn time back.
//
// Documents come from a directory, from the vendor or from a mirror of his. A
// vendor who is down or limits the rate is left alone for a while; meanwhile
// what is at hand is given, past its end too, for the appraiser to refuse with
// reason "expired". Evidence of platforms without collateral gets none.
//
//	c := collateral.New(collateral.Config{AMD: collateral.AMD, Intel: collateral.Intel, IntelRoot: collateral.IntelRoot, NVIDIA: collateral.NVIDIA})
//	go c.Run(ctx) // renews
//	endorsed, err := c.Endorse(ctx, evidence)
package collateral

import (
	"context"
	"io/fs"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"golang.org/x/sync/singleflight"
)

// The vendors' own services.
const (
	AMD       = "https://kdsintf.amd.com"
	Intel     = "https://api.trustedservices.intel.com"
	IntelRoot = "https://certificates.trustedservices.intel.com"
	NVIDIA    = "http://crl.ndis.nvidia.com" // as its certificates name it; the lists are signed
)

// Config says where documents come from. A source that is left out is not asked.
type Config struct {
	// Mirror holds documents as files, by the names of
	// docs/how-to/collateral.md and [Status]; it is asked first. It is for closed networks.
	Mirror fs.FS
	// AMD, Intel, IntelRoot and NVIDIA are base URLs of the vendors' services,
	// or of mirrors with the same paths.
	AMD, Intel, IntelRoot, NVIDIA string
	// Client asks them. Nil is http.DefaultClient.
	Client *http.Client
	// Cache keeps documents across restarts. Nil keeps them in memory only.
	Cache Cache
	// Clock tells the time. Nil is time.Now.
	Clock func() time.Time
}

// Document is what a vendor published, unchecked.
type Document struct {
	Content []byte
	Chain   []byte // certificates of the signer, where they come apart; PEM
	Fetched time.Time
	Expires time.Time
	digest  attest.Digest // of Content, once it is at hand
}

// Cache keeps documents by their names, as well as it can: it is trusted with
// availability only. It is called concurrently.
type Cache interface {
	// Load gives the zero Document where there is none.
	Load(ctx context.Context, name string) Document
	Store(ctx context.Context, name string, d Document)
}

// maxEntries bounds the memory, at about 10 KiB for a document.
const maxEntries = 4096

// Times of renewal.
const (
	tick     = time.Minute
	daily    = 24 * time.Hour     // lists and statements are renewed at least so often
	idle     = 7 * 24 * time.Hour // what nobody asked for so long is forgotten
	absence  = 10 * time.Minute   // what a vendor does not have is not asked for again before
	patience = 15 * time.Second   // for one document
)

// Collateral gives endorsements. It is safe for concurrent use.
type Collateral struct {
	config  Config
	flights singleflight.Group

	mu      sync.Mutex
	entries map[string]*entry  // guarded by mu, by name
	vendors map[string]backoff // guarded by mu, by host
}

// entry is what is known of one document.
type entry struct {
	item  item
	doc   Document // without content while there is none
	fault error    // of the last try; nil when it went well
	retry time.Time
	used  time.Time
}

// New makes a Collateral that has nothing yet.
func New(c Config) *Collateral {
	if c.Client == nil {
		c.Client = http.DefaultClient
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	return &Collateral{config: c, entries: map[string]*entry{}, vendors: map[string]backoff{}}
}

// Endorse gives what belongs to evidence and did not come with it. It asks
// vendors only for what is not at hand. A revocation list that cannot be had is
// left out, because policy says what that means, and so is a statement that came
// with the evidence; without any other document it refuses with "unavailable". In
// role [attest.RoleChecked] it says when it had the lists and statements.
func (c *Collateral) Endorse(ctx context.Context, e attest.Evidence) (attest.Endorsements, error) {
	endorsed, checked := attest.Endorsements{}, []attest.Checked(nil)
	for _, it := range c.items(e) {
		brought := e.Endorsed[it.role] != nil
		if it.kind == certificate && brought {
			continue
		}
		d, err := c.get(ctx, it)
		if err != nil && (it.kind == list || brought) {
			continue
		}
		if err != nil {
			return nil, wire.Refuse(wire.Unavailable, "collateral: "+it.name, err, "the vendor's document")
		}
		endorsed[it.role] = d.Content
		if it.chain != "" {
			endorsed[it.role+"_chain"] = d.Chain
		}
		if it.kind != certificate {
			checked = append(checked, attest.Checked{Role: it.role, Digest: d.digest, At: d.Fetched, Until: d.Expires})
		}
	}
	if len(checked) > 0 {
		endorsed[attest.RoleChecked] = attest.FrameChecked(checked)
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
			for _, it := range c.due() {
				_, _ = c.renew(ctx, it) // Stats tells the fault
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
		out = append(out, Status{Name: name, Role: e.item.role, Fetched: e.doc.Fetched, Expires: e.doc.Expires, Fault: e.fault})
	}
	return out
}

// get gives a document that is at hand and has not ended, or a new one, or the
// old one when there is no new one.
func (c *Collateral) get(ctx context.Context, it item) (Document, error) {
	held := c.held(ctx, it)
	if c.config.Clock().Before(held.Expires) {
		return held, nil
	}
	fresh, err := c.renew(ctx, it)
	if err != nil && len(held.Content) > 0 {
		return held, nil
	}
	return fresh, err
}

// held is the document at hand, in memory or in the cache.
func (c *Collateral) held(ctx context.Context, it item) Document {
	c.mu.Lock()
	e := c.entries[it.name]
	c.mu.Unlock()
	if e == nil {
		e = &entry{item: it}
		if c.config.Cache != nil {
			e.doc = c.config.Cache.Load(ctx, it.name)
			e.doc.digest = wire.Sum(e.doc.Content)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e = c.remember(e)
	e.used = c.config.Clock()
	return e.doc
}

// remember adds an entry, unless somebody else just did; when full it forgets any
// one. The caller holds mu.
func (c *Collateral) remember(e *entry) *entry {
	if known := c.entries[e.item.name]; known != nil {
		return known
	}
	for name := range c.entries {
		if len(c.entries) < maxEntries {
			break
		}
		delete(c.entries, name)
	}
	c.entries[e.item.name] = e
	return e
}

// due lists what should be renewed now, and forgets what nobody uses.
func (c *Collateral) due() []item {
	now := c.config.Clock()
	c.mu.Lock()
	defer c.mu.Unlock()
	var items []item
	for name, e := range c.entries {
		switch {
		case now.Sub(e.used) > idle:
			delete(c.entries, name)
		case len(e.doc.Content) > 0 && !now.Before(e.due()):
			items = append(items, e.item)
		}
	}
	return items
}

// due is when a document should be renewed: after two thirds of its life.
func (e *entry) due() time.Time {
	at := e.doc.Fetched.Add(e.doc.Expires.Sub(e.doc.Fetched) / 3 * 2)
	if day := e.doc.Fetched.Add(daily); e.item.kind != certificate && day.Before(at) {
		return day
	}
	return at
}

// renew fetches a document anew. Whoever wants the same one meanwhile waits for
// the same answer, and nobody's going away ends it for the others.
func (c *Collateral) renew(ctx context.Context, it item) (Document, error) {
	done := c.flights.DoChan(it.name, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		return c.replace(ctx, it)
	})
	select {
	case r := <-done:
		return r.Val.(Document), r.Err
	case <-ctx.Done():
		return Document{}, ctx.Err()
	}
}

// replace fetches a document and puts it in the place of the one at hand, unless
// that is newer.
func (c *Collateral) replace(ctx context.Context, it item) (Document, error) {
	fresh, err := c.fetch(ctx, it)
	if err = c.put(it, fresh, err); err != nil {
		return Document{}, err
	}
	if c.config.Cache != nil {
		c.config.Cache.Store(ctx, it.name, fresh)
	}
	return fresh, nil
}

// put notes what came of fetching a document.
func (c *Collateral) put(it item, fresh Document, err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.remember(&entry{item: it, used: c.config.Clock()})
	if end := e.doc.Expires; err == nil && it.kind != certificate && fresh.Expires.Before(end) {
		err = wire.Refuse(wire.Expired, "collateral: end of "+it.name, fresh.Expires.UTC().Format(time.RFC3339), "not before "+end.UTC().Format(time.RFC3339))
	}
	if e.fault = err; err == nil {
		e.doc = fresh
	}
	return err
}
