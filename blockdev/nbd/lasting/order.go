package lasting

import "sync"

// order lets requests that overlap pass one after the other, in the order in which
// they came. Those that only read share.
type order struct {
	mu sync.Mutex
	// Guarded by mu: those that passed or wait, oldest first. Their number is that of
	// the callers, so a list will do.
	claims []*claim
}

// claim is one request's range [off, end).
type claim struct {
	off, end int64
	shared   bool
	waits    int      // Guarded by order.mu: earlier claims that are in the way
	blocks   []*claim // Guarded by order.mu: later ones that this one is in the way of
	ready    chan struct{}
}

// enter waits until nothing earlier is in the way of n bytes from off.
func (o *order) enter(off, n int64, shared bool) *claim {
	c := &claim{off: off, end: off + n, shared: shared}
	o.mu.Lock()
	for _, e := range o.claims {
		if c.off < e.end && e.off < c.end && !(c.shared && e.shared) {
			c.waits++
			e.blocks = append(e.blocks, c)
		}
	}
	if c.waits > 0 {
		c.ready = make(chan struct{})
	}
	o.claims = append(o.claims, c)
	o.mu.Unlock()
	if c.ready != nil {
		<-c.ready
	}
	return c
}

// leave lets those pass that c was in the way of.
func (o *order) leave(c *claim) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, e := range o.claims {
		if e == c {
			o.claims = append(o.claims[:i], o.claims[i+1:]...)
			break
		}
	}
	for _, b := range c.blocks {
		if b.waits--; b.waits == 0 {
			close(b.ready)
		}
	}
}
