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

	"github.com/cohort-tee/cohort/internal/wire"
)

// maxDocument bounds a document in bytes: AMD's lists have under 10 KiB, Intel's
// statements under 30.
const maxDocument = 1 << 20

// Waiting for a vendor who does not answer, or answers that he will not.
const (
	firstWait = time.Second
	longWait  = 10 * time.Minute
	mostWait  = time.Hour // of what he asks for
)

// backoff says until when a vendor is left alone.
type backoff struct {
	failures int
	until    time.Time
}

// fetch gets a document from the directory, or else from the vendor.
func (c *Collateral) fetch(ctx context.Context, it item) (Document, error) {
	d, err := c.read(it)
	if errors.Is(err, fs.ErrNotExist) {
		d, err = c.ask(ctx, it)
	}
	if err != nil {
		return Document{}, err
	}
	if d.Expires, err = it.end(d); err != nil {
		c.lacks(it)
	}
	d.digest = wire.Sum(d.Content)
	return d, err
}

// read reads a document in the directory. The age of a file is the document's.
func (c *Collateral) read(it item) (Document, error) {
	if c.config.Mirror == nil {
		return Document{}, fs.ErrNotExist
	}
	info, err := fs.Stat(c.config.Mirror, it.name)
	if err != nil {
		return Document{}, err
	}
	d := Document{Fetched: info.ModTime()}
	if d.Content, err = fs.ReadFile(c.config.Mirror, it.name); err != nil {
		return Document{}, err
	}
	if it.chain != "" {
		d.Chain, err = fs.ReadFile(c.config.Mirror, it.name+".chain")
	}
	return d, err
}

// ask asks the vendor, unless he is to be left alone.
func (c *Collateral) ask(ctx context.Context, it item) (Document, error) {
	if it.url == "" {
		return Document{}, errors.New("no such file, and nobody to ask")
	}
	if err := c.mayAsk(it); err != nil {
		return Document{}, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, it.url, nil)
	if err != nil {
		return Document{}, err
	}
	response, err := c.config.Client.Do(request)
	if err != nil {
		c.failed(request.URL, 0)
		return Document{}, err
	}
	defer response.Body.Close()
	if err := c.judge(it, response); err != nil {
		return Document{}, err
	}
	d := Document{Fetched: c.config.Clock()}
	if d.Content, err = io.ReadAll(io.LimitReader(response.Body, maxDocument+1)); err != nil {
		c.failed(request.URL, 0)
		return Document{}, fmt.Errorf("reading the answer: %w", err)
	}
	if len(d.Content) > maxDocument {
		return Document{}, wire.Refuse(wire.TooLarge, "collateral: size in bytes", len(d.Content), maxDocument)
	}
	if it.chain == "" {
		return d, nil
	}
	chain, err := url.PathUnescape(response.Header.Get(it.chain))
	d.Chain = []byte(chain)
	return d, err
}

// mayAsk refuses to ask a vendor who is to be left alone, or for what he did not
// have a short while ago.
func (c *Collateral) mayAsk(it item) error {
	asked, err := url.Parse(it.url)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	until := c.vendors[asked.Host].until
	if e := c.entries[it.name]; e != nil && e.retry.After(until) {
		until = e.retry
	}
	if c.config.Clock().Before(until) {
		return wire.Refuse(wire.TooMany, "collateral: asking "+asked.Host, "too soon", "not before "+until.UTC().Format(time.RFC3339))
	}
	return nil
}

// judge reads the status of an answer, and notes what follows from it.
func (c *Collateral) judge(it item, r *http.Response) error {
	switch status := r.StatusCode; {
	case status == http.StatusOK:
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.vendors, r.Request.URL.Host)
		return nil
	case status == http.StatusTooManyRequests, status >= http.StatusInternalServerError:
		c.failed(r.Request.URL, retryAfter(r.Header.Get("Retry-After"), c.config.Clock()))
	default:
		c.lacks(it)
	}
	return fmt.Errorf("%s answered %s", r.Request.URL.Host, r.Status)
}

// lacks notes that a vendor answers, but not with this document.
func (c *Collateral) lacks(it item) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remember(&entry{item: it, used: c.config.Clock()}).retry = c.config.Clock().Add(absence)
}

// failed leaves a vendor alone: for twice as long each time, and for as long as
// he asks.
func (c *Collateral) failed(asked *url.URL, wanted time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.vendors[asked.Host]
	wait := max(wanted, min(firstWait<<min(b.failures, 20), longWait))
	c.vendors[asked.Host] = backoff{failures: b.failures + 1, until: c.config.Clock().Add(wait)}
}

// retryAfter reads the header, seconds or a date (RFC 9110, section 10.2.3).
func retryAfter(value string, now time.Time) time.Duration {
	var wait time.Duration
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		wait = time.Duration(seconds) * time.Second
	} else if at, err := http.ParseTime(value); err == nil {
		wait = at.Sub(now)
	}
	return max(0, min(wait, mostWait))
}
