package sim

import (
	"errors"
	"fmt"
	"slices"
)

// net is the network between two nodes, a with the smaller index.
type net struct {
	w    *World
	a, b *node
	cut  [2]bool // a to b, b to a
	slow int64   // added to every latency
	gen  int     // rises with every cut and heal
	sess *session
}

// session is what the agents keep between each other: a link of a volume needs one,
// and ends with it.
type session struct {
	net   *net
	procs [2]*process
	down  [2]bool
	conns []*conn
	open  bool // a pair of streams is being opened
}

// conn is a pair of streams: the write stream and the bulk stream.
type conn struct {
	id   int
	sess *session
	ends [2]*end
	done join // what the source of a sync had when it sent the end
}

// end is one side's hold on a conn.
type end struct {
	c       *conn
	side    int
	p       *process
	link    *link
	aborted bool
	out     [2]*stream
	early   [2][]packet // arrived before the link was there
}

// The streams of a conn.
const (
	writeStream = iota
	bulkStream
)

// stream is one direction of a stream.
type stream struct {
	net     *net
	from    *end
	to      *end
	kind    int
	q       []packet
	last    int64 // when the newest packet arrives
	waiting bool  // an event for the head is scheduled
	wake    func()
}

// packet is a frame, its payload as values, or the end of the stream.
type packet struct {
	at    int64
	frame []byte
	vals  []uint64
	end   error
}

var (
	errEOF     = errors.New("the peer closed the connection")
	errReset   = errors.New("stream reset")
	errSilence = errors.New("no recent network activity")
	errClosed  = errors.New("closed pipe")
)

func (n *net) side(x *node) int {
	if x == n.a {
		return 0
	}
	return 1
}

func (w *World) net(x, y *node) *net {
	for _, n := range w.links {
		if n.a == x && n.b == y || n.a == y && n.b == x {
			return n
		}
	}
	return nil
}

func (n *net) blocked(from int) bool { return n.cut[from] }

func (n *net) whole() bool { return !n.cut[0] && !n.cut[1] }

// setCut cuts or heals directions. What is under way stays under way; if it stays
// silent for long, each side notices at its own time.
func (n *net) setCut(ab, ba bool) {
	n.cut = [2]bool{ab, ba}
	n.gen++
	gen := n.gen
	if !ab || !ba {
		n.pumpAll()
	}
	s := n.sess
	if s == nil || n.whole() {
		return
	}
	for i := range 2 {
		n.w.at(n.w.between(300*milli, n.w.sc.silence), func() {
			if n.gen == gen {
				s.drop(i, errSilence)
			}
		})
	}
}

func (n *net) pumpAll() {
	if n.sess == nil {
		return
	}
	for _, c := range n.sess.conns {
		for _, e := range c.ends {
			for _, st := range e.out {
				st.pump()
			}
		}
	}
}

// drop ends the session on one side.
func (s *session) drop(side int, why error) {
	if s.down[side] {
		return
	}
	s.down[side] = true
	s.net.w.log("%s: session with %s is gone: %v", s.procs[side].n.name, s.procs[1-side].n.name, why)
	for _, c := range s.conns {
		e := c.ends[side]
		if e.link != nil && !e.link.dead {
			e.link.deadStream(why)
		}
		e.abort()
	}
	if !s.procs[side].dead { // the other side hears of it, if it can
		s.net.w.at(s.net.w.between(milli, s.net.w.sc.silence), func() { s.drop(1-side, errReset) })
	}
}

// tick makes a session when there can be one.
func (n *net) tick() {
	w := n.w
	w.at(w.between(50*milli, 250*milli), n.tick)
	if !n.ready() {
		return
	}
	w.at(w.between(milli, 50*milli), func() {
		if !n.ready() {
			return
		}
		if s := n.sess; s != nil {
			s.drop(0, errReset)
			s.drop(1, errReset)
		}
		n.sess = &session{net: n, procs: [2]*process{n.a.proc, n.b.proc}}
		n.sess.connect()
	})
}

func (n *net) ready() bool {
	a, b := n.a.proc, n.b.proc
	if a == nil || b == nil || a.paused || b.paused || !n.whole() {
		return false
	}
	s := n.sess
	if s == nil || s.down[0] && s.down[1] {
		return true
	}
	return (s.down[0] || s.down[1]) && n.w.p(0.3)
}

// ask is AskConnect of the process of one side.
func (n *net) ask(p *process) {
	s := n.sess
	if s == nil {
		return
	}
	side := n.side(p.n)
	if s.down[side] || s.procs[side] != p {
		return
	}
	if side == 0 {
		s.connect()
		return
	}
	n.w.at(n.latency(), func() { // ConnectAsk
		d := s.procs[0]
		if n.sess == s && !s.down[0] && !d.dead && !n.cut[1] && d.linkTo(s.procs[1].n) == nil {
			s.connect()
		}
	})
}

func (n *net) latency() int64 {
	t := n.w.between(n.w.sc.netMin, n.w.sc.netMax)
	if n.w.p(0.01) {
		t += n.w.between(0, 300*milli)
	}
	return t + n.slow
}

// connect opens a pair of streams from the dialling side.
func (s *session) connect() {
	n := s.net
	if s.open {
		return
	}
	s.open = true
	n.w.at(n.latency(), func() {
		s.open = false
		if n.sess != s || s.down[0] || s.procs[0].dead || n.cut[0] {
			return
		}
		n.w.seq++
		c := &conn{id: int(n.w.seq), sess: s}
		for i := range 2 {
			c.ends[i] = &end{c: c, side: i, p: s.procs[i]}
		}
		for i := range 2 {
			for k := range 2 {
				c.ends[i].out[k] = &stream{net: n, from: c.ends[i], to: c.ends[1-i], kind: k}
			}
		}
		s.conns = slices.DeleteFunc(s.conns, func(c *conn) bool { return c.ends[0].aborted && c.ends[1].aborted })
		s.conns = append(s.conns, c)
		s.procs[0].after(0, func() { s.attach(c, 0) })
		var there func()
		there = func() {
			if n.cut[0] { // the streams' first frames do not come through
				if n.sess == s && !s.down[0] {
					n.w.at(100*milli, there)
				}
				return
			}
			s.procs[1].after(0, func() { s.attach(c, 1) })
		}
		n.w.at(n.latency(), there)
	})
}

func (s *session) attach(c *conn, side int) {
	if s.down[side] || c.ends[side].aborted {
		return
	}
	s.procs[side].attach(s.procs[1-side].n, c.ends[side])
}

// send appends a frame or the end of the stream.
func (st *stream) send(pk packet) error {
	if st.from.aborted {
		return errClosed
	}
	bytes := int64(len(pk.frame) + len(pk.vals)*sectorSize)
	st.last = max(st.last, st.net.w.now+st.net.latency()+bytes*st.net.w.sc.byteTime)
	pk.at = st.last
	st.q = append(st.q, pk)
	st.pump()
	return nil
}

// full reports whether the sender must wait: flow control.
func (st *stream) full() bool { return len(st.q) > st.net.w.sc.streamMax && !st.from.aborted }

func (st *stream) pump() {
	if st.waiting || len(st.q) == 0 || st.net.blocked(st.from.side) {
		return
	}
	st.waiting = true
	w := st.net.w
	w.at(st.q[0].at-w.now, func() {
		st.waiting = false
		if len(st.q) == 0 || st.net.blocked(st.from.side) {
			return
		}
		if st.q[0].at > w.now {
			st.pump()
			return
		}
		pk := st.q[0]
		st.q = st.q[1:]
		if st.wake != nil && !st.full() {
			fn := st.wake
			st.wake = nil
			fn()
		}
		st.to.receive(st.kind, pk)
		st.pump()
	})
}

// receive hands a packet to the link, or keeps it until there is one.
func (e *end) receive(kind int, pk packet) {
	if e.aborted || e.p.dead {
		return
	}
	if e.link == nil {
		e.early[kind] = append(e.early[kind], pk)
		return
	}
	e.p.after(0, func() { e.link.arrived(kind, pk) })
}

// abort ends both directions of both streams: the other side gets some of what was
// sent, then an error.
func (e *end) abort() {
	if e.aborted {
		return
	}
	e.aborted = true
	w := e.c.sess.net.w
	for k := range 2 {
		st := e.out[k]
		cutShort(w, st)
		st.last = max(st.last, w.now+st.net.latency())
		st.q = append(st.q, packet{at: st.last, end: errReset})
		st.pump()
		if st.wake != nil {
			fn := st.wake
			st.wake = nil
			w.at(0, fn)
		}
		in := e.c.ends[1-e.side].out[k]
		in.q = nil
	}
}

// cutShort leaves an arbitrary prefix of what is under way.
func cutShort(w *World, st *stream) {
	if w.p(0.5) {
		return
	}
	st.q = slices.Clip(st.q[:w.n(len(st.q)+1)])
}

// killed: the process of this side is gone without a word.
func (e *end) killed() {
	if e.aborted {
		return
	}
	e.aborted = true
	for k := range 2 {
		cutShort(e.c.sess.net.w, e.out[k])
		e.c.ends[1-e.side].out[k].q = nil
	}
}

// state describes the stream, for a failure.
func (st *stream) state() string {
	if len(st.q) == 0 {
		return ""
	}
	return fmt.Sprintf("next in %d us, waiting %v, aborted %v/%v", (st.q[0].at-st.net.w.now)/micro, st.waiting, st.from.aborted, st.to.aborted)
}
