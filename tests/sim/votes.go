package sim

import (
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
)

// votesFrom is the first of the seeds in which votes are attacked on purpose, votesSeeds
// how many there are. What breaks a rule of votes takes several things within one lease:
// who must not have noticed yet, who already has, who was there a moment ago. A drill does
// them in that order, with times by seed.
const (
	votesFrom  = 8_500_000
	votesSeeds = 100_000
)

func (w *World) drills() bool { return w.seed >= votesFrom && w.seed < votesFrom+votesSeeds }

func (w *World) chooseDrills() {
	if !w.drills() {
		return
	}
	sc := &w.sc
	sc.quorum = replica.Quorum{Kind: replica.QuorumMajority}
	sc.lease = []int64{2 * second, 4 * second}[w.n(2)]
	sc.silence = []int64{3 * second, 6 * second}[w.n(2)]
	sc.length = 40 * second
	sc.pace = 400 * milli
	sc.ambush, sc.metaFail, sc.diskFail, sc.badDisks = 0, 0, 0, 0
	sc.netMin = min(sc.netMin, milli)
	sc.netMax = min(sc.netMax, 10*milli)
	sc.clients = min(sc.clients, 3)
	sc.think = max(sc.think, 5*milli)
	sc.flushInterval = min(sc.flushInterval, 200*milli)
	sc.metaTime = min(sc.metaTime, 2*milli)
	if sc.size > 1<<20 && sc.sync.RateBytes != 0 {
		sc.sync.RateBytes = 20 << 20
	}
}

// cast is who plays what in a drill: the primary, who is to succeed it, and the other
// voter, which may be a witness.
type cast struct {
	w                   *World
	primary, heir, vote *node
	lease               int64
	cuts                []*net
}

// drill begins one; false: one is under way, or nobody serves.
func (w *World) drill() bool {
	p := w.primary()
	if w.drilling || w.calm || p == nil || p.paused() || p.busy || !p.proc.look().Serving {
		return false
	}
	c := &cast{w: w, primary: p, lease: w.sc.lease}
	all := p.peers
	c.heir = w.nodes[w.n(len(w.nodes))]
	for c.heir == p {
		c.heir = w.nodes[w.n(len(w.nodes))]
	}
	for _, n := range all {
		if n != c.heir {
			c.vote = n
		}
	}
	for _, n := range []*node{c.heir, c.vote} {
		if n == nil || n.proc == nil || n.paused() || n.busy {
			return false
		}
	}
	kinds := []struct {
		name string
		play func()
	}{{"asleep", c.asleep}, {"unheard", c.unheard}, {"half", c.half}, {"behind", c.behind}, {"gone", c.gone}, {"alone", c.alone}}
	k := kinds[w.n(len(kinds))]
	w.count("drill " + k.name)
	w.log("DRILL %s: primary %s, heir %s, voter %s", k.name, p.name, c.heir.name, c.vote.name)
	w.drilling = true
	k.play()
	return true
}

// later calls fn some time from now unless faults have ended.
func (c *cast) later(d int64, fn func()) {
	c.w.at(d, func() {
		if !c.w.calm {
			fn()
		}
	})
}

// part cuts two nodes off from one another. quick notices at once, the other when
// it does.
func (c *cast) part(quick, other *node) {
	n := c.w.net(quick, other)
	c.w.log("FAULT cut %s off from %s, which notices", other.name, quick.name)
	n.setCut(true, true)
	c.cuts = append(c.cuts, n)
	if s := n.sess; s != nil {
		s.drop(n.side(quick), errReset)
	}
}

// seize has the heir, and the other voter if it has data, be promoted again and again for
// some time.
func (c *cast) seize(from, d int64) {
	for t := from; t < from+d; t += c.w.between(50*milli, 300*milli) {
		n := c.heir
		if !c.vote.witness && c.w.p(0.2) {
			n = c.vote
		}
		c.later(t, func() {
			if !n.busy && (n.proc == nil || n.proc.look().Role != protocol.Primary) {
				n.promote(replica.PromoteOptions{})
			}
		})
	}
}

// rest has clients, but those that only read, be quiet.
func (c *cast) rest(d int64) {
	c.w.sc.rest = true
	c.w.at(d, func() { c.w.sc.rest = c.w.calm && c.w.sc.rest })
}

// end heals everything at last; sometimes nobody is primary any more but who was first.
func (c *cast) end(at int64) {
	if c.w.p(0.4) {
		c.later(at-100*milli, func() {
			for _, n := range c.w.nodes {
				if p := n.proc; n != c.primary && p != nil && !p.paused && !p.stopping && p.look().Role == protocol.Primary {
					p.enter(func() { p.operate("demote", func(done func(error)) { p.m.Demote(p.now(), done) }, nil) })
				}
			}
		})
	}
	c.w.at(at, func() {
		for _, n := range c.cuts {
			n.setCut(false, false)
		}
	})
	c.w.at(at+c.w.between(second, 3*second), func() { c.w.drilling = false })
}

// asleep: the primary is paused, its successor promoted; then it wakes with requests.
func (c *cast) asleep() {
	w := c.w
	d := w.between(c.lease, 4*c.lease)
	w.count("pause")
	c.primary.pause(d)
	for range 4 {
		c.primary.proc.enter(c.primary.proc.read)
	}
	for _, n := range []*node{c.heir, c.vote} {
		if s := w.net(n, c.primary).sess; s != nil {
			c.later(w.between(0, 200*milli), func() { s.drop(w.net(n, c.primary).side(n), errSilence) })
		}
	}
	c.seize(0, 3*c.lease)
	c.end(d + second)
}

// unheard: the primary is cut off, and learns of it later than the others.
func (c *cast) unheard() {
	c.part(c.heir, c.primary)
	c.part(c.vote, c.primary)
	c.seize(0, 2*c.lease)
	c.end(c.w.between(c.lease, 3*c.lease))
}

// half: the heir has been without the primary for so long that it owes it nothing; the
// voter, which has followed until now, loses it too, and may have forgotten that it
// followed.
func (c *cast) half() {
	w := c.w
	c.rest(second + 4*c.lease)
	forget := w.p(0.6)
	c.later(second, func() { c.part(c.heir, c.primary) })
	c.later(second+c.lease*13/10, func() {
		c.part(c.vote, c.primary)
		if forget {
			c.vote.crash(w.p(0.5), w.between(milli, 20*milli))
		}
	})
	c.seize(second+c.lease*13/10, c.lease)
	c.end(second + 3*c.lease)
}

// behind: the primary goes on without the heir, with the voter; then it is gone.
func (c *cast) behind() {
	w := c.w
	c.part(c.heir, c.primary)
	if w.p(0.5) { // as soon as it has begun a generation without the heir
		w.minted = func(n *node) {
			if n == c.primary && !w.calm {
				w.minted = nil
				c.part(c.vote, c.primary)
			}
		}
	}
	gone := w.between(200*milli, second)
	c.later(gone, func() {
		w.minted = nil
		switch w.n(3) {
		case 0:
			c.primary.crash(w.p(0.5), 4*c.lease)
		default:
			c.part(c.vote, c.primary)
		}
	})
	c.seize(gone, 2*c.lease)
	c.end(gone + 3*c.lease)
}

// gone: the others leave in order, and come back where the primary does not see them.
func (c *cast) gone() {
	w := c.w
	for i, n := range []*node{c.heir, c.vote} {
		c.later(int64(i)*w.between(100*milli, second), func() { w.leave(n, 2*second) })
	}
	c.later(second+w.between(0, second), func() {
		c.part(c.heir, c.primary)
		c.part(c.vote, c.primary)
	})
	c.seize(3*second, 2*c.lease)
	c.end(4*second + 2*c.lease)
}

// alone: each of two is primary, and alone, before anybody has followed what it began.
func (c *cast) alone() {
	w := c.w
	c.part(c.heir, c.primary)
	c.part(c.vote, c.primary)
	c.later(100*milli, func() { c.rest(2 * c.lease) })
	c.seize(c.lease, c.lease)
	c.later(2*c.lease+w.between(0, 200*milli), func() { c.part(c.vote, c.heir) })
	c.later(3*c.lease, func() {
		for _, n := range w.nodes {
			n.crash(w.p(0.3), w.between(milli, second))
		}
	})
	c.end(3*c.lease + 100*milli)
}

// leave stops a node in order, and starts it again at a time from now.
func (w *World) leave(n *node, back int64) {
	p, at := n.proc, w.now+back
	if p == nil || p.stopping || p.paused || n.busy {
		return
	}
	n.busy = true
	w.count("restart")
	p.enter(func() {
		p.shutdown(func() {
			w.at(max(at-w.now, milli), func() {
				n.busy = false
				n.start()
			})
		})
	})
}

func (n *node) paused() bool { return n.proc != nil && n.proc.paused }

// read is a client that only reads, so that there is always one who asks.
func (p *process) read() {
	w := p.w
	if p.seen.role != protocol.Primary || p.seen.branch == nil || p.stopping || p.reading >= 4 {
		return
	}
	o := &clientOp{lone: true, proc: p, at: w.now}
	win := w.sc.windows[w.n(len(w.sc.windows))]
	o.r = replica.Request{Op: replica.Read, Tag: o, Off: win[0] * 4096, Len: sectorSize}
	p.ops[o] = true
	p.reading++
	w.o.submitted(p, o)
	p.m.Submit(p.now(), &o.r)
	p.run()
}

// readers has somebody read now and then.
func (p *process) readers() {
	if !p.w.drills() {
		return
	}
	p.after(p.w.between(10*milli, 60*milli), func() {
		p.read()
		p.readers()
	})
}
