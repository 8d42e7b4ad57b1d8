package sim

import (
	"math/rand/v2"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
	"github.com/qrbd/qrbd/volume/archive"
	"github.com/qrbd/qrbd/volume/meta"
)

// A broken promise often shows only when a fault hits the moment at which it is broken, and
// nothing has mended it by then. The checks in this file look at such moments themselves, and
// say what the fault would find. They change nothing, and draw from numbers of their own.

// proven is C3 of one step of a sync from a primary under C: where clear, which takes the
// target's word that a flush is done, has taken bits back, the two are equal, unless a request
// for the place is under way.
func (o *oracle) proven(l *link, clear func()) {
	p, n := l.p, l.peer
	if p.seen.branch == nil || o.w.sc.mode(p.n, n) != protocol.ModeC || p.n.disk.failed || n.disk.failed || left(n, p, l) || p.look().Bare {
		clear()
		return
	}
	bits := p.dirty[l.id]
	var marked []int64
	for _, s := range o.hot {
		if int64(s)*sectorSize < p.n.size && bits.Test(int64(s)*sectorSize/bitmap.BlockSize) {
			marked = append(marked, int64(s))
		}
	}
	clear()
	for _, s := range marked {
		a, b := p.n.disk.at(s), n.disk.at(s)
		if a == b || bits.Test(s*sectorSize/bitmap.BlockSize) || o.w.rotten[s] || p.underWay(s) || p.n.disk.writing(s) || n.disk.writing(s) {
			continue
		}
		o.w.fail("C3: the bit of sector %d is cleared on %s, which has %s, and %s has %s, and nothing is under way there",
			s, p.n.name, valueText(a), n.name, valueText(b))
	}
}

// underWay reports whether a client waits for a request that touches a sector.
func (p *process) underWay(s int64) bool {
	for c := range p.ops {
		if off := s * sectorSize; c.r.Off <= off && off < c.r.Off+c.r.Len {
			return true
		}
	}
	return false
}

// cooled is C3 after an outage at the moment at which extents have left a node's activity map.
func (o *oracle) cooled(n *node) {
	for _, net := range o.w.nets {
		if net.a == n || net.b == n {
			o.covered(net.a, net.b)
		}
	}
}

// ended is C8 at the end of an archive: whoever is stopped now does not go on giving up what
// it has no archive of any more.
func (p *process) ended(lost protocol.Generation) {
	if sup := &p.n.meta.believed().Super; sup.Lost == lost && sup.Archive != 0 && p.archives.ID() != sup.Archive {
		p.w.fail("C8: were it stopped now, %s would go on giving up %s, whose archive has ended", p.n.name, short(lost))
	}
}

// reopened is C8 of archives as the node would find them, were it killed now and started.
func (p *process) reopened() {
	n := p.n
	if !n.shaky || n.lost == nil {
		return
	}
	id := uint64(0)
	d, err := archive.OpenDir(p.archiveOptions(n.shelf.copied(), n.meta.kept(n.meta.visible, n.name+" is killed").Super.Archive, func() uint64 { id++; return id }), diskBase{n})
	if err != nil {
		p.w.fail("%s, were it killed now: archives: %v", n.name, err)
	}
	n.checkLost(d)
	if err := d.Close(); err != nil {
		p.w.fail("%s, were it killed now: archives: %v", n.name, err)
	}
}

// cutShort is P7 of a commit: whatever part of it a power cut leaves, the metadata can be read.
func (s *metaStore) cutShort() {
	rng := s.w.looks
	if rng.IntN(8) != 0 {
		return
	}
	durable := make(map[int64]*[metaPage]byte, len(s.durable))
	for i, p := range s.durable {
		durable[i] = p
	}
	pending := append([]*metaWrite(nil), s.unsynced...)
	settle := func(chance int) { // in so many of 4 cases a page arrives, else none or some of it
		for _, m := range pending {
			switch k := rng.IntN(4); {
			case k < chance:
				durable[m.page] = &m.data
			case k == 3:
				old := durable[m.page]
				if old == nil {
					old = &noPage
				}
				durable[m.page] = &s.tearBy(rng, m, old).data
			}
		}
		pending = nil
	}
	for _, op := range s.log[:rng.IntN(len(s.log)+1)] {
		if op.write == nil {
			settle(4)
		} else {
			pending = append(pending, op.write)
		}
	}
	settle(2)
	if _, err := meta.Recover(image{durable, s.fixed}, s.fixed); err != nil {
		s.w.fail("P7: were the power cut in the middle of this commit, the metadata could not be read: %v", err)
	}
}

// tearBy returns m with some of its sectors as they were.
func (s *metaStore) tearBy(rng *rand.Rand, m *metaWrite, old *[metaPage]byte) *metaWrite {
	t := &metaWrite{page: m.page, data: *old}
	for i := 0; i < metaPage; i += sectorSize {
		if rng.IntN(2) == 0 {
			copy(t.data[i:i+sectorSize], m.data[i:i+sectorSize])
		}
	}
	return t
}

// bonded is C4 with fencing, at the moment of a write's acknowledgement: whoever would be
// promoted once the primary is fenced has the write.
func (o *oracle) bonded(p *process, c *clientOp) {
	if !o.w.hasFencing() || !o.w.strict() {
		return
	}
	if c.bare && o.w.looks.IntN(4) == 0 { // what is stored there may be older than what is so
		o.alone()
	}
	for _, n := range p.n.peers {
		q := n.proc
		if q == nil || q.stopping {
			continue
		}
		if v := q.m.View(); !v.Peers[q.peerID(p.n)].Bonded || v.Disk <= protocol.Outdated {
			continue
		}
		o.within(c.r.Off, c.r.Len, func(s, h int32) {
			if x := n.disk.at(int64(s)); !c.br.legal(h, x, o.idx, 0) {
				o.w.fail("C4: %s acknowledges %s in sector %d, and %s, which takes over once %s is fenced, has %s: %s",
					p.n.name, valueText(c.value(s)), s, n.name, p.n.name, valueText(x), c.br.text(h))
			}
		})
	}
}

// alone is C4 with fencing, were all nodes killed now: whoever is promoted then although
// nobody else is back has all that was acknowledged.
func (o *oracle) alone() {
	if !o.w.hasFencing() || !o.w.strict() {
		return
	}
	for _, n := range o.w.nodes {
		st := o.st[n.index]
		if n.disk.failed || st.gaveUp || o.revived(n, false).MayPromote(o.w.now, replica.PromoteOptions{}) != nil {
			continue
		}
		for _, x := range n.peers {
			other := o.st[x.index]
			if other.gaveUp || other.broken {
				continue
			}
			if i := unique(other.mark(), st.mark()); i != 0 {
				if e := o.more(x, n, i); e != nil {
					o.w.fail("C4: were all killed now, %s would be promoted when nobody else is back, without write %d (%s), which was acknowledged and which %s has",
						n.name, e.idx, valueText(e.val), x.name)
				}
			}
		}
	}
}
