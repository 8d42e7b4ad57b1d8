package sim

import (
	"github.com/qrbd/qrbd/protocol"
)

// What a quorum promises beyond oneServes. Nothing of it holds any more once an
// operator has forced a promotion or vouched for somebody's death.

// asked: a candidate asks for leave, or has been asked to be promoted.
func (p *process) asked(id uint64) {
	if p.ask != id {
		p.ask, p.leaves = id, map[*node]bool{}
	}
}

// told notes what a node has heard from another of roles and of leaving.
func (p *process) told(from *node, msg protocol.Message) {
	switch m := msg.(type) {
	case *protocol.PromoteAnswer:
		if m.Yes && m.ID == p.ask {
			p.leaves[from] = true
		}
	case *protocol.Handover, *protocol.HandoverAnswer: // from who was followed, or back to it
		p.handed = p.w.done
	case *protocol.Leave:
		p.gone[from] = true
	case *protocol.Ballot:
		if !m.Left {
			delete(p.gone, from)
		}
	default:
	}
}

// take hands a message to the machine.
func (p *process) take(l *link, msg protocol.Message) {
	p.told(l.peer, msg)
	p.m.Receive(p.now(), l.id, msg)
	if _, state := msg.(*protocol.State); state && p.m.Held(l.id) { // nothing else holds after one
		p.w.count("primary heard before the last one's farewell")
	}
}

// elected: C4. Nobody is promoted without the leave of enough nodes, nor without what
// somebody has acknowledged and still has.
func (o *oracle) elected(p *process, forced bool) {
	leaves, handed := p.leaves, p.handed == o.w.done
	p.asked(0)
	switch {
	case !o.w.hasQuorum():
		return
	case forced || p.vouched:
		o.excused = o.excused || o.served != 0
		return
	case o.excused:
		return
	}
	n, missing := 1, false
	slots := p.n.meta.believed().Super.Peers
	for i, q := range p.n.peers {
		const left = 2 // of meta.PeerSlot.Flags, as stored says
		switch {
		case leaves[q]:
			n++
		case p.gone[q] || i < len(slots) && slots[i].Flags&left != 0:
		default:
			missing = true
		}
	}
	if need := o.w.sc.quorum.Need(1 + len(p.n.peers)); !handed && missing && n < need {
		o.w.fail("C4: %s is promoted with the leave of %d nodes, itself among them, of %d that it needs", p.n.name, n, need)
	}
	st := o.st[p.n.index]
	for _, q := range o.w.nodes {
		x := o.st[q.index]
		if q == p.n || x.broken || x.gaveUp {
			continue
		}
		if first := unique(x.mark(), st.mark()); first != 0 {
			if e := o.more(q, p.n, first); e != nil {
				o.w.fail("C4: %s is promoted, and does not have write %d (%s, branch %d of %s), which was acknowledged and is on %s",
					p.n.name, e.idx, valueText(e.val), x.br.id, x.br.owner, q.name)
			}
		}
	}
}

// split: C4. With a quorum there are no two sides. A disk that failed, or is in the middle
// of being overwritten, is none.
func (o *oracle) split(n, other *node) {
	if !o.w.hasQuorum() || o.excused {
		return
	}
	for _, x := range []*node{n, other} {
		if x.proc == nil || x.proc.look().Disk <= protocol.Inconsistent {
			return
		}
	}
	o.w.fail("C4: %s and %s have diverged in spite of a quorum\n%s", n.name, other.name, o.w.dump())
}

// outlived: C5. A primary that was superseded, and has had the time to hear of it, is
// none any more, before any operator helps.
func (o *oracle) outlived(n *node) {
	if p := n.proc; o.w.hasQuorum() && !o.excused && p != nil && p.look().Role == protocol.Primary && p.reign < o.served {
		o.w.fail("C5: %s, promotion %d, is still primary although promotion %d has answered\n%s", n.name, p.reign, o.served, o.w.dump())
	}
}
