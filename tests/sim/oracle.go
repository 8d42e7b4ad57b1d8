package sim

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"sort"
	"strings"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
)

// oracle knows what every replica must hold. It watches what clients are told and
// what machines claim, and looks into the simulated disks.
//
// Every acknowledged write gets the next index. A branch is the history of the
// data under one promotion: for each sector the values that it had, with the index
// at which each was acknowledged, and the values of writes that may have happened.
// A replica stands on a branch up to a position (what it was in the ack set of), and
// has floors: nothing older than the newest value up to the floor may be read from
// it.
type oracle struct {
	w    *World
	idx  int
	hot  []int32 // sectors that clients write
	slot []int32 // sector -> place in hot, -1
	st   []*standing
	gens map[protocol.Generation]mark
	next int // branch ids

	reign   int  // promotions
	served  int  // the last of them that has answered a request
	excused bool // with a quorum: an operator has forced or vouched

	writes []written // by number; 0: what was never written
}

// mark is a position in a branch.
type mark struct {
	br  *branch
	pos int
}

type entry struct {
	idx int
	val uint64
	seq uint64 // in its reign
}

// unsure is a write that was not acknowledged: it may have happened, up to end.
type unsure struct {
	val   uint64
	op    *clientOp
	end   int
	reign int
	seen  int // index at which a read returned it first; 0: none did
	from  int // acknowledgements before that read was submitted
}

type branch struct {
	id      int
	owner   string
	parent  *branch
	fork    int
	acks    []int
	flushed int // everything acknowledged up to here was flushed by a client
	hist    [][]entry
	maybe   [][]unsure
	room    []int32 // what a sector's history may have before it is pruned

	low, lowAt int // no floor is below low; as of index lowAt

	since int64 // when it began

	children []*branch
	carried  []*clientOp  // under way in the parent when it forked, and there
	also     map[int]bool // those that were acknowledged later
}

// standing is what is known of one replica.
type standing struct {
	br     *branch
	pos    int
	vol    int // in its cache
	dur    int // on stable storage
	told   int // what clients were told is stable here too
	fua    map[int32]forced
	gen    protocol.Generation // last seen there
	hurt   int64               // when it last lost something, or may have
	broken bool                // inconsistent: nothing is promised
	gaveUp bool                // an operator gave its data up
	joint  join
	over   *conn // that the last such sync ran over
	lost   bool  // a power cut has taken some of its cache since it last equalled a primary
	back   bool  // put back, and with nobody since
	half   bool  // in the middle of a restore, also after a crash
	wild   int   // promoted by force when broken: what is not durable may be anything
	cached bool  // superseded as primary with some of its last reign only in the cache, and with nobody since
}

// join is a replica's standing as soon as the sync from another ends.
type join struct {
	br            *branch
	c             *conn // that the sync runs over
	pos, vol, dur int
	lost          bool
	fua           map[int32]forced
}

// forced is what a FUA write has put into a sector, and the index at which it was
// acknowledged. A later write of the sector may have been acknowledged before it, and
// only be in the cache: then what the FUA write has put there is older than what its
// index asks for, and is what was promised; or it is stable, and as good.
type forced struct {
	idx int
	val uint64
	seq uint64
}

// holds reports whether v, in a sector of a replica, is what a floor asks for, or later,
// and what the last FUA write of the sector has made durable, or later.
func (st *standing) holds(s, h int32, v uint64, floor int) bool {
	f := st.fua[s]
	return st.br.legal(h, v, floor, 0) && (f.idx <= floor || v == f.val || st.br.legal(h, v, f.idx, 0) || st.br.follows(h, v, f.seq))
}

// owed returns up to where clients were told that a flush is stable on the replica, and it is.
func (st *standing) owed() int { return min(st.dur, st.told, st.br.flushed) }

// observed is what was last seen of a process.
type observed struct {
	role     protocol.Role
	branch   *branch // while primary
	disk     protocol.Disk
	live     []bool
	repl     []protocol.Repl
	syncFrom int
	former   *branch // of the last reign
	lacks    int64
	active   int // extents
	fillIdx  int // acknowledgements when a replaced disk lacked nothing any more
}

const forever = math.MaxInt

func newOracle(w *World) *oracle {
	o := &oracle{w: w, gens: map[protocol.Generation]mark{}, writes: make([]written, 1)}
	o.slot = make([]int32, w.sc.size/sectorSize)
	for i := range o.slot {
		o.slot[i] = -1
	}
	for _, win := range w.sc.windows {
		for s := win[0] * bitmap.BlockSize / sectorSize; s < min(win[1]*bitmap.BlockSize, w.sc.size)/sectorSize; s++ {
			if o.slot[s] < 0 {
				o.slot[s] = int32(len(o.hot))
				o.hot = append(o.hot, int32(s))
			}
		}
	}
	root := o.newBranch(nil, 0, "root")
	for range len(w.nodes) + len(w.voters) {
		o.st = append(o.st, &standing{br: root, fua: map[int32]forced{}, broken: true})
	}
	return o
}

// newBranch forks a branch at a position.
func (o *oracle) newBranch(from *branch, pos int, owner string) *branch {
	o.next++
	b := &branch{id: o.next, owner: owner, parent: from, fork: pos, since: o.w.now, hist: make([][]entry, len(o.hot)), maybe: make([][]unsure, len(o.hot)), room: make([]int32, len(o.hot))}
	for h := range o.hot {
		b.room[h] = historyMin
		if from == nil {
			b.hist[h] = []entry{{}}
			continue
		}
		for _, e := range from.hist[h] {
			if e.idx <= pos {
				e.seq = 0
				b.hist[h] = append(b.hist[h], e)
			}
		}
		if len(b.hist[h]) == 0 { // older than anything that is still known
			b.hist[h] = []entry{{pos, from.hist[h][0].val, 0}}
		}
		for _, m := range from.maybe[h] {
			m.end = min(m.end, o.idx)
			m.op, m.seen = nil, 0
			b.maybe[h] = append(b.maybe[h], m)
		}
	}
	return b
}

// historyMin is how much is kept of a sector before what no floor can reach is looked
// for; a branch's low is taken anew every so many acknowledgements.
const (
	historyMin = 12
	lowEvery   = 64
)

// prune forgets what of a sector's history is older than every floor that anything
// on the branch will be judged by from now on: floors of replicas only rise, and a
// request's is where it was submitted.
func (o *oracle) prune(b *branch, h int32) {
	if o.idx >= b.lowAt+lowEvery {
		b.low, b.lowAt = o.lowest(b), o.idx
	}
	list := b.hist[h]
	i := len(list) - 1
	for i > 0 && list[i].idx > b.low {
		i--
	}
	if i > 0 {
		list = append(list[:0], list[i:]...)
		b.hist[h] = list
	}
	b.maybe[h] = slices.DeleteFunc(b.maybe[h], func(m unsure) bool { return m.op == nil && m.end < list[0].idx })
	b.room[h] = max(historyMin, 2*int32(len(list)+len(b.maybe[h])))
}

// lowest returns the lowest floor on a branch.
func (o *oracle) lowest(b *branch) int {
	low := o.idx
	for _, n := range o.w.nodes {
		st := o.st[n.index]
		if st.br == b && (!st.broken || st.vol > 0 || st.dur > 0) { // else it never held anything
			low = min(low, st.vol, st.dur)
		}
		if st.joint.br == b {
			low = min(low, st.joint.vol, st.joint.dur)
		}
		if x := n.lost; x != nil && x.st.br == b {
			low = min(low, x.st.vol, x.st.dur)
		}
		if n.proc == nil {
			continue
		}
		for c := range n.proc.ops {
			if c.br == b {
				low = min(low, c.idx)
			}
		}
	}
	return low
}

// legal reports whether a sector may have the value, when everything up to floor
// must be there. reign 0: unacknowledged writes of all reigns count.
func (b *branch) legal(h int32, v uint64, floor, reign int) bool {
	list := b.hist[h]
	i := len(list) - 1
	for i > 0 && list[i].idx > floor {
		i--
	}
	for _, e := range list[i:] {
		if e.val == v {
			return true
		}
	}
	for _, m := range b.maybe[h] {
		if m.val == v && (reign == 0 || m.reign == reign) && list[i].idx <= m.end {
			return true
		}
	}
	return false
}

// reach returns the highest floor, of those that are an index in its history, at which a
// sector may have the value; -1: at none.
func (b *branch) reach(h int32, v uint64) int {
	list, floor := b.hist[h], -1
	for i := len(list) - 1; i >= 0 && floor < 0; i-- {
		if list[i].val == v {
			floor = list[i].idx
		}
	}
	for _, m := range b.maybe[h] {
		if m.val == v {
			floor = max(floor, m.end)
		}
	}
	return floor
}

// within calls fn for every hot sector of a range.
func (o *oracle) within(off, n int64, fn func(s, h int32)) {
	for s := off / sectorSize; s < (off+n)/sectorSize; s++ {
		if h := o.slot[s]; h >= 0 {
			fn(int32(s), h)
		}
	}
}

func (c *clientOp) value(s int32) uint64 {
	if c.vals == nil {
		return 0
	}
	return c.vals[int64(s)-c.r.Off/sectorSize]
}

func (o *oracle) submitted(p *process, c *clientOp) {
	c.idx, c.br = o.idx, p.seen.branch
	if c.id != 0 {
		o.writes[c.id] = written{c.idx, c.br.flushed}
	}
	if c.r.Op == replica.Read || c.r.Op == replica.Flush {
		return
	}
	o.within(c.r.Off, c.r.Len, func(s, h int32) {
		c.br.maybe[h] = append(c.br.maybe[h], unsure{val: c.value(s), op: c, end: forever, reign: c.br.id})
	})
}

func (o *oracle) completed(p *process, c *clientOp, err error) {
	if err == nil {
		o.oneServes(p, c)
	}
	switch {
	case c.br == nil:
		if err == nil {
			o.w.fail("C4: %s, %s, answers a %v", p.n.name, p.look().Role, c.r.Op)
		}
	case c.r.Op == replica.Read:
		if err == nil {
			o.read(p, c)
		}
	case err != nil:
		o.unsure(c)
	case c.r.Op == replica.Flush:
		o.flushed(p, c)
	default:
		o.acked(p, c)
	}
}

// unsure: the write was not acknowledged and never will be. One that never got a
// place in the order of writes has not happened.
func (o *oracle) unsure(c *clientOp) {
	if c.r.Seq() == 0 {
		o.within(c.r.Off, c.r.Len, func(_, h int32) {
			c.br.maybe[h] = slices.DeleteFunc(c.br.maybe[h], func(m unsure) bool { return m.op == c })
		})
		return
	}
	o.within(c.r.Off, c.r.Len, func(s, h int32) {
		for i := range c.br.maybe[h] {
			if m := &c.br.maybe[h][i]; m.op == c {
				m.end, m.op = o.idx, nil
			}
		}
	})
}

// read: C6.
func (o *oracle) read(p *process, c *clientOp) {
	first := c.r.Off / sectorSize
	for i, v := range c.got {
		s := int32(first) + int32(i)
		h := o.slot[s]
		if h >= 0 && c.br.legal(h, v, c.idx, c.br.id) && o.saw(c, h, v) {
			o.promised(p, c, s, h, v)
			continue
		}
		if h < 0 && v == 0 {
			continue
		}
		o.w.fail("C6: %s reads %s in sector %d; branch %d has %s", p.n.name, valueText(v), s, c.br.id, c.br.text(h))
	}
}

// saw notes that a read returned v, and reports whether it may, after what others
// have returned: once a read has seen a write, none that begins later sees what was
// there before it.
func (o *oracle) saw(c *clientOp, h int32, v uint64) bool {
	list, maybe := c.br.hist[h], c.br.maybe[h]
	if len(maybe) == 0 || list[len(list)-1].val == v {
		return true
	}
	base, newest := 0, -1
	for _, e := range list {
		if e.idx <= c.idx {
			base = e.idx
		}
		if e.val == v {
			newest = e.idx
		}
	}
	stale := false
	for i := range maybe {
		m := &maybe[i]
		switch {
		case m.val == v && m.reign == c.br.id:
			if newest < base && m.seen == 0 {
				o.idx++
				m.seen, m.from = o.idx, c.idx
			}
			return true // of writes of one value it is not known which was read
		case m.seen != 0 && m.seen <= c.idx && newest <= m.from: // not what was written beside that read
			stale = true
		}
	}
	return !stale
}

func valueText(v uint64) string { return fmt.Sprintf("write %d/%d", v>>16, v&0xffff) }

func (b *branch) text(h int32) string {
	if h < 0 {
		return "only zeroes"
	}
	s := ""
	l := b.hist[h]
	for _, e := range l[max(0, len(l)-6):] {
		s += fmt.Sprintf("%d:%s ", e.idx, valueText(e.val))
	}
	for _, m := range b.maybe[h] {
		s += fmt.Sprintf("maybe(..%d):%s ", m.end, valueText(m.val))
	}
	return s
}

// acked: a write is acknowledged. C4.
func (o *oracle) acked(p *process, c *clientOp) {
	v := p.look()
	o.newcomers(p, v)
	o.idx++
	b := c.br
	o.within(c.r.Off, c.r.Len, func(s, h int32) {
		b.maybe[h] = slices.DeleteFunc(b.maybe[h], func(m unsure) bool { return m.op == c })
		b.hist[h] = b.after(b.hist[h], entry{o.idx, c.value(s), c.r.Seq()}, c.idx)
		if int32(len(b.hist[h])+len(b.maybe[h])) > b.room[h] {
			o.prune(b, h)
		}
	})
	before := b.last()
	b.acks = append(b.acks, o.idx)
	for _, x := range b.children {
		if slices.Contains(x.carried, c) {
			x.also[o.idx] = true
		}
	}
	if m, ok := o.gens[v.Current]; ok && m.br != b && b.limit(m.br) < m.pos && o.kept(m, b.limit(m.br)) {
		o.w.fail("C4: %s acknowledges in generation %s, in which %s acknowledged up to %d, which %s does not have",
			p.n.name, v.Current, m.br.owner, m.pos, p.n.name)
	}
	o.gens[v.Current] = mark{b, o.idx}
	me := o.st[p.n.index]
	if !v.Bare || v.Disk == protocol.UpToDate { // or filled, which is not durable yet
		me.pos, me.vol, me.gaveUp = o.idx, o.idx, false
	}
	if c.r.FUA && !v.Bare {
		o.forced(c, me.fua)
	}
	for i := range v.Peers {
		q := &v.Peers[i]
		st := o.st[p.n.peers[i].index]
		if !q.Live {
			// Lost between its answer and the others': it has the write all the same,
			// unless a generation was begun without it. Under A and B it may lack it, and
			// that is no divergence.
			if st.gen == v.Current && st.br == b && !st.broken && st.pos >= before && (q.Mode != protocol.ModeC || p.n.peers[i].disk.has(c)) {
				st.pos = o.idx
			}
			continue
		}
		o.unheard(p, q, p.n.peers[i], b)
		if o.counts(p, q, p.n.peers[i], b) {
			st.pos = o.idx
			if (q.Mode != protocol.ModeA || v.Bare) && c.at > st.hurt {
				st.vol = o.idx
			}
			if c.r.FUA && q.Mode == protocol.ModeC {
				o.forced(c, st.fua)
			}
		}
		if st.joint.br == b {
			st.joint.pos = o.idx
			if q.Mode != protocol.ModeA && c.at > st.hurt {
				st.joint.vol = o.idx
			}
			if c.r.FUA && q.Mode == protocol.ModeC {
				o.forced(c, st.joint.fua)
			}
		}
	}
	o.applied(p, c, v)
	o.bonded(p, c)
	o.glance(1.0 / 64)
}

// unheard: under A or B the newest acknowledgement in b was given while p had not noticed
// that a peer is gone, which an operator had promoted meanwhile, on the word that p is dead.
// It is lost as those before the promotion are that the peer never got: no generation tells
// it from them. Once p has had the time to notice that excuses nothing.
func (o *oracle) unheard(p *process, q *replica.PeerView, n *node, b *branch) {
	if q.Mode == protocol.ModeC || !left(n, p, p.linkTo(n)) {
		return
	}
	for x := o.st[n.index].br; x != nil; x = x.parent {
		if x.parent == b && o.w.now-x.since <= 2*o.w.sc.silence {
			x.also[o.idx] = true
		}
	}
}

// kept reports whether a replica still has what was acknowledged in m's branch beyond a
// position. Otherwise it was lost with a disk, as C1 allows, and nothing of it can meet
// what is acknowledged in the same generation now.
func (o *oracle) kept(m mark, beyond int) bool {
	for _, st := range o.st {
		if !st.gaveUp && min(st.br.limit(m.br), st.pos) > beyond {
			return true
		}
	}
	return false
}

// counts reports whether a replica that a primary on branch b has in its ack set is
// taken to hold all of b: it is not about to be overwritten, or in the middle of it.
func (o *oracle) counts(p *process, q *replica.PeerView, n *node, b *branch) bool {
	st := o.st[n.index]
	if st.br != b || st.broken || st.joint.br == b {
		return false
	}
	l := p.linkTo(n)
	if st.back && left(n, p, l) {
		return false // what it confirmed was of the data before
	}
	return q.Repl != protocol.SyncSource || l != nil && st.over == l.e.c // it has heard of the end
}

// flushed: everything acknowledged before the flush was submitted is durable.
func (o *oracle) flushed(p *process, c *clientOp) {
	c.br.flushed = max(c.br.flushed, c.idx)
	v := p.look()
	if !v.Bare {
		o.st[p.n.index].dur = max(o.st[p.n.index].dur, c.idx)
		o.st[p.n.index].told = max(o.st[p.n.index].told, c.idx)
	} else {
		w := o.w
		w.count("flushed through a peer")
	}
	for i := range v.Peers {
		q := &v.Peers[i]
		if !q.Live || q.Mode != protocol.ModeC && !v.Bare {
			continue
		}
		st := o.st[p.n.peers[i].index]
		if o.counts(p, q, p.n.peers[i], c.br) {
			st.dur, st.told = max(st.dur, c.idx), max(st.told, c.idx)
		}
		if st.joint.br == c.br {
			st.joint.dur = max(st.joint.dur, c.idx)
		}
	}
	o.stable(p, c, v)
	o.unflushed(p, c, v)
	o.glance(1.0 / 16)
}

// after adds a write to a sector's history. Of two writes that were under way
// together the one that the machine took later counts, whichever was answered first.
func (b *branch) after(list []entry, e entry, submitted int) []entry {
	tail := list[len(list)-1]
	if tail.seq <= e.seq || tail.idx <= submitted {
		return append(list, e)
	}
	list = append(list[:len(list)-1], entry{tail.idx, e.val, e.seq}, tail)
	tail.idx = e.idx
	return append(list, tail)
}

// last returns the index of what was acknowledged last in b.
func (b *branch) last() int {
	if l := len(b.acks); l > 0 {
		return b.acks[l-1]
	}
	return b.fork
}

// limit returns up to which index b has what was acknowledged in t, -1: nothing.
func (b *branch) limit(t *branch) int {
	lim := forever
	for x := b; x != nil; x = x.parent {
		if x == t {
			return lim
		}
		lim = min(lim, x.fork)
	}
	return -1
}

// carry notes which writes that are under way in the parent a disk holds.
func (b *branch) carry(d *disk) {
	b.also = map[int]bool{}
	b.parent.children = append(b.parent.children, b)
	for _, list := range b.parent.maybe {
		for _, m := range list {
			if m.op != nil && !slices.Contains(b.carried, m.op) && d.has(m.op) {
				b.carried = append(b.carried, m.op)
			}
		}
	}
}

// carries reports whether b descends from a branch that forked from t while a write
// was under way, and holds it, which t acknowledged later.
func (b *branch) carries(t *branch, idx int) bool {
	for x := b; x != nil; x = x.parent {
		if x.parent == t && x.also[idx] {
			return true
		}
	}
	return false
}

// unique returns the first index that a has acknowledged and b does not have, or 0.
func unique(a, b mark) int {
	lim, first := a.pos, 0
	for x := a.br; x != nil; x = x.parent {
		has := min(b.br.limit(x), b.pos)
		for i := sort.SearchInts(x.acks, has+1); i < len(x.acks) && x.acks[i] <= lim; i++ {
			if !b.br.carries(x, x.acks[i]) {
				first = x.acks[i]
				break
			}
		}
		lim = min(lim, x.fork)
	}
	return first
}

func (st *standing) mark() mark { return mark{st.br, st.pos} }

// powerCut: what was only in the cache may be gone.
func (o *oracle) powerCut(n *node) {
	st := o.st[n.index]
	st.vol, st.hurt, st.lost = min(st.vol, st.dur), o.w.now, true
}

// died: requests under way were not acknowledged.
func (o *oracle) died(p *process) {
	for c := range p.ops { // the order does not matter
		if c.r.Op != replica.Read && c.r.Op != replica.Flush {
			o.unsure(c)
		}
	}
	for _, q := range p.n.peers {
		if o.w.sc.mode(p.n, q) == protocol.ModeB { // received is not applied
			st := o.st[p.n.index]
			st.vol, st.hurt = min(st.vol, st.dur), o.w.now
		}
	}
}

// recreated: the replica is brand new.
func (o *oracle) recreated(n *node) {
	old := o.st[n.index]
	o.st[n.index] = &standing{br: old.br, pos: old.pos, fua: map[int32]forced{}, broken: true, gaveUp: true}
}

func (o *oracle) started(p *process) {
	n := len(p.n.peers)
	p.seen = observed{role: protocol.Secondary, disk: p.m.View().Disk, live: make([]bool, n), repl: make([]protocol.Repl, n), syncFrom: -1}
	o.st[p.n.index].joint = join{}
	o.st[p.n.index].broken = p.seen.disk <= protocol.Inconsistent
}

// observe looks at a process after an event.
func (p *process) observe() {
	o, v, seen := p.w.o, p.look(), &p.seen
	st := o.st[p.n.index]
	if seen.branch != nil && v.Role == protocol.Secondary {
		p.w.log("oracle: %s is no longer primary", p.n.name)
		seen.branch, seen.former = nil, seen.branch
		st.cached = p.w.hasQuorum() && p.n.disk.caches()
	}
	if v.LacksBytes != seen.lacks {
		if seen.lacks = v.LacksBytes; seen.lacks == 0 {
			seen.fillIdx = o.idx
		}
	}
	for i := range v.Peers {
		q := &v.Peers[i]
		if q.Repl == protocol.SyncTarget {
			if seen.repl[i] != q.Repl && strings.HasPrefix(string(q.Rule), "after-sb") {
				o.policySettles(p, p.n.peers[i], q.Rule)
			}
			seen.syncFrom = i
		}
		if q.Repl == protocol.Established && seen.repl[i] == protocol.ReplOff {
			o.agrees(p, p.n.peers[i])
		}
		if q.Live != seen.live[i] {
			p.livens(i, q)
		} else if q.Live && seen.branch != nil && q.Repl == protocol.Established && q.Repl != seen.repl[i] && o.st[p.n.peers[i].index].br != seen.branch {
			o.joins(p, p.n.peers[i], q) // promoted when the sync had just ended there
		}
		seen.repl[i] = q.Repl
	}
	if v.Active < seen.active {
		p.cooled = true
	}
	seen.active = v.Active
	before := seen.disk
	if v.Disk != seen.disk {
		seen.disk = v.Disk
		switch {
		case v.Role == protocol.Primary && v.Disk == protocol.UpToDate && st.broken && seen.branch != nil:
			o.filled(p)
		case v.Disk == protocol.Inconsistent && p.putting:
			st.broken = true
		case v.Disk > protocol.Inconsistent && st.broken && p.putBack != nil:
			o.restored(p, p.putBack)
		case v.Disk == protocol.Inconsistent && seen.syncFrom >= 0 && v.Role != protocol.Primary && seen.role != protocol.Primary:
			o.overwritten(p, p.n.peers[seen.syncFrom])
			st.broken = true
		case v.Disk > protocol.Inconsistent && st.broken && v.Role != protocol.Primary:
			if seen.syncFrom < 0 {
				p.w.fail("C6: %s is %s without a sync", p.n.name, v.Disk)
			}
			o.joined(p, p.n.peers[seen.syncFrom])
		}
	}
	if v.Role == protocol.Primary && seen.branch == nil {
		if before == protocol.Outdated && p.forcing == 0 {
			p.w.fail("C6: %s is promoted, and it is outdated", p.n.name)
		}
		o.promoted(p)
		for i := range v.Peers {
			// Nothing is written before the role is durable; then those that are behind are
			// dropped.
			if q := &v.Peers[i]; q.Live && (q.Repl == protocol.SyncSource || q.Slot == 0 && q.DirtyBytes == 0) {
				o.joins(p, p.n.peers[i], &v.Peers[i])
			}
		}
	}
	if fn := p.w.minted; fn != nil && st.gen != v.Current && v.Role == protocol.Primary {
		fn(p.n)
	}
	seen.role, st.gen = v.Role, v.Current
}

// newcomers: a replica that has come into the ack sets in the event under way has what
// was acknowledged before it, not what is acknowledged in it: that was sent to it.
func (o *oracle) newcomers(p *process, v *replica.View) {
	for i := range v.Peers {
		if q := &v.Peers[i]; q.Live && !p.seen.live[i] {
			p.livens(i, q)
		}
	}
}

// livens notes that a peer has come into the ack sets, or gone.
func (p *process) livens(i int, q *replica.PeerView) {
	p.seen.live[i] = q.Live
	if q.Live && p.seen.branch != nil {
		p.w.o.joins(p, p.n.peers[i], q)
	}
}

// joins: the primary takes a replica into its ack sets.
func (o *oracle) joins(p *process, n *node, q *replica.PeerView) {
	st, me := o.st[n.index], o.st[p.n.index]
	vol := o.idx
	l := p.linkTo(n)
	if v := p.look(); v.Bare && q.Repl != protocol.SyncSource { // from a disk that is filled, which is not durable yet
		if !left(n, p, l) { // else it answers nothing, and is judged when it comes back
			o.carries(p, n)
		}
		return
	}
	equal := q.Repl == protocol.Established || q.Repl == protocol.VerifySource || q.Repl == protocol.VerifyTarget
	if equal && left(n, p, l) {
		return // its last word came late: it may have been overwritten by another since
	}
	if equal {
		if x := n.proc.m.View(); x.Primary != "" && x.Primary != p.n.name && x.Current != p.m.View().Current {
			return // it has followed another into a generation of its own, and takes none from here
		}
	}
	st.back = false
	if equal && !st.broken {
		if i := unique(st.mark(), me.mark()); i != 0 && !st.gaveUp && o.more(n, p.n, i) != nil {
			o.w.fail("C4: %s takes %s for equal, which acknowledged %d that %s does not have", p.n.name, n.name, i, p.n.name)
		}
		j, dur, fua := st.joint, o.idx, map[int32]forced{}
		if st.cached { // nobody had it flush; its activity map says what a power cut may take
			dur, fua = st.dur, st.fua
		}
		if n.view(p.n).Repl == protocol.ReplOff {
			// It has not heard the verdict, and may refuse it: another primary may be there.
			st.joint = join{br: me.br, c: l.e.c, pos: o.idx, vol: vol, dur: dur, fua: maps.Clone(fua)}
			return
		}
		st.fua = fua
		st.br, st.pos, st.vol, st.dur, st.lost, st.joint, st.cached = me.br, o.idx, vol, dur, false, join{}, false
		if l := p.linkTo(n); j.br == me.br && l != nil && l.e.c == j.c {
			// It was written to before the end of its sync was known here.
			st.pos, st.vol, st.dur, st.fua = j.pos, j.vol, j.dur, j.fua
		}
		o.w.log("oracle: %s is with %s on branch %d at %d", n.name, p.n.name, st.br.id, st.pos)
		return
	}
	if l != nil && st.ended(me.br, l.e.c) {
		st.br, st.pos, st.vol, st.dur, st.lost, st.over, st.joint = me.br, o.idx, vol, o.idx, false, l.e.c, join{}
		clear(st.fua)
		o.w.log("oracle: %s, whose sync has ended, is with %s on branch %d at %d", n.name, p.n.name, st.br.id, st.pos)
		return
	}
	if l != nil {
		st.joint = join{br: me.br, c: l.e.c, pos: o.idx, vol: vol, dur: o.idx, fua: map[int32]forced{}}
	}
}

// agrees: a replica takes a primary, which has it in its ack sets since it found the two
// equal, for its equal, too.
func (o *oracle) agrees(p *process, primary *node) {
	st, l := o.st[p.n.index], p.linkTo(primary)
	if j := st.joint; j.br != nil && l != nil && j.c == l.e.c && !st.broken {
		st.br, st.pos, st.vol, st.dur, st.fua, st.lost, st.joint, st.cached = j.br, j.pos, j.vol, j.dur, j.fua, false, join{}, false
		o.w.log("oracle: %s is with %s on branch %d at %d", p.n.name, primary.name, st.br.id, st.pos)
	}
}

// ended reports whether a sync over c has ended at the replica, from a source that has
// become primary before it heard of that, in a reign that begins with what the target got:
// what is written is the target's from now on, which no other end of a sync will tell.
func (st *standing) ended(reign *branch, c *conn) bool {
	d := &c.done
	return !st.broken && d.br != nil && d.br == st.br && d.br == reign.parent && d.pos == reign.fork
}

// left reports whether a replica has ended the connection that p still has with it.
func left(n *node, p *process, l *link) bool {
	if n.proc == nil || l == nil {
		return true
	}
	back := n.proc.linkTo(p.n)
	return back == nil || back.e.c != l.e.c
}

// overwritten: a sync begins to overwrite the replica. C4. A source that has ended the
// connection meanwhile sends no block: it waits for the answer first.
func (o *oracle) overwritten(p *process, from *node) {
	st, src := o.st[p.n.index], o.st[from.index]
	if st.broken || st.gaveUp || left(from, p, p.linkTo(from)) {
		return
	}
	o.flushKept(p, from)
	first := unique(st.mark(), src.mark())
	if first == 0 {
		return
	}
	// It was not told of them, or not that we know.
	if e := o.more(p.n, from, first); e != nil {
		o.w.fail("C4: %s is overwritten by %s, which does not have write %d (%s, branch %d of %s), and nobody gave it up",
			p.n.name, from.name, e.idx, valueText(e.val), st.br.id, st.br.owner)
	}
}

// more returns an acknowledged write, from an index on, that the disk of a has, or what
// came after it, and that of b does not; nil: there is none. Under A and B a replica
// stands at what was acknowledged in its generation, and may not have it.
func (o *oracle) more(a, b *node, first int) *entry {
	st := o.st[a.index]
	for h, s := range o.hot {
		va, vb := a.disk.at(int64(s)), b.disk.at(int64(s))
		if va == vb {
			continue
		}
		list := st.br.hist[h]
		from, to := max(first, st.br.reach(int32(h), vb)+1), min(st.pos, st.br.reach(int32(h), va))
		for i := range list {
			if idx := list[i].idx; idx >= from && idx <= to {
				return &list[i]
			}
		}
	}
	return nil
}

// flushKept: of two secondaries that followed one primary, the one that has what a client
// flushed is not overwritten by the one that does not. C4.
func (o *oracle) flushKept(p *process, from *node) {
	st, src := o.st[p.n.index], o.st[from.index]
	if st.br != src.br || from.proc == nil || from.proc.seen.branch != nil {
		return
	}
	if (st.lost || src.lost) && !o.waitedFor(st.br, p.n) && !o.waitedFor(st.br, from) {
		return
	}
	floor := st.owed()
	for h, s := range o.hot {
		if v := from.disk.at(int64(s)); !st.br.legal(int32(h), v, floor, 0) && st.br.legal(int32(h), p.n.disk.at(int64(s)), floor, 0) {
			o.w.fail("C4: %s is overwritten by %s, another secondary, which has %s in sector %d, older than what was flushed: %d of branch %d has %s",
				p.n.name, from.name, valueText(v), s, floor, st.br.id, st.br.text(int32(h)))
		}
	}
}

// syncEnds notes what the source of a sync has when it says that the sync has ended. A
// secondary passes nothing on after that, whatever it takes in until the target hears.
func (o *oracle) syncEnds(p *process, c *conn) {
	st := o.st[p.n.index]
	c.done = join{br: st.br, pos: st.pos, vol: st.vol, dur: st.vol, lost: st.lost}
}

// joined: a sync from another replica has ended.
func (o *oracle) joined(p *process, from *node) {
	st, src := o.st[p.n.index], o.st[from.index]
	st.broken, st.gaveUp, st.lost, st.half, st.back = false, false, false, false, false
	l := p.linkTo(from)
	if j := st.joint; j.br != nil && l != nil && l.e.c == j.c {
		st.br, st.pos, st.vol, st.dur, st.fua, st.joint = j.br, j.pos, j.vol, j.dur, j.fua, join{}
		st.over = j.c
	} else {
		j := join{br: src.br, pos: src.pos, vol: src.vol, dur: src.vol, lost: src.lost}
		if l != nil && l.e.c.done.br != nil {
			j = l.e.c.done
		}
		st.br, st.pos, st.vol, st.dur, st.lost = j.br, j.pos, j.vol, j.dur, j.lost
		st.fua = map[int32]forced{}
	}
	st.told = src.told // as if it had been there
	o.w.count("resyncs")
	o.w.log("oracle: %s joins branch %d at %d, floors %d/%d", p.n.name, st.br.id, st.pos, st.vol, st.dur)
}

// newest: C6. Nobody is promoted beside a replica, connected to it, that has followed a
// primary into a later generation.
func (o *oracle) newest(p *process) {
	st := o.st[p.n.index]
	for i, n := range p.n.peers {
		x, l := o.st[n.index], p.linkTo(n)
		if l == nil || left(n, p, l) || x.broken || x.gaveUp || p.look().Peers[i].Repl != protocol.Established || n.proc.m.View().Current == p.view.Current {
			continue
		}
		if idx := unique(x.mark(), st.mark()); idx != 0 && unique(st.mark(), x.mark()) == 0 {
			o.w.fail("C6: %s is promoted beside %s, connected to it, which has %d of branch %d, and %s does not", p.n.name, n.name, idx, x.br.id, p.n.name)
		}
	}
}

// waited: what was submitted to the last reign, and waited while the role was laid down
// and taken up again, is of the new one.
func (o *oracle) waited(p *process, b *branch) {
	var list []*clientOp
	for c := range p.ops {
		if c.br != nil && c.br == p.seen.former && c.r.Seq() == 0 {
			list = append(list, c)
		}
	}
	slices.SortFunc(list, func(x, y *clientOp) int {
		return cmp.Or(cmp.Compare(x.at, y.at), cmp.Compare(x.id, y.id), cmp.Compare(x.r.Off, y.r.Off), cmp.Compare(x.r.Len, y.r.Len))
	})
	for _, c := range list {
		o.unsure(c) // of the last reign
		c.br = b
		if c.r.Op != replica.Read && c.r.Op != replica.Flush {
			o.within(c.r.Off, c.r.Len, func(s, h int32) {
				b.maybe[h] = append(b.maybe[h], unsure{val: c.value(s), op: c, end: forever, reign: b.id})
			})
		}
	}
}

// onlyPrimary: C4. Nobody is promoted beside a primary who could be asked, unless an
// operator says of that one that it is dead.
func (o *oracle) onlyPrimary(p *process, forced bool) {
	if o.w.lied {
		return // what a hook has said is noted durably
	}
	if p.handed == o.w.done {
		return // from a primary, or back to it: there are no more than before
	}
	if o.w.hasQuorum() {
		return // one that is cut off stays primary, and answers nothing (oneServes)
	}
	for _, q := range p.n.peers {
		if x := q.proc; x != nil && x.seen.branch != nil && !forced && !p.vouched && x.look().Role == protocol.Primary {
			o.w.fail("C4: %s is promoted while %s is primary, and nobody vouched for its death", p.n.name, q.name)
		}
	}
}

// inherit: who takes the role over from a primary takes over what an operator vouched for
// when that one was promoted. It makes no primary more.
func (p *process) inherit(from *process) {
	p.vouched = p.vouched || from != nil && from.vouched
}

// promoted: C1 and C6. The new reign begins with what the replica holds.
func (o *oracle) promoted(p *process) {
	o.reign++
	p.reign = o.reign
	if v := p.look(); v.Bare && p.seen.former != nil {
		// A switchover was refused: the role is back, and the data are where they were.
		p.seen.branch = p.seen.former
		o.w.count("role back without a disk")
		return
	}
	st := o.st[p.n.index]
	if st.half {
		o.w.fail("C6: %s is promoted in the middle of a restore", p.n.name)
	}
	forced := p.forcing > 0
	o.onlyPrimary(p, forced)
	o.elected(p, forced)
	if !forced {
		o.nothingLost(p)
	}
	d := p.n.disk
	if !forced && st.dur >= st.wild {
		if st.broken {
			o.w.fail("C6: %s is promoted, and it is inconsistent", p.n.name)
		}
		for h, s := range o.hot {
			if v := d.at(int64(s)); !st.holds(s, int32(h), v, st.vol) {
				o.w.fail("C1: %s is promoted and has %s in sector %d; it must have everything up to %d (durable %d) of branch %d: %s",
					p.n.name, valueText(v), s, max(st.vol, st.fua[s].idx), st.dur, st.br.id, st.br.text(int32(h)))
			}
		}
		o.prefix(p.n)
		for i, page := range d.pages {
			if page == nil {
				continue
			}
			for k, v := range page.cur {
				if s := i*sectorsPage + k; v != 0 && o.slot[s] < 0 {
					o.w.fail("C1: %s has %s in sector %d, which was never written", p.n.name, valueText(v), s)
				}
			}
		}
	}
	if !forced {
		o.newest(p)
	}
	b := o.newBranch(st.br, st.pos, p.n.name)
	b.carry(d)
	o.waited(p, b)
	o.idx++
	for h, s := range o.hot {
		if l, v := b.hist[h], d.at(int64(s)); l[len(l)-1].val != v {
			b.hist[h] = append(l, entry{o.idx, v, 0})
		}
	}
	if forced && st.broken {
		st.dur, st.wild = 0, o.idx
		clear(st.fua)
	}
	// What was given up and half overwritten stays given up until something is acknowledged
	// on it: the operator's word accepted it as it is, and began nothing.
	st.gaveUp = st.gaveUp && forced && st.broken
	st.br, st.pos, st.vol, st.broken, st.lost = b, o.idx, o.idx, false, false
	p.seen.branch = b
	o.w.count("promotions")
	o.w.log("oracle: %s begins branch %d of %d at %d, index %d, forced %v", p.n.name, b.id, b.parent.id, b.fork, o.idx, forced)
}
