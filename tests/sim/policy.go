package sim

import (
	"math/rand/v2"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
)

// choosePolicies has the configurations say what to do about a split brain. It draws
// from a source of its own, so that what else a seed does stays as it was.
func (w *World) choosePolicies() {
	rng := rand.New(rand.NewPCG(w.seed, 0x5b))
	w.sc.ask = rng.Float64() < 0.2
	one := func() protocol.SplitPolicy {
		p := protocol.SplitPolicy{Pri0: protocol.AfterSB(rng.IntN(6))}
		if p.Pri0 == protocol.DiscardNode {
			p.Node = []string{"alpha", "beta", "gamma"}[rng.IntN(3)]
		}
		p.Pri1 = []protocol.AfterSB{protocol.AfterSBDisconnect, protocol.Consensus, protocol.DiscardSecondary, protocol.CallPriLost}[rng.IntN(4)]
		p.Pri2 = []protocol.AfterSB{protocol.AfterSBDisconnect, protocol.CallPriLost}[rng.IntN(2)]
		return p
	}
	if rng.Float64() < 0.4 {
		return
	}
	p := one()
	for i := range w.sc.policies {
		w.sc.policies[i] = p
		if rng.Float64() < 0.05 {
			w.sc.policies[i] = one()
		}
	}
}

// policySettles notes that a policy has p overwritten by from. C4: where policies
// may lose acknowledged writes, they have said so; where not, overwritten judges.
func (o *oracle) policySettles(p *process, from *node, rule replica.Rule) {
	mine, theirs := o.w.sc.policies[p.n.index], o.w.sc.policies[from.index]
	o.w.count("settled by " + string(rule))
	if mine != theirs {
		o.w.fail("C4: %s is overwritten by %s, rule %s, but the policies differ", p.n.name, from.name, rule)
	}
	if p.seen.role == protocol.Primary {
		o.w.fail("C4: %s, primary, is overwritten by %s, rule %s", p.n.name, from.name, rule)
	}
	may := false
	switch {
	case rule == replica.RuleAfterSB1 && mine.Pri1 == protocol.DiscardSecondary:
		may = true
	case rule == replica.RuleAfterSB1 && mine.Pri1 == protocol.AfterSBDisconnect || rule == replica.RuleAfterSB2:
	default:
		switch mine.Pri0 {
		case protocol.DiscardNode:
			may = mine.Node == p.n.name
		case protocol.DiscardYoungerPrimary, protocol.DiscardOlderPrimary, protocol.DiscardLeastChanges:
			may = true
		default: // zero changes: nothing that was acknowledged may be lost
		}
	}
	if may {
		o.st[p.n.index].gaveUp = true
	}
}

// divide has two nodes part and both be primary: a split brain if both write. Then
// none, one or both step down before they meet.
func (w *World) divide() {
	net := w.nets[w.n(len(w.nets))]
	w.count("divided")
	w.log("FAULT divide %s-%s", net.a.name, net.b.name)
	net.setCut(true, true)
	gen := net.gen
	w.at(w.between(0, w.sc.silence+second), func() {
		if w.calm {
			return
		}
		for _, n := range []*node{net.a, net.b} {
			n.promote(replica.PromoteOptions{PeerFenced: true})
		}
	})
	w.at(w.sc.silence+w.between(second, 5*second), func() {
		if w.calm {
			return
		}
		for _, n := range []*node{net.a, net.b} {
			if p := n.proc; p != nil && !p.paused && !p.stopping && w.p(0.6) {
				p.enter(func() { p.operate("demote", func(done func(error)) { p.m.Demote(p.now(), done) }, nil) })
			}
		}
		w.at(w.between(0, second), func() {
			if net.gen == gen {
				net.setCut(false, false)
			}
		})
	})
}
