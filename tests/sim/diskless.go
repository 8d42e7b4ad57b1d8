package sim

import (
	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
	"github.com/qrbd/qrbd/volume/meta"
)

// serve is link.toServe, and a server that is free.
func (l *link) serve(r protocol.PeerRead, failed error) {
	p := l.p
	answer := &protocol.PeerReply{ID: r.ID, Len: r.Len}
	if failed != nil {
		answer.Code = protocol.CodeDiskFailed
		l.answerRead(answer, nil)
		return
	}
	p.after(p.soon(), func() {
		p.n.disk.read(p, r.Off, r.Len, func(vals []uint64, err error) {
			if err != nil {
				answer.Code = protocol.CodeDiskFailed
				l.answerRead(answer, nil)
				return
			}
			for _, v := range vals {
				if v != 0 {
					l.answerRead(answer, vals)
					return
				}
			}
			answer.Zero = true
			l.answerRead(answer, nil)
		})
	})
}

func (l *link) answerRead(a *protocol.PeerReply, vals []uint64) {
	if !l.current() {
		return
	}
	if err := l.writeBulk(a, vals); err != nil {
		l.lost(err)
	}
}

// farRead is link.farRead.
func (l *link) farRead(a *protocol.PeerReply, vals []uint64) {
	p := l.p
	if !l.current() {
		return
	}
	if r, at := p.m.FarRead(l.id, a); r != nil && a.Code == protocol.CodeNone {
		if a.Zero {
			vals = make([]uint64, (a.Len+sectorSize-1)/sectorSize)
		}
		if r.Op == replica.Pull {
			p.pulled[r] = vals
		} else {
			o := r.Tag.(*clientOp)
			if len(o.got) != int(r.Len/sectorSize) {
				o.got = make([]uint64, r.Len/sectorSize)
			}
			copy(o.got[at/sectorSize:], vals)
		}
		p.w.count("read from a peer")
	}
	p.m.FarReadDone(p.now(), l.id, a)
	p.run()
}

// replaceDisk is volume.ReplaceDisk of a primary: an empty disk, and metadata that
// know nothing.
func (p *process) replaceDisk() {
	n, w := p.n, p.w
	if p.m.MayReplace(p.now()) != nil {
		return
	}
	if sc := &w.sc; sc.diskTimeout > 0 && len(n.disk.order) > 0 {
		w.count("replaced not under what is stuck")
		return // as volume's: requests are stuck in the failed disk
	}
	w.count("disk replaced under a primary")
	w.log("operator: new disk for the primary %s", n.name)
	if err := p.archives.Seal("the disk was replaced"); err != nil {
		w.fail("%s: sealing the archive of a replaced disk: %v", n.name, err)
	}
	p.checkLost()
	n.lost = nil // it lay over the old disk
	if err := p.archives.Abandon(p.archives.ID()); err != nil {
		w.fail("%s: %v", n.name, err)
	}
	n.disk = newDisk(w, w.sc.size)
	super := meta.Super{Size: n.size, Node: n.name, Name: "crm", Disk: protocol.Inconsistent, Clean: true}
	for _, q := range n.peers {
		super.Peers = append(super.Peers, meta.PeerSlot{Name: q.name})
	}
	start, size, err := meta.Format(&super, w.id())
	if err != nil {
		panic(err)
	}
	n.meta = newMetaStore(w, start, size)
	file, state, err := meta.Open(n.meta)
	if err != nil {
		w.fail("%s: new metadata: %v", n.name, err)
	}
	p.file, p.super = file, state.Super
	st := w.o.st[n.index]
	st.broken, st.gaveUp = true, true
	p.m.Replaced(p.now())
	p.run()
}

// diskTrouble has a disk fail, mostly the primary's, or replaces one.
func (w *World) diskTrouble() {
	n := w.any()
	if x := w.primary(); x != nil && w.p(0.6) {
		n = x
	}
	switch {
	case n.needsDisk() && w.p(0.7):
		w.replace(n)
	case w.p(0.4):
		w.badSectors(n)
	default:
		w.log("FAULT disk of %s will fail", n.name)
		n.disk.failOp = 1 + w.n(20)
	}
}

// badSectors makes some that clients use unreadable.
func (w *World) badSectors(n *node) {
	if n.disk.bad == nil {
		n.disk.bad = map[int64]bool{}
	}
	win := w.sc.windows[w.n(len(w.sc.windows))]
	from := win[0]*bitmap.BlockSize/sectorSize + int64(w.n(int((win[1]-win[0])*bitmap.BlockSize/sectorSize)))
	w.count("bad sectors")
	w.log("FAULT sectors from %d of %s are bad", from, n.name)
	for i := range int64(1 + w.n(16)) {
		if (from+i+1)*sectorSize <= w.sc.size {
			n.disk.bad[from+i] = true
		}
	}
}

// carries: a primary without a disk of its own takes a replica for its data. C6:
// it must hold everything that was acknowledged in this reign.
func (o *oracle) carries(p *process, n *node) {
	st, b := o.st[n.index], p.seen.branch
	o.holds("C6", n, b, o.idx)
	st.br, st.pos, st.vol = b, o.idx, o.idx
	o.w.count("a peer carries the data again")
	o.w.log("oracle: %s carries the data of %s, branch %d at %d", n.name, p.n.name, b.id, st.pos)
}

// filled: the replaced disk of a primary counts again. C6.
func (o *oracle) filled(p *process) {
	st, b := o.st[p.n.index], p.seen.branch
	o.holds("C6", p.n, b, o.idx)
	st.br, st.pos, st.vol, st.dur, st.fua = b, o.idx, o.idx, p.seen.fillIdx, map[int32]forced{}
	st.broken, st.gaveUp, st.lost, st.hurt = false, false, false, 0
	o.w.count("a replaced disk was filled")
	o.w.log("oracle: the new disk of %s is filled, branch %d at %d, durable %d", p.n.name, b.id, st.pos, st.dur)
}

// holds checks a disk against everything acknowledged up to floor in a branch.
func (o *oracle) holds(what string, n *node, b *branch, floor int) {
	for h, s := range o.hot {
		if v := n.disk.at(int64(s)); !b.legal(int32(h), v, floor, b.id) {
			o.w.fail("%s: %s counts as a copy and has %s in sector %d; it must have everything up to %d of branch %d: %s",
				what, n.name, valueText(v), s, floor, b.id, b.text(int32(h)))
		}
	}
}
