package sim

import (
	"encoding/binary"
	"errors"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
	"github.com/qrbd/qrbd/volume/archive"
)

// chooseRestores has sides be given up, kept, and put back.
func (w *World) chooseRestores() {
	sc := &w.sc
	sc.restores = true
	sc.honest = w.p(0.3)
	sc.archiveAlways = w.p(0.7)
	sc.archiveLimit = []int64{1 << 20, 1 << 40, 1 << 40}[w.n(3)]
	sc.length = max(sc.length, 15*second)
}

// lostArchive returns the archive of what the node gave up last, if it is exact and
// the simulator knows what must be in it.
func (n *node) lostArchive() *archive.Info {
	if n.proc == nil || n.lost == nil {
		return nil
	}
	list, err := n.proc.archives.List()
	if err != nil {
		n.w.fail("C8: %s: %v", n.name, err)
	}
	for i := range list {
		if list[i].Header.File == n.lost.id && list[i].Exact() {
			return &list[i]
		}
	}
	return nil
}

// undo is an operator who puts back what a node gave up, mostly after he has cut it
// off from the others, and has them give up theirs then, or gives it up again.
func (w *World) undo() {
	var list []*node
	for _, n := range w.nodes {
		if p := n.proc; p != nil && !p.paused && !p.stopping && n.lostArchive() != nil {
			list = append(list, n)
		}
	}
	if len(list) == 0 {
		return
	}
	n := list[w.n(len(list))]
	p := n.proc
	if p.seen.role == protocol.Primary && w.p(0.8) {
		p.enter(func() { p.operate("demote", func(done func(error)) { p.m.Demote(p.now(), done) }, nil) })
	}
	if w.p(0.9) {
		for i := range n.peers {
			p.enter(func() { p.m.Disconnect(p.now(), replica.PeerID(i)); p.run() })
		}
	}
	w.at(w.between(0, 300*milli), func() {
		if info := n.lostArchive(); info != nil && n.proc == p && !p.paused && !p.stopping {
			p.enter(func() { p.restore(info, func(error) { w.afterRestore(n) }) })
		}
	})
}

// afterRestore decides who wins now.
func (w *World) afterRestore(n *node) {
	won := w.p(0.6)
	w.at(w.between(0, 2*second), func() {
		for _, q := range n.peers {
			if !won {
				n.connect(q, true)
				q.connect(n, false)
				continue
			}
			then := func(error) {
				q.connect(n, true)
				n.connect(q, false)
			}
			if p := q.proc; p != nil && !p.paused && !p.stopping && p.seen.role == protocol.Primary {
				p.enter(func() { p.operate("demote", func(done func(error)) { p.m.Demote(p.now(), done) }, then) })
				continue
			}
			then(nil)
		}
	})
}

var errInterrupted = errors.New("the operator has no patience")

// restore is volume.RestoreArchive.
func (p *process) restore(info *archive.Info, then func(error)) {
	w := p.w
	f, err := p.archives.Look(info.Name)
	if err != nil {
		w.fail("C8: %s: %v", p.n.name, err)
	}
	if err := f.Each(func(int64, []byte) error { return nil }); err != nil {
		w.fail("C8: %s: %v", p.n.name, err)
	}
	h := info.Header
	given := replica.GivenUp{Lost: h.Lost, Kept: h.Kept, History: h.History}
	p.operate("archive restore", func(done func(error)) {
		p.awaitSettled(w.now+w.sc.writeTimeout, func(err error) {
			if err != nil {
				done(err)
				return
			}
			p.beginRestore(f, given, done)
		})
	}, func(err error) {
		if err := f.Release(); err != nil {
			w.fail("%s: %v", p.n.name, err)
		}
		then(err)
	})
}

// beginRestore is volume.beginRestore, and what follows it.
func (p *process) beginRestore(f *archive.File, given replica.GivenUp, done func(error)) {
	info := f.Info()
	lost := p.n.lost
	if p.restoring || p.late() != nil || !info.Exact() || lost == nil || lost.id != info.Header.File {
		done(errors.New("not now"))
		return
	}
	before := p.putting
	p.putting, p.restoring = true, true
	answer := done
	done = func(err error) {
		p.restoring = false
		answer(err)
	}
	p.m.Restore(p.now(), given, func(err error) {
		if err != nil {
			p.putting = before
			done(err)
			return
		}
		p.w.count("restores begun")
		p.w.o.st[p.n.index].half = true // from here on blocks are written
		p.put(f, func(err error, fatal bool) { p.endRestore(given, lost, err, fatal, done) })
	})
	p.run()
}

// endRestore tells the machine, and seals the archive.
func (p *process) endRestore(given replica.GivenUp, lost *lostSide, err error, fatal bool, done func(error)) {
	if err == nil {
		p.putBack = lost
	}
	p.m.Restored(p.now(), given, err, fatal, func(err error) {
		if err == nil {
			p.w.count("restores done")
			p.n.shelf.trouble(0.05)
			err := p.archives.SealOne(lost.id, "restored")
			if p.n.shelf.endTrouble(p) {
				return
			}
			p.w.log("%s: the archive of %s was restored and ends: %v", p.n.name, short(given.Lost), err)
		}
		done(err)
	})
	p.putting = false
	if p.m.View().Disk <= protocol.Inconsistent {
		p.putBack = nil // it failed
	}
	p.run()
}

// put writes the blocks of an archive back, while anything may happen.
func (p *process) put(f *archive.File, then func(err error, fatal bool)) {
	type kept struct {
		off, n int64
		vals   []uint64 // nil: zeroes
	}
	var list []kept
	err := f.Each(func(block int64, data []byte) error {
		k := kept{off: block * blockdev.BlockSize}
		k.n = min(blockdev.BlockSize, p.n.size-k.off)
		if data != nil {
			for i := int64(0); i < k.n; i += sectorSize {
				k.vals = append(k.vals, binary.LittleEndian.Uint64(data[i:]))
			}
		}
		list = append(list, k)
		return nil
	})
	if err != nil {
		p.w.fail("C8: %s: %v", p.n.name, err)
	}
	d := p.n.disk
	var next func(i int)
	next = func(i int) {
		switch {
		case i == len(list):
			d.flush(p, func(err error) { then(err, err != nil) })
			return
		case !p.w.calm && p.w.p(1/float64(len(list)+1)):
			p.disturb()
			if p.dead {
				return
			}
			if p.w.p(0.2) {
				then(errInterrupted, false)
				return
			}
		}
		k := list[i]
		d.write(p, k.off, k.n, k.vals, false, func(err error) {
			if err != nil {
				then(err, !errors.Is(err, errSpace))
				return
			}
			p.after(p.soon(), func() { next(i + 1) })
		})
	}
	next(0)
}

// disturb has something happen in the middle of a restore.
func (p *process) disturb() {
	n, w := p.n, p.w
	q := n.peers[w.n(len(n.peers))]
	switch w.n(9) {
	case 0:
		n.crash(false, w.back())
	case 1, 2:
		n.crash(true, w.back())
	case 3:
		n.promote(replica.PromoteOptions{PeerFenced: true, Force: w.p(0.5)})
	case 4:
		w.connectBoth(n, q)
	case 5:
		n.connect(q, true)
		q.connect(n, false)
	case 6:
		if info := n.lostArchive(); info != nil {
			p.restore(info, func(error) {})
		}
	case 7:
		w.restart(n)
	case 8:
		w.failover()
	}
}

// restored: what was given up is in place again, to the last sector, and counts for
// what it counted then.
func (o *oracle) restored(p *process, x *lostSide) {
	n, w := p.n, p.w
	for s := range n.disk.size / sectorSize {
		page := x.pages[int(s/sectorsPage)]
		if got, want := n.disk.at(s), page[s%sectorsPage]; got != want && !w.rotten[s] {
			w.fail("C8: %s has put %s back, and has %s in sector %d, not %s", n.name, short(x.gen), valueText(got), s, valueText(want))
		}
	}
	st := o.st[n.index]
	gen := st.gen
	*st = x.st
	st.gen, st.hurt, st.fua = gen, w.now, map[int32]forced{}
	for s, f := range x.st.fua {
		st.fua[s] = f
	}
	st.broken, st.gaveUp, st.half, st.joint, st.over = false, false, false, join{}, nil
	st.back = true
	st.dur = st.vol // it was flushed before it was given up, and after it was put back
	p.putBack, p.seen.syncFrom = nil, -1
	w.count("lost sides put back")
	w.log("oracle: %s has put %s back, branch %d at %d, floors %d", n.name, short(x.gen), st.br.id, st.pos, st.vol)
}

// mendRestores ends restores that were interrupted; true: one goes on.
func (w *World) mendRestores() bool {
	if !w.sc.restores {
		return false
	}
	for _, n := range w.nodes {
		p := n.proc
		if p == nil || !p.m.Restoring() {
			continue
		}
		if p.putting {
			return true
		}
		if info := n.lostArchive(); info != nil {
			p.enter(func() { p.restore(info, func(error) {}) })
			return true
		}
		for _, q := range n.peers {
			n.connect(q, true)
		}
	}
	return false
}
