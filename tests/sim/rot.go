package sim

import (
	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
)

// rotten is a check at the end of a run: blocks of a secondary go bad, unnoticed,
// and a verify under load finds exactly those, whatever interrupts it; then they are
// repaired, and the copies are equal.
type rotten struct {
	w      *World
	p      *node // primary
	q      *node // whose disk goes bad
	blocks map[int64]bool
	found  map[int64]bool
}

// verifyTime is how long a verify of these small volumes may take: 20 MiB at 200 KiB/s,
// by a clock that may be slow. Beside clients that fill a slow link under protocol A it
// takes longer: it has as long again once it has got on for verifyMost.
const (
	verifyTime = 240 * second
	verifyMost = 2 * verifyTime
)

// rot makes the check. REQUIRES a settled cluster.
func (w *World) rot() {
	p := w.primary()
	r := &rotten{w: w, p: p, q: p.peers[w.n(len(w.nodes)-1)], blocks: map[int64]bool{}, found: map[int64]bool{}}
	w.count("rot")
	for _, n := range w.nodes {
		n.lost = nil // what goes bad in place is not the archive's
	}
	w.rotten = map[int64]bool{}
	for range w.n(4) {
		r.spoil(int64(w.n(int(bitmap.Blocks(w.nodes[0].size)))))
	}
	w.sc.rest = w.sc.pullAhead // or the verify is ended each time its link is full
	if w.p(0.5) {              // a part of it first
		off := int64(w.n(int(w.nodes[0].size - 1)))
		n := 1 + int64(w.n(int(w.nodes[0].size-off)))
		r.verify(off, n)
		w.count("rot in a range")
	}
	r.verify(0, 0)
	for b := range r.blocks { // the order does not matter
		// A client's trim may have gone over it.
		s := b * bitmap.BlockSize / sectorSize
		if !r.found[b] && r.q.disk.at(s) != p.disk.at(s) {
			w.fail("verify: block %d of %s went bad, and verify did not find it; it found %v", b, r.q.name, r.found)
		}
	}
	r.mend()
	w.rotten = nil
	w.await("the repair", func() bool {
		v := p.view(r.q)
		return r.q.proc != nil && v.Live && v.Repl == protocol.Established && v.DirtyBytes == 0
	})
	// What a third node has marked is settled by writes that come after.
	w.runUntil(w.now + 2*second)
	w.quieten()
	w.equal()
}

// spoil changes a sector of a block that clients do not write.
func (r *rotten) spoil(block int64) {
	const per = bitmap.BlockSize / sectorSize
	for s := block * per; s < min((block+1)*per, r.w.nodes[0].size/sectorSize); s++ {
		if r.w.o.slot[s] >= 0 {
			return
		}
	}
	s := block * per
	r.w.log("FAULT block %d of %s goes bad", block, r.q.name)
	r.q.disk.set(s, 0xbad<<16|uint64(s)&0xffff)
	r.q.disk.stabilise(s*sectorSize, sectorSize)
	r.blocks[block] = true
	for i := range int64(per) {
		r.w.rotten[s+i] = true
	}
}

// verify compares a range from end to end, going on where it was interrupted.
func (r *rotten) verify(off, n int64) {
	w := r.w
	end := off + n
	if n == 0 {
		end = w.nodes[0].size
	}
	for tries := 0; off < end; tries++ {
		w.runUntil(w.now + w.between(0, 50*milli))
		w.await("verify: in sync before it", func() bool {
			v := r.p.view(r.q)
			return r.q.proc != nil && v.Live && v.Repl == protocol.Established
		})
		started, ended, failed := false, false, error(nil)
		p := r.p.proc
		id := p.peerID(r.q)
		p.enter(func() {
			p.operate("verify at the end", func(done func(error)) {
				started = p.m.Verify(p.now(), id, replica.VerifyOptions{Off: off, Len: end - off}, done)
			}, func(err error) { ended, failed = true, err })
		})
		if tries < 4 && w.p(0.5) {
			w.at(w.between(0, second), r.disturb)
		}
		position := func() int64 {
			if plan := p.m.Plan(id); plan != nil {
				return plan.Position()
			}
			return 0
		}
		for most := w.now + verifyMost; !ended && w.now < most; {
			at := position()
			w.await("verify: its progress", func() bool { return ended || position() > at })
		}
		w.await("verify: its end", func() bool { return ended })
		if !started {
			continue
		}
		res := p.m.LastVerify(id)
		for _, bad := range res.Bad {
			for b := bad.Off / bitmap.BlockSize; b*bitmap.BlockSize < bad.Off+bad.Len; b++ {
				if !r.blocks[b] {
					w.fail("verify: block %d of %s is said to differ, and nothing went bad there", b, r.q.name)
				}
				r.found[b] = true
			}
		}
		if res.Next > off && res.Next <= end {
			off = res.Next
		}
		if failed == nil {
			w.count("rot verified")
			return
		}
		w.count("rot verify interrupted")
	}
}

// disturb interrupts a verify.
func (r *rotten) disturb() {
	w := r.w
	switch w.n(3) {
	case 0:
		if s := w.net(r.p, r.q).sess; s != nil {
			w.log("FAULT session %s-%s reset", r.p.name, r.q.name)
			s.drop(w.n(2), errReset)
		}
	case 1:
		r.q.crash(w.p(0.5), w.back())
	default:
		if p := r.p.proc; p != nil {
			p.enter(func() {
				p.m.StopVerify(p.now(), p.peerID(r.q), "an operator stopped it")
				p.run()
			})
		}
	}
}

// mend repairs what was found, by the operator's word or by a new connection.
func (r *rotten) mend() {
	p := r.p.proc
	if r.w.p(0.5) {
		r.w.count("rot repaired")
		p.enter(func() {
			p.operate("repair", func(done func(error)) { done(p.m.Repair(p.now(), p.peerID(r.q), false)) }, func(err error) {
				if err != nil {
					r.reconnect()
				}
			})
		})
		return
	}
	r.reconnect()
}

func (r *rotten) reconnect() {
	if s := r.w.net(r.p, r.q).sess; s != nil {
		s.drop(r.w.n(2), errReset)
	}
}

// await runs until something is so.
func (w *World) await(what string, ok func() bool) {
	for end := w.now + verifyTime; !ok(); {
		if w.now > end {
			w.fail("C5: %s does not come\n%s", what, w.dump())
		}
		w.runUntil(w.now + 50*milli)
	}
}

// verify is an operator's verify at any moment: of replicas that are equal, so that
// what it finds is false, unless a write that found no space here has left its mark.
func (p *process) verify(q replica.PeerID) {
	w := p.w
	p.enter(func() {
		started := false
		p.operate("verify "+p.n.peers[q].name, func(done func(error)) {
			started = p.m.Verify(p.now(), q, replica.VerifyOptions{}, done)
		}, func(error) {
			if res := p.m.LastVerify(q); started && res.Differed > 0 && w.counts["no space"] == 0 {
				w.fail("verify: %s finds that %s differs in %v, and nothing went bad", p.n.name, p.n.peers[q].name, res.Bad)
			}
		})
	})
}
