package trustrelay

import (
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/wire"
)

// How long a response is kept.
const (
	maxLifetime   = 5 * time.Minute // at most, whatever the authority allows
	errorLifetime = time.Second     // a refusal or failure
)

// subject is what a query without a nonce asks for.
type subject struct {
	head        wire.Digest // of the policy history when the gateway asked
	task, group string
	id          wire.Digest
}

// entry is one response, or a fetch of it that is in progress. Its bytes are charged to the
// address that caused the fetch until it has no users: the clients that wait for it or read it,
// and the map of entries.
type entry struct {
	from  netip.Addr
	users int // guarded by Relay.mu

	complete chan struct{} // closed when the fields below are set; they never change then
	response api.Relayed   // if err is nil
	err      error
	charged  int // bytes
	kept     int // of these, bytes that are charged as kept
	fetched  time.Time
	until    time.Time // when it ends
}

// newEntry returns an entry with one user, without a response.
func newEntry(from netip.Addr) *entry {
	return &entry{from: from, users: 1, complete: make(chan struct{})}
}

// hasEnded reports whether the entry must not be used for a further request.
func (e *entry) hasEnded(now time.Time) bool {
	select {
	case <-e.complete:
		return !now.Before(e.until)
	default:
		return false
	}
}

// leave removes a user of an entry.
func (t *Relay) leave(e *entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.removeUser(e)
}

// removeUser removes a user, and the charge with the last one. An entry in progress has the map
// as a user. The caller holds mu.
func (t *Relay) removeUser(e *entry) {
	if e.users--; e.users == 0 {
		t.bytes.Release(e.from, e.charged)
	}
}

// removeEntry removes the entry of a query, if there is one. The caller holds mu.
func (t *Relay) removeEntry(key subject) {
	if e := t.entries[key]; e != nil {
		delete(t.entries, key)
		t.kept.Release(e.from, e.kept)
		t.removeUser(e)
	}
}

// sweep removes ended entries, at most once a second, so that their memory is free.
func (t *Relay) sweep() {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.clock()
	if now.Sub(t.swept).Abs() < time.Second {
		return
	}
	t.swept = now
	for key, e := range t.entries {
		if e.hasEnded(now) {
			t.removeEntry(key)
		}
	}
}

// lifetimeOf returns for how long a response may serve further requests.
func lifetimeOf(r api.Relayed, err error) time.Duration {
	if _, full := limit.QuotaOf(err); full {
		return 0 // it concerns one address
	}
	if err != nil || r.Status != http.StatusOK {
		return errorLifetime
	}
	return min(maxAge(r.CacheControl), maxLifetime)
}

// maxAge returns the time for which a Cache-Control field (RFC 9111, section 5.2.2) allows a
// shared cache to keep a response. A field that is not understood allows none.
func maxAge(field string) (age time.Duration) {
	seen := false
	for directive := range strings.SplitSeq(strings.ToLower(field), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
		switch name {
		case "no-store", "no-cache", "private", "s-maxage":
			return 0
		case "max-age":
			seconds, err := strconv.ParseUint(value, 10, 31)
			if err != nil || seen {
				return 0
			}
			seen, age = true, time.Duration(seconds)*time.Second
		}
	}
	return age
}
