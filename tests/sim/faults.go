package sim

import (
	"slices"
	"strings"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
)

// reply is an operator's question that waits for its answer.
type reply struct {
	what string
	p    *process
	at   int64
}

// operate starts an operation on a process; then (nil: nothing) hears the answer.
func (p *process) operate(what string, start func(done func(error)), then func(error)) {
	w := p.w
	r := &reply{what, p, w.now}
	w.replies[r] = true
	w.log("operator: %s on %s", what, p.n.name)
	kind := "op " + kindOf(what)
	w.count(kind)
	start(func(err error) {
		if !w.replies[r] {
			w.fail("C5: %s on %s is answered twice", what, p.n.name)
		}
		delete(w.replies, r)
		w.log("operator: %s on %s: %v", what, p.n.name, err)
		if err == nil {
			w.count(kind + " done")
		}
		if then != nil {
			then(err)
		}
	})
	p.run()
}

// kindOf leaves the names of nodes out.
func kindOf(what string) string {
	words := strings.Fields(what)
	return strings.Join(slices.DeleteFunc(words, func(s string) bool { return slices.Contains(names, s) || s == "to" }), " ")
}

func (n *node) promote(opt replica.PromoteOptions) {
	p := n.proc
	if p == nil || p.paused || p.stopping {
		return
	}
	if w := n.w; (w.hasQuorum() || w.hasFencing()) && !w.calm {
		opt.PeerFenced = false
		opt.Force = opt.Force && p.look().Current == 0
	}
	if w := n.w; w.hasFencing() && (opt.PeerFenced || opt.Force && p.look().Current != 0) { // at the end an operator may
		w.lied = true
	}
	what := "promote"
	if opt.PeerFenced {
		what += " --peer-fenced"
	}
	if opt.Force {
		what += " --force"
	}
	if opt.Force {
		p.forcing++
	}
	if opt.PeerFenced {
		p.vouched = true
	}
	p.enter(func() {
		p.operate(what, func(done func(error)) {
			p.awaitSettled(p.w.now+p.w.sc.writeTimeout, func(err error) {
				if err != nil {
					done(err)
					return
				}
				p.m.Promote(p.now(), opt, done)
				p.run()
			})
		}, func(error) {
			if opt.Force {
				p.after(0, func() { p.forcing-- })
			}
		})
	})
}

func (w *World) named(name string) *node {
	if i := slices.Index(names, name); i < len(w.nodes) {
		return w.nodes[i]
	}
	return w.voters[0]
}

func (w *World) any() *node { return w.nodes[w.n(len(w.nodes))] }

func (w *World) primary() *node {
	for _, n := range w.nodes {
		if n.proc != nil && n.proc.seen.branch != nil {
			return n
		}
	}
	return nil
}

// crash kills a node and restarts it some time later.
func (n *node) crash(power bool, back int64) {
	if n.proc == nil || n.busy {
		return
	}
	w := n.w
	if power {
		w.count("power cut")
		w.log("FAULT power cut of %s", n.name)
	} else {
		w.count("kill")
		w.log("FAULT kill %s", n.name)
	}
	n.kill(power)
	w.at(back, func() {
		if n.proc == nil && !n.busy {
			n.start()
		}
	})
}

// trouble makes one fault or operation, or lays an ambush, and comes again.
func (w *World) trouble() {
	if w.calm {
		return
	}
	w.at(w.between(0, 2*w.sc.pace), w.trouble)
	if w.sc.restores && w.p(0.2) {
		w.undo()
		return
	}
	if w.sc.theme != noTheme && w.themed() {
		return
	}
	if w.sc.pullAhead && w.restAhead() {
		return
	}
	if w.switchovers() && w.p(0.7) {
		w.handOver()
		return
	}
	if w.drills() && (w.p(0.7) && w.drill() || w.drilling && w.p(0.95)) {
		return
	}
	if w.p(w.sc.ambush) {
		w.lay()
		return
	}
	w.strike(w.any())
}

// strike makes one fault or operation, at a node if it is of that kind.
func (w *World) strike(n *node) {
	if len(w.sc.sizes) > 0 && w.p(0.15) {
		w.grow(n)
		return
	}
	if (w.hasQuorum() || w.hasFencing()) && w.p(0.12) && w.supplant() {
		return
	}
	if len(w.voters) > 0 && (n.witness || w.p(0.12)) {
		w.strikeWitness()
		return
	}
	if w.p(w.sc.badDisks) {
		w.diskTrouble()
		return
	}
	switch k := w.n(100); {
	case k < 10:
		n.crash(false, w.back())
	case k < 18:
		n.crash(true, w.back())
	case k < 20: // all at once
		for _, x := range w.nodes {
			x.crash(true, w.back())
		}
	case k < 32:
		w.cutNet()
	case k < 37:
		net := w.links[w.n(len(w.links))]
		if s := net.sess; s != nil {
			w.count("session reset")
			w.log("FAULT session %s-%s reset", net.a.name, net.b.name)
			s.drop(w.n(2), errReset)
		}
	case k < 39:
		w.slowNet()
	case k < 43:
		if n.proc == nil || n.proc.paused {
			return
		}
		w.count("pause")
		d := w.between(10*milli, 8*second)
		w.log("FAULT pause %s for %d ms", n.name, d/milli)
		n.pause(d)
	case k < 51:
		w.diskFault(n)
	case k < 54:
		w.sc.rest = true
		w.at(w.between(100*milli, 3*second), func() { w.sc.rest = w.calm && w.sc.rest })
	default:
		w.operator(n)
	}
}

// diskFault has a disk be slow, full, unreadable or broken.
func (w *World) diskFault(n *node) {
	d := n.disk
	switch k := w.n(100); {
	case k < 30:
		w.count("slow disk")
		d.slow = w.between(0, 300*milli)
		w.at(w.between(0, 5*second), func() { d.slow = 0 })
	case k < 36:
		w.count("stuck disk")
		w.log("FAULT disk of %s is stuck", n.name)
		d.slow = w.between(second, 12*second)
		w.at(w.between(0, 3*second), func() { d.slow = 0 })
	case k < 55:
		w.count("no space")
		w.log("FAULT disk of %s is full", n.name)
		d.space = 1 + w.n(3)
	case k < 75:
		w.log("FAULT disk of %s cannot be read", n.name)
		d.unread = 1 + w.n(3)
	case w.p(w.sc.diskFail):
		w.log("FAULT disk of %s will fail", n.name)
		d.failOp = 1 + w.n(20)
	}
}

// slowNet has a network be slow for a while.
func (w *World) slowNet() {
	net := w.links[w.n(len(w.links))]
	w.count("slow network")
	w.log("FAULT network %s-%s is slow", net.a.name, net.b.name)
	net.slow = w.between(0, 2*second)
	w.at(w.between(0, 5*second), func() { net.slow = 0 })
}

func (w *World) back() int64 {
	return []int64{w.between(milli, 100*milli), w.between(milli, 2*second), w.between(second, 10*second)}[w.n(3)]
}

func (w *World) cutNet() {
	net := w.links[w.n(len(w.links))]
	ab, ba := true, true
	switch w.n(4) {
	case 0:
		ba = false
	case 1:
		ab = false
	}
	w.count("cut")
	w.log("FAULT cut %s-%s %v %v", net.a.name, net.b.name, ab, ba)
	net.setCut(ab, ba)
	gen := net.gen
	w.at([]int64{w.between(milli, 500*milli), w.between(100*milli, 10*second)}[w.n(2)], func() {
		if net.gen == gen {
			w.log("heal %s-%s", net.a.name, net.b.name)
			net.setCut(false, false)
		}
	})
}

// operator does what an operator may do at any moment.
func (w *World) operator(n *node) {
	p := n.proc
	switch k := w.n(100); {
	case k < 10 && !w.sc.honest:
		w.divide()
		return
	case k < 25:
		w.failover()
		return
	case p == nil || p.paused || p.stopping:
		return
	case k < 37:
		n.promote(replica.PromoteOptions{})
	case k < 41:
		if !w.sc.honest && w.p(0.7) {
			w.divide()
		} else if !w.sc.honest {
			n.promote(replica.PromoteOptions{PeerFenced: true, Force: w.p(0.2)})
		}
	case k < 45:
		p.enter(func() { p.operate("demote", func(done func(error)) { p.m.Demote(p.now(), done) }, nil) })
	case k < 57:
		if n = w.primary(); n == nil || n.proc.paused || n.proc.stopping {
			return
		}
		p = n.proc
		to := n.peers[w.n(len(n.peers))]
		p.enter(func() {
			p.operate("switchover to "+to.name, func(done func(error)) { p.m.Switchover(p.now(), p.peerID(to), done) }, nil)
		})
	case k < 64:
		q := w.n(len(n.peers))
		p.enter(func() {
			p.operate("disconnect "+n.peers[q].name, func(done func(error)) { p.m.Disconnect(p.now(), replica.PeerID(q)); done(nil) }, nil)
		})
		w.at(w.between(0, 5*second), func() { w.connectBoth(n, n.peers[q]) })
	case k < 76:
		q := n.peers[w.n(len(n.peers))]
		w.connectBoth(n, q)
	case k < 78:
		n.connect(n.peers[w.n(len(n.peers))], true)
	case k < 82:
		p.enter(func() {
			p.operate("invalidate", func(done func(error)) { p.m.Invalidate(p.now(), done) }, func(err error) {
				if err == nil {
					w.o.st[n.index].gaveUp = true
				}
			})
		})
	case k < 90:
		p.verify(replica.PeerID(w.n(len(n.peers))))
	case k < 95:
		w.restart(n)
	default:
		w.replace(n)
	}
}

// failover kills whoever may be primary and promotes another node, truthfully.
func (w *World) failover() {
	old := w.primary()
	if old == nil {
		old = w.any()
	}
	n := old.peers[w.n(len(old.peers))]
	if n.proc == nil || n.proc.paused || n.busy {
		return
	}
	w.count("failover")
	// Everyone whom n cannot see is made certain to be dead.
	v := n.proc.m.View()
	old.crash(w.p(0.5), w.back())
	for i, q := range n.peers {
		if q != old && v.Peers[i].Conn != protocol.Connected {
			q.crash(w.p(0.5), w.back())
		}
	}
	proc := n.proc
	w.at(w.between(0, second), func() {
		if n.proc != proc {
			return
		}
		v := proc.m.View()
		for i, q := range n.peers {
			if v.Peers[i].Conn != protocol.Connected && q.proc != nil && q.proc.seen.branch != nil && w.sc.honest {
				return // came back, and is primary again
			}
		}
		n.promote(replica.PromoteOptions{PeerFenced: true})
	})
}

func (n *node) connect(q *node, discard bool) {
	p := n.proc
	if p == nil || p.paused || p.stopping {
		return
	}
	what := "connect " + q.name
	if discard {
		what += " --discard-my-data"
	}
	p.enter(func() {
		p.operate(what, func(done func(error)) {
			err := p.m.Connect(p.now(), p.peerID(q), discard)
			if err == nil && discard {
				n.w.o.st[n.index].gaveUp = true
				n.w.o.st[n.index].half = false
			}
			done(err)
		}, nil)
	})
}

func (w *World) connectBoth(a, b *node) {
	a.connect(b, false)
	b.connect(a, false)
}

// restart stops a node in order and starts it again.
func (w *World) restart(n *node) {
	p := n.proc
	if p == nil || p.stopping || n.busy {
		return
	}
	n.busy = true
	w.count("restart")
	p.enter(func() {
		p.shutdown(func() {
			w.at(w.between(milli, 3*second), func() {
				n.busy = false
				n.start()
			})
		})
	})
}

// replace gives a node a new disk if it needs one, and somebody has the data.
func (w *World) replace(n *node) {
	if !n.needsDisk() || n.busy {
		return
	}
	if p := n.proc; p != nil && !p.paused && !p.stopping && p.seen.branch != nil && w.p(0.8) && p.m.MayReplace(p.now()) == nil {
		p.enter(p.replaceDisk)
		return
	}
	w.recreate(n)
}

// recreate has a node begin anew, as `qrbd create --force` does.
func (w *World) recreate(n *node) {
	w.count("disk replaced")
	w.log("operator: new disk for %s", n.name)
	n.kill(false)
	n.create()
	w.o.recreated(n)
	w.at(100*milli, n.start)
}

func (n *node) needsDisk() bool {
	return n.disk.failed || n.proc != nil && n.proc.m.View().Disk == protocol.Failed
}
