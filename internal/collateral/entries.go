package collateral

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/cohort-tee/cohort/internal/retry"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// entry is the state of one document.
type entry struct {
	item  item
	doc   Document // zero if there is none
	fault error    // error of the last attempt to fetch; nil if it succeeded
	retry time.Time
	used  time.Time
}

// cached returns a document from memory or the cache. The document is current if it has not
// expired and was fetched in the past. A time of fetching in the future is ignored.
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

// loadCached loads a document from the cache, and parses its expiry as for a new document.
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

// remember adds an entry unless there is one already, and returns the entry. If memory is full,
// an entry of a chip replaces the least recently used one; an entry that all chips need is not
// added. The caller holds mu.
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

// dueItems returns the documents to renew now, and drops documents that are not in use.
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

// renewAt returns the time at which to renew a document: after two thirds of its validity, but
// for revocation lists and statements after at most a day.
func (e *entry) renewAt() time.Time {
	at := e.doc.Fetched.Add(e.doc.Expires.Sub(e.doc.Fetched) / 3 * 2)
	if day := e.doc.Fetched.Add(daily); e.item.Kind != attest.CertificateDocument && day.Before(at) {
		return day
	}
	return at
}

// renew fetches a new copy of a document, for a stranger if s is not nil. Concurrent callers
// share one fetch. For a document of a chip, strangers share it only within their network, so
// that a refusal by the budget affects one network only. The fetch continues if the context of
// one caller ends.
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

// replace fetches a document and stores it in place of the current copy, unless that copy is
// newer.
func (c *Collateral) replace(ctx context.Context, it item, s *Stranger) (Document, error) {
	if s != nil { // another fetch may have stored it in the meantime
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

// record records the result of a fetch. If the fetched document has expired, or is older than
// the stored one, its source has no newer one for now, so no request for it is sent for a while.
func (c *Collateral) record(it item, fresh Document, err error) error {
	now := c.config.Clock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[it.Name]; e == nil && it.OfChip && err != nil {
		return err // a chip without a document gets no entry
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

// maxDocument is the maximum size of a document in bytes. AMD's revocation lists have less than
// 10 KiB, Intel's statements less than 30 KiB.
const maxDocument = 1 << 20

// vendorBackoff is the wait after a vendor did not respond or limited the rate.
var vendorBackoff = retry.Backoff{First: time.Second, Max: 10 * time.Minute}

// mostWait is the longest Retry-After of a vendor that is obeyed.
const mostWait = time.Hour

// backoff is the time until which a vendor receives no requests, after consecutive failures.
type backoff struct {
	failures int
	until    time.Time
}

// fetch reads a document from the directory, or requests it from the vendor.
func (c *Collateral) fetch(ctx context.Context, it item, s *Stranger) (Document, error) {
	d, err := c.readMirror(it)
	if errors.Is(err, fs.ErrNotExist) {
		d, err = c.requestDocument(ctx, it, s)
	}
	if err != nil {
		return Document{}, err
	}
	if d.Expires, err = it.expiry(d); err != nil {
		c.recordMissing(it)
	}
	d.digest, d.OfChip = wire.Sum(d.Content), it.OfChip
	return d, err
}

// readMirror reads a document from the directory. The modification time of its file is the time
// of fetching. A file with a time in the future is refused until that time.
func (c *Collateral) readMirror(it item) (Document, error) {
	if c.config.Mirror == nil {
		return Document{}, fs.ErrNotExist
	}
	info, err := fs.Stat(c.config.Mirror, it.Name)
	if err != nil {
		return Document{}, err
	}
	d := Document{Fetched: info.ModTime()}
	if now := c.config.Clock(); d.Fetched.After(now) {
		return Document{}, wire.Refuse(wire.ClockSkew, "collateral: time of the file "+it.Name, d.Fetched.UTC().Format(time.RFC3339), "not after "+now.UTC().Format(time.RFC3339))
	}
	if d.Content, err = c.readFile(it.Name); err == nil && it.Chain != "" {
		d.Chain, err = c.readFile(it.Name + ".chain")
	}
	return d, err
}

// readFile reads a file from the directory.
func (c *Collateral) readFile(name string) ([]byte, error) {
	f, err := c.config.Mirror.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readBounded(f)
}

// readBounded reads r to its end, and refuses more than maxDocument bytes.
func readBounded(r io.Reader) ([]byte, error) {
	content, err := io.ReadAll(io.LimitReader(r, maxDocument+1))
	if err == nil && len(content) > maxDocument {
		err = wire.Refuse(wire.TooLarge, "collateral: size in bytes", len(content), maxDocument)
	}
	return content, err
}

// requestDocument requests a document from its vendor, unless mayAsk refuses.
func (c *Collateral) requestDocument(ctx context.Context, it item, s *Stranger) (Document, error) {
	if it.url == "" {
		return Document{}, errors.New("no such file, and no source to ask")
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, it.url, nil)
	if err != nil {
		return Document{}, err
	}
	asked := vendorLine{request.URL.Host, it.OfChip}
	if err := c.mayAsk(it, asked, s); err != nil {
		return Document{}, err
	}
	d := Document{Fetched: c.config.Clock()} // before the request, so that it is not later than the content
	response, err := c.config.Client.Do(request)
	if err != nil {
		c.failed(asked, s, 0)
		return Document{}, err
	}
	defer response.Body.Close()
	if err := c.checkStatus(it, asked, s, response); err != nil {
		return Document{}, err
	}
	if d.Content, err = readBounded(response.Body); err != nil {
		c.failed(asked, s, 0)
		return Document{}, fmt.Errorf("reading the response: %w", err)
	}
	if it.Chain == "" {
		return d, nil
	}
	chain, err := url.PathUnescape(response.Header.Get(it.Chain))
	d.Chain = []byte(chain)
	return d, err
}

// mayAsk refuses a request to a vendor during its back-off, a request for a document that the
// vendor did not have a short time ago, and a stranger's request for an unknown chip that
// exceeds the budget.
func (c *Collateral) mayAsk(it item, asked vendorLine, s *Stranger) error {
	now := c.config.Clock()
	c.mu.Lock()
	defer c.mu.Unlock()
	until, known := c.vendors[asked].until, false
	if e := c.entries[it.Name]; e != nil {
		known = len(e.doc.Content) > 0
		if e.retry.After(until) {
			until = e.retry
		}
	}
	if now.Before(until) {
		return wire.Refuse(wire.TooMany, "collateral: request to "+asked.host, now.UTC().Format(time.RFC3339), "not before "+until.UTC().Format(time.RFC3339))
	}
	if s != nil && it.OfChip && !known {
		return c.budget.charge(s.Address, now)
	}
	return nil
}

// checkStatus returns an error unless the status of a response is 200, and updates the back-off.
func (c *Collateral) checkStatus(it item, asked vendorLine, s *Stranger, r *http.Response) error {
	switch status := r.StatusCode; {
	case status == http.StatusOK:
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.vendors, asked)
		return nil
	case status == http.StatusTooManyRequests, status >= http.StatusInternalServerError:
		c.failed(asked, s, retryAfter(r.Header.Get("Retry-After"), c.config.Clock()))
	default:
		c.recordMissing(it)
	}
	return fmt.Errorf("%s responded with %s", asked.host, r.Status)
}

// recordMissing records that a vendor responded without this document, so that it is not
// requested again for a while.
func (c *Collateral) recordMissing(it item) {
	now := c.config.Clock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remember(&entry{item: it, used: now}).retry = now.Add(absence)
}

// failed starts a vendor's back-off: twice as long after each consecutive failure, and at least
// as long as wanted.
func (c *Collateral) failed(asked vendorLine, s *Stranger, wanted time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.vendors[asked]
	wait := max(wanted, vendorBackoff.Longest(b.failures+1))
	c.vendors[asked] = backoff{failures: b.failures + 1, until: c.config.Clock().Add(wait)}
	if s != nil && asked.ofChip {
		c.budget.refund(s.Address)
	}
}

// retryAfter parses a Retry-After field (RFC 9110, section 10.2.3), in seconds or as a date.
func retryAfter(value string, now time.Time) time.Duration {
	var wait time.Duration
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		wait = time.Duration(seconds) * time.Second
	} else if at, err := http.ParseTime(value); err == nil {
		wait = at.Sub(now)
	}
	return max(0, min(wait, mostWait))
}
