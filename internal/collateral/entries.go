package collateral

import (
	"context"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// entry is what is known of one document.
type entry struct {
	item  item
	doc   Document // without content while there is none
	fault error    // of the last try; nil when it went well
	retry time.Time
	used  time.Time
}

// cached is the document at hand, in memory or in the cache, and whether it is
// current: it has not ended, and was fetched in the past. A time of fetching in the
// future is ignored.
func (c *Collateral) cached(ctx context.Context, it item) (d Document, current bool) {
	now := c.config.Clock()
	c.mu.Lock()
	e := c.entries[it.Name]
	c.mu.Unlock()
	if e == nil {
		e = &entry{item: it, doc: c.loadCached(ctx, it)}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if known := c.entries[it.Name]; known != nil || len(e.doc.Content) > 0 {
		e = c.remember(e)
		e.used = now
	}
	if d = e.doc; d.Fetched.After(now) {
		d.Fetched = time.Time{}
	}
	return d, !d.Fetched.IsZero() && now.Before(d.Expires)
}

// loadCached reads a document in the cache. Its end is read out of it, as of a new one.
func (c *Collateral) loadCached(ctx context.Context, it item) Document {
	if c.config.Cache == nil {
		return Document{}
	}
	d := c.config.Cache.Load(ctx, it.Name)
	if len(d.Content) == 0 {
		return Document{}
	}
	var err error
	if d.Expires, err = it.expiry(d); err != nil {
		return Document{}
	}
	d.digest = wire.Sum(d.Content)
	return d
}

// remember adds an entry, unless a concurrent call just did. Where there is no room,
// the chip that was used least lately makes some for another; documents that all
// chips need are then kept for this once only. The caller holds mu.
func (c *Collateral) remember(e *entry) *entry {
	if known := c.entries[e.item.Name]; known != nil {
		return known
	}
	n, oldest := 0, (*entry)(nil)
	for _, other := range c.entries {
		if other.item.OfChip != e.item.OfChip {
			continue
		}
		if n++; oldest == nil || other.used.Before(oldest.used) {
			oldest = other
		}
	}
	switch {
	case e.item.OfChip && n >= maxChips:
		delete(c.entries, oldest.item.Name)
	case !e.item.OfChip && n >= maxShared:
		return e
	}
	c.entries[e.item.Name] = e
	return e
}

// dueItems lists what should be renewed now, and forgets what is not used.
func (c *Collateral) dueItems() []item {
	now := c.config.Clock()
	c.mu.Lock()
	defer c.mu.Unlock()
	var items []item
	for name, e := range c.entries {
		switch {
		case now.Sub(e.used) > idle:
			delete(c.entries, name)
		case len(e.doc.Content) > 0 && (e.doc.Fetched.After(now) || !now.Before(e.renewAt())):
			items = append(items, e.item)
		}
	}
	return items
}

// renewAt is when a document should be renewed: after two thirds of its validity.
func (e *entry) renewAt() time.Time {
	at := e.doc.Fetched.Add(e.doc.Expires.Sub(e.doc.Fetched) / 3 * 2)
	if day := e.doc.Fetched.Add(daily); e.item.Kind != attest.CertificateDocument && day.Before(at) {
		return day
	}
	return at
}

// renew fetches a document anew, for a stranger or, with none, on our own account.
// Concurrent callers share one fetch, strangers only with others of their network, so
// that a refusal by the budget concerns one network. A caller that leaves does not
// end it for the others.
func (c *Collateral) renew(ctx context.Context, it item, s *Stranger) (Document, error) {
	flight := it.Name
	if s != nil && it.OfChip {
		flight += "\n" + network(s.Address)
	}
	done := c.flights.DoChan(flight, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		return c.replace(ctx, it, s)
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
func (c *Collateral) replace(ctx context.Context, it item, s *Stranger) (Document, error) {
	if s != nil { // another flight may have ended since it was looked for
		if d, current := c.cached(ctx, it); current {
			return d, nil
		}
	}
	fresh, err := c.fetch(ctx, it, s)
	if err = c.record(it, fresh, err); err != nil {
		return Document{}, err
	}
	if c.config.Cache != nil {
		c.config.Cache.Store(ctx, it.Name, fresh)
	}
	return fresh, nil
}

// record notes what came of fetching a document. One that has ended already, or is
// older than what is at hand, is all that its source has for now, so it is not
// asked again for a while.
func (c *Collateral) record(it item, fresh Document, err error) error {
	now := c.config.Clock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[it.Name]; e == nil && it.OfChip && err != nil {
		return err // a chip without a document takes no room
	}
	e := c.remember(&entry{item: it, used: now})
	if end := e.doc.Expires; err == nil && it.Kind != attest.CertificateDocument && fresh.Expires.Before(end) {
		err = wire.Refuse(wire.Expired, "collateral: end of "+it.Name, fresh.Expires.UTC().Format(time.RFC3339), "not before "+end.UTC().Format(time.RFC3339))
		e.retry = now.Add(absence)
	}
	if err == nil && !now.Before(fresh.Expires) {
		e.retry = now.Add(absence)
	}
	if e.fault = err; err == nil {
		e.doc = fresh
	}
	return err
}
