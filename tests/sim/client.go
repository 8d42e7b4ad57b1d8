package sim

import (
	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
)

// clientOp is a client's request and what the oracle must know of it.
type clientOp struct {
	r    replica.Request
	id   uint64
	vals []uint64 // Write: of each sector
	got  []uint64 // Read
	at   int64
	idx  int // acknowledgements before it was submitted
	br   *branch
	proc *process

	// When the machine decided that it succeeds: whether the primary had no disk of its
	// own, and through which peers it went then.
	decided, bare bool
	carriers      string

	lone bool // the client has nothing else to ask
}

// client submits one request after another while the node is primary.
func (p *process) client() {
	w := p.w
	if p.seen.role != protocol.Primary || p.seen.branch == nil || p.stopping || w.sc.rest {
		if p.seen.role != protocol.Primary && w.aside.Float64() < 0.1 {
			p.intrude()
		}
		p.after(w.between(20*milli, 200*milli), p.again)
		return
	}
	o := w.request(p.n.size)
	o.proc, o.at = p, w.now
	p.ops[o] = true
	w.o.submitted(p, o)
	p.m.Submit(p.now(), &o.r)
	p.run()
}

// intrude is a client that has not heard that the node is no longer primary.
func (p *process) intrude() {
	w := p.w
	rng := w.rng
	w.rng = w.aside
	o := w.request(p.n.size)
	w.rng = rng
	o.proc, o.at = p, w.now
	p.m.Submit(p.now(), &o.r)
	p.run()
}

// request makes up a request within or around the windows of a volume of that size.
func (w *World) request(size int64) *clientOp {
	o := &clientOp{}
	wins := w.windowsOf(size)
	win := wins[w.n(len(wins))]
	first := win[0] * bitmap.BlockSize / sectorSize
	end := min(win[1]*bitmap.BlockSize/sectorSize, size/sectorSize)
	s := first + int64(w.n(int(end-first)))
	n := int64(1 + w.n(8))
	switch k := w.n(20); {
	case k < 6:
		n = int64(1 + w.n(64))
	case k == 6:
		s, n = first, end-first
	}
	n = min(n, end-s)
	r := &o.r
	r.Tag = o
	switch k := w.n(100); {
	case k < 20:
		r.Op = replica.Read
	case k < 28:
		r.Op = replica.Flush
		s, n = 0, 0
	case k < 34:
		r.Op = replica.Zero
		r.NoHole = w.p(0.5)
	case k < 40:
		r.Op = replica.Trim
		if w.p(0.1) { // beyond the windows
			s = int64(w.n(int(size / sectorSize)))
			n = int64(1 + w.n(int(size/sectorSize-s)))
		}
	default:
		r.Op = replica.Write
		o.id = w.o.note(o)
		o.vals = make([]uint64, n)
		for i := range o.vals {
			o.vals[i] = o.id<<16 | uint64(s+int64(i))
		}
	}
	if r.Op != replica.Read && r.Op != replica.Flush {
		r.FUA = w.p(0.1)
	}
	r.Off, r.Len = s*sectorSize, n*sectorSize
	return o
}

// answered is what a client hears.
func (p *process) answered(o *clientOp, err error) {
	w := p.w
	if o.br == nil {
		w.o.completed(p, o, err)
		return
	}
	delete(p.ops, o)
	if w.trace {
		w.log("%s answers %v [%d +%d] seq %d: %v", p.n.name, o.r.Op, o.r.Off, o.r.Len, o.r.Seq(), err)
	}
	w.o.completed(p, o, err)
	if err != nil {
		w.count("requests failed")
	} else {
		w.count(o.r.Op.String())
	}
	if o.lone {
		p.reading--
		return
	}
	if w.points == nil {
		p.after(w.between(0, w.sc.think), p.again)
	}
}
