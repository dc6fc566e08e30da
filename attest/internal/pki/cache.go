package pki

import "sync"

// Cache remembers what was verified, by what it was verified from. The zero Cache is
// empty and ready. It is safe for concurrent use; its values are immutable.
type Cache[K comparable, V any] struct {
	mu  sync.Mutex // guards all
	all map[K]V
}

// Load returns what Put keeps under a key.
func (c *Cache[K, V]) Load(key K) (V, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.all[key]
	return v, ok
}

// Store keeps a value. Of so many values already it forgets any one: the keys are of
// bytes that strangers send, so no order of theirs may decide.
func (c *Cache[K, V]) Store(key K, value V, most int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil {
		c.all = make(map[K]V)
	}
	if _, kept := c.all[key]; !kept && len(c.all) >= most {
		for other := range c.all {
			delete(c.all, other)
			break
		}
	}
	c.all[key] = value
}
