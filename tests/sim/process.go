package sim

import (
	"errors"
	"fmt"
	"slices"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
	"github.com/qrbd/qrbd/volume/archive"
	"github.com/qrbd/qrbd/volume/meta"
)

// node is a machine: its disk and metadata outlive its processes.
type node struct {
	w       *World
	name    string
	index   int
	size    int64 // of its replica
	disk    *disk
	shelf   *shelf
	shaky   bool      // an archive could not be ended there
	lost    *lostSide // nil: nothing is to be found in an archive
	meta    *metaStore
	clock   int64 // offset
	skew    int64 // how much faster the clock runs, in thousandths
	proc    *process
	peers   []*node // in the order of replica.Config.Peers
	witness bool
	busy    bool // being stopped or started by the operator
}

// process is one life of a volume on a node: what package volume does in
// goroutines, done in events.
type process struct {
	n        *node
	w        *World
	m        *replica.Machine
	file     *meta.File
	super    meta.Super
	links    []*link
	applying []*link // of each peer, the link whose turn it is to apply
	dead     bool
	paused   bool
	deferred []func()
	commit   bool // a commit is running, or about to
	cooled   bool // extents have, since the last commit
	wanted   bool
	stopping bool
	left     bool
	all      []*link // that have not ended
	ops      map[*clientOp]bool
	seen     observed
	archives *archive.Dir

	restoring   bool                // volume.restoring
	putting     bool                // the machine was asked to restore what was given up
	putBack     *lostSide           // it is all in place again
	archiveJobs []func(done func()) // the first is being done
	archiving   *replica.Discard    // the last that began
	started     int64
	vouched     bool           // an operator has said of its peers that they are dead
	reign       int            // of the oracle's count
	ask         uint64         // the last promotion that others were asked for
	leaves      map[*node]bool // who has agreed to it
	handed      int            // the event with which the role was handed over, or back
	gone        map[*node]bool // who has left in order, and is not back
	reading     int            // requests of read under way
	forcing     int            // promotions by force under way
	dirty       []*bitmap.Set  // toward each peer, the machine's own
	again       func()         // client
	failCommit  bool           // the next one
	view        replica.View   // scratch of look
	pulled      map[*replica.Request][]uint64
}

var names = []string{"alpha", "beta", "gamma"}

// newNode makes a node as `qrbd create` does.
func (w *World) newNode(i int) *node {
	n := &node{w: w, name: names[i], index: i, size: w.firstSize()}
	n.clock = w.between(0, 3600*second) + 1e18
	if w.p(0.3) {
		n.skew = w.between(-200, 200)
	}
	n.create()
	return n
}

// create makes store and metadata anew.
func (n *node) create() {
	n.disk = newDisk(n.w, n.w.sc.size)
	n.shelf, n.lost, n.shaky = newShelf(n.w), nil, false
	start, size, err := meta.Format(&meta.Super{Size: n.size, Node: n.name, Name: "crm", Disk: protocol.Inconsistent, Clean: true}, n.w.id())
	if err != nil {
		panic(err)
	}
	n.meta = newMetaStore(n.w, start, size)
}

// start begins a process on the node. It may die on the way.
func (n *node) start() {
	w := n.w
	if n.proc != nil {
		return
	}
	if w.p(0.1) {
		w.count("clock jump")
		n.clock += w.between(-48*3600*second, 48*3600*second)
	}
	if !w.calm && w.p(0.05) {
		n.meta.budget = 1 + w.n(12)
	}
	file, state, err := meta.Open(n.meta)
	crash := errors.Is(err, errCrash)
	n.meta.budget = 0
	if crash {
		w.count("crash in open")
		w.log("%s dies while it opens its metadata", n.name)
		n.fell(w.p(0.5))
		w.at(100*milli, n.start)
		return
	}
	if err != nil {
		w.fail("P7: %s: metadata: %v", n.name, err)
	}
	n.size = state.Super.Size
	p := &process{n: n, w: w, file: file, super: state.Super, links: make([]*link, len(n.peers)), applying: make([]*link, len(n.peers)), ops: map[*clientOp]bool{}, pulled: map[*replica.Request][]uint64{}, gone: map[*node]bool{}, started: w.now}
	st := p.stored(state)
	for _, q := range st.Peers {
		p.dirty = append(p.dirty, q.Dirty)
	}
	p.openArchives(&st)
	p.m = replica.New(p.config(), st, p.activity(state), p.now())
	p.m.Effects()
	for {
		b, ok := p.m.MetaBatch()
		if !ok {
			break
		}
		if !w.calm && w.p(0.03) {
			n.meta.budget = 1 + w.n(4)
		}
		err := p.write(b)
		n.meta.budget = 0
		if errors.Is(err, errCrash) {
			w.count("crash in start")
			n.fell(true)
			w.at(100*milli, n.start)
			return
		}
		if err != nil {
			w.fail("P7: %s: first commit: %v", n.name, err)
		}
		p.m.MetaDone(p.now(), b.Version, b, nil)
	}
	n.proc = p
	v := p.m.View()
	w.log("%s starts: %s, generation %s, crashed %v, clean %v, %d active extents, slots %s", n.name, v.Disk, short(v.Current), state.Super.Primary, state.Super.Clean, v.Active, slots(v))
	w.o.started(p)
	p.tick()
	p.observe()
	p.again = p.client
	for range w.sc.clients {
		p.after(w.between(0, 100*milli), p.again)
	}
	p.readers()
}

func short(g protocol.Generation) string { return g.String()[:6] }

func slots(v replica.View) string {
	s := ""
	for _, p := range v.Peers {
		s += fmt.Sprintf("%s=%s/%d ", p.Name, short(p.Slot), p.DirtyBytes/bitmap.BlockSize)
	}
	return s
}

func (p *process) config() replica.Config {
	sc := &p.w.sc
	cfg := replica.Config{Witness: p.n.witness, Quorum: sc.quorum, MinRedundancy: sc.minRedundancy, OnNoQuorum: sc.onNoQuorum, Lease: sc.lease, Fencing: sc.fencing, Self: p.n.name, Name: "crm", Size: p.n.size, Rand: p.w.id,
		VolumeID:     func() (id protocol.VolumeID) { id[0] = byte(p.w.id()) | 1; return id },
		WriteTimeout: sc.writeTimeout, FlushInterval: sc.flushInterval, FlushBytes: sc.flushBytes, ActivityIdle: sc.activityIdle,
		HandshakeTime: 15 * second, RetryMin: 100 * milli, RetryMax: 2 * second, AskTime: 5 * second, QueueBytes: sc.queueBytes, RingMax: sc.ringMax, RecentMax: sc.recentMax, Sync: sc.sync, Policy: sc.policies[p.n.index],
		NoData: sc.noData, OnReadError: sc.onReadError, DiskTimeout: sc.diskTimeout, AskTarget: sc.ask}
	for _, q := range p.n.peers {
		c := replica.PeerConfig{Name: q.name, Mode: sc.mode(p.n, q), Witness: q.witness}
		if sc.pullAhead {
			c.OnCongestion, c.Buffer, c.Fill = replica.CongestionPullAhead, sc.buffer, sc.fill
		}
		cfg.Peers = append(cfg.Peers, c)
	}
	return cfg
}

// stored is volume.stored for a fixed set of peers: slots in the order of the
// configuration.
func (p *process) stored(state *meta.State) replica.Stored {
	s := &state.Super
	st := replica.Stored{Volume: s.Volume, Disk: s.Disk, Primary: s.Primary, Clean: s.Clean, Shaken: s.Shaken, Current: s.Current, History: s.History, Seq: s.Seq, Lost: s.Lost, Restoring: s.Flags&1 != 0, Own: s.Flags&2 != 0, Lacking: s.Flags&4 != 0, Archive: s.Archive, Term: s.Term, Voted: s.Voted, Overruled: s.Overruled, Floor: s.Floor}
	for i, q := range p.n.peers {
		if i >= len(s.Peers) {
			st.Peers = append(st.Peers, replica.PeerSlot{Name: q.name, Dirty: bitmap.NewSet(bitmap.Blocks(p.n.size))})
			continue
		}
		st.Peers = append(st.Peers, replica.PeerSlot{Name: q.name, Bitmap: s.Peers[i].Bitmap, Disk: s.Peers[i].Disk, Dirty: state.Bitmaps[i],
			First: s.Peers[i].First, Last: s.Peers[i].Last, Older: s.Peers[i].Flags&1 != 0, Left: s.Peers[i].Flags&2 != 0, Told: s.Peers[i].Flags&4 != 0, Fenced: s.Peers[i].Flags&8 != 0, Writer: s.Peers[i].Flags&16 != 0})
	}
	return st
}

func (p *process) activity(state *meta.State) *bitmap.Activity {
	if state.Super.Clean {
		return bitmap.NewActivity(p.n.size)
	}
	return state.Activity
}

func (p *process) batch(b replica.MetaBatch) *meta.Batch {
	out := &meta.Batch{Activity: b.Activity}
	if s := b.Super; s != nil {
		sup := &meta.Super{Volume: s.Volume, Size: p.super.Size, Node: p.super.Node, Name: p.super.Name, Disk: s.Disk, Primary: s.Primary,
			Clean: s.Clean, Shaken: s.Shaken, Flags: 0, Current: s.Current, History: s.History, Seq: s.Seq, Lost: s.Lost, Archive: s.Archive, Term: s.Term, Voted: s.Voted, Overruled: s.Overruled, Floor: s.Floor}
		if s.Restoring {
			sup.Flags = 1
		}
		if s.Own {
			sup.Flags |= 2
		}
		if s.Lacking {
			sup.Flags |= 4
		}
		for _, q := range s.Peers {
			slot := meta.PeerSlot{Name: q.Name, Bitmap: q.Bitmap, Disk: q.Disk, First: q.First, Last: q.Last}
			for i, on := range []bool{q.Older, q.Left, q.Told, q.Fenced, q.Writer} {
				if on {
					slot.Flags |= 1 << i
				}
			}
			sup.Peers = append(sup.Peers, slot)
		}
		out.Super = sup
	}
	for _, g := range b.Bitmaps {
		out.Bitmap = append(out.Bitmap, meta.BitmapPage{Slot: int(g.Peer), Page: g.Page, Data: g.Data})
	}
	return out
}

// write is volume.write: bits first, then the super page.
func (p *process) write(b replica.MetaBatch) error {
	all := p.batch(b)
	if all.Super != nil && len(all.Bitmap) > 0 {
		if err := p.file.Commit(&meta.Batch{Activity: all.Activity, Bitmap: all.Bitmap}); err != nil {
			return err
		}
		all.Activity, all.Bitmap = nil, nil
	}
	return p.file.Commit(all)
}

// look returns what the machine says of itself, until the next look.
func (p *process) look() *replica.View {
	p.m.ViewInto(&p.view)
	return &p.view
}

// now is the process's clock. Like that of package volume it is set when the process
// starts and never goes back.
func (p *process) now() int64 { return p.w.now + p.w.now/1000*p.n.skew + p.n.clock }

// after calls fn in the process some time from now, if it lives; a paused process
// does it when it goes on.
func (p *process) after(d int64, fn func()) {
	p.w.push(d, p, fn)
}

func (p *process) enter(fn func()) {
	switch {
	case p.dead:
	case p.paused:
		p.deferred = append(p.deferred, fn)
	default:
		fn()
		if !p.dead {
			p.observe()
		}
	}
}

func (p *process) tick() {
	p.after(100*milli, func() {
		p.m.Tick(p.now())
		p.run()
		p.tick()
	})
}

// soon is how long another goroutine takes to notice.
func (p *process) soon() int64 {
	if p.w.p(0.02) {
		return p.w.between(0, 20*milli)
	}
	return p.w.between(0, 50*micro)
}

// run executes effects as volume.unlockAndRun does.
func (p *process) run() {
	out := p.m.Effects()
	if len(out) == 0 {
		return
	}
	w := p.w
	if w.depth == len(w.effects) {
		w.effects = append(w.effects, nil)
	}
	es := append(w.effects[w.depth][:0], out...)
	w.effects[w.depth] = es
	w.depth++
	p.execute(es)
	w.depth--
}

// execute runs effects: frames get their places first.
func (p *process) execute(es []replica.Effect) {
	for i := range es {
		e := &es[i]
		switch e.Kind {
		case replica.DoSend:
			if l := p.links[e.Peer]; l != nil {
				switch m := e.Msg.(type) {
				case *protocol.SyncDone:
					p.w.o.syncEnds(p, l.e.c)
				case *protocol.PromoteAsk:
					p.asked(m.ID)
				default:
				}
				l.enqueue(e)
			}
		case replica.DoDrop:
			if l := p.links[e.Peer]; l != nil {
				p.links[e.Peer] = nil
				p.w.log("%s drops %s: %v", p.n.name, l.peer.name, e.Err)
				l.finish()
			}
		case replica.DoResume:
			if l := p.links[e.Peer]; l != nil {
				l.resumed()
			}
		case replica.DoServe:
			if l := p.links[e.Peer]; l != nil {
				l.serve(e.Read, e.Err)
			}
		case replica.DoComplete:
			if o, client := e.Req.Tag.(*clientOp); client && e.Err == nil {
				v := p.look()
				o.decided, o.bare, o.carriers = true, v.Bare, v.Carriers
			}
		case replica.DoPersist:
			p.journal()
		case replica.DoEvent:
			ev := e.Event
			if ev.Field == "replication" && ev.New == "ahead" {
				p.w.count("went ahead")
			}
			if ev.Field == "handshake" {
				p.w.count("handshake " + ev.New)
				if ev.New == "split-brain" {
					p.w.o.noSplit(p, p.w.named(ev.Peer))
				}
				if ev.New == "split-brain" && p.n.index < p.w.named(ev.Peer).index {
					p.w.count("split brains")
					p.w.o.split(p.n, p.w.named(ev.Peer))
				}
			}
			if ev.Field == "fencing" && ev.New == "unfenced" {
				p.unfenced()
			}
			defer p.w.o.glance(0.25) // of this moment, and after what it leads to
			p.w.log("%s event %s %s: %s -> %s (%s)", p.n.name, ev.Peer, ev.Field, ev.Old, ev.New, ev.Reason)
		default:
		}
	}
	for i := range es {
		e := &es[i]
		switch e.Kind {
		case replica.DoLocal:
			p.local(e.Req)
		case replica.DoComplete:
			p.complete(e.Req, e.Err)
		case replica.DoConnect:
			q := p.n.peers[e.Peer]
			p.w.net(p.n, q).ask(p)
		case replica.DoSync:
			if p.w.aside.Float64() < 0.02 {
				p.w.count("sync start dropped") // the background check must notice
				continue
			}
			p.startSync(e.Peer)
		case replica.DoReply:
			e.Reply(e.Err)
		case replica.DoAskTarget:
			p.askTarget(e.Peer, e.Token)
		case replica.DoFence:
			p.fence(e.Peer, e.Token)
		case replica.DoArchive:
			p.archive(e.Peer, e.Discard)
		case replica.DoSettle:
			p.settle()
		case replica.DoArchiveEnd:
			p.endArchive(e.Discard)
		default:
		}
		if p.dead {
			return
		}
	}
}

// journal is volume.journalLoop.
func (p *process) journal() {
	if p.commit {
		p.wanted = true
		return
	}
	p.commit = true
	p.after(p.soon(), p.commitOnce)
}

func (p *process) commitOnce() {
	p.wanted = false
	b, ok := p.m.MetaBatch()
	if !ok {
		p.commit = false
		return
	}
	p.w.pass(commits, p.n, nil)
	s := p.n.meta
	if fails := p.failCommit; !p.w.calm && (p.w.p(p.w.sc.metaFail) || fails) {
		p.failCommit = false
		s.failSync = true
		p.w.count("metadata sync failed")
	}
	s.staging = true
	err := p.write(b)
	s.staging = false
	s.cutShort()
	d := p.w.between(50*micro, p.w.sc.metaTime)
	if p.w.p(0.02) {
		d += p.w.between(0, 100*milli)
	}
	p.after(d, func() {
		if p.playByPoint() {
			return
		}
		s.play(len(s.log))
		s.failSync = false
		p.m.MetaDone(p.now(), b.Version, b, err)
		p.run()
		if p.cooled {
			p.cooled = false
			p.w.o.cooled(p.n)
		}
		if err == nil {
			p.after(p.soon(), p.commitOnce)
			return
		}
		p.commit = false
		if p.wanted {
			p.journal()
		}
	})
}

// local is volume.local.
func (p *process) local(r *replica.Request) {
	done := func(err error) {
		fatal := err != nil && !errors.Is(err, errSpace)
		p.m.LocalDone(p.now(), r, err, fatal)
		p.run()
	}
	d := p.n.disk
	defer p.hang(d, r)()
	if r.Op == replica.Flush {
		d.flush(p, done)
		return
	}
	if r.Op == replica.Pull {
		vals := p.pulled[r]
		delete(p.pulled, r)
		d.write(p, r.Off, r.Len, vals, false, done)
		return
	}
	o := r.Tag.(*clientOp)
	if r.Op != replica.Read {
		p.keepLocal(r, func(err error) {
			if err != nil {
				done(err)
				return
			}
			p.localWrite(r, o, done)
		})
		return
	}
	if p.w.p(0.5) && !d.failed && !d.isBad(r.Off, r.Len) { // in memory
		o.got = d.values(r.Off, r.Len)
		done(nil)
		return
	}
	d.read(p, r.Off, r.Len, func(v []uint64, err error) {
		if !r.Late() { // else it was answered, by a peer
			o.got = v
		}
		done(err)
	})
}

// localWrite changes the store for a client.
func (p *process) localWrite(r *replica.Request, o *clientOp, done func(error)) {
	d := p.n.disk
	switch r.Op {
	case replica.Write:
		if r.Len <= 64<<10 && !r.FUA && p.w.p(0.5) { // inline
			if err := d.trouble(true); err != nil {
				done(err)
				return
			}
			d.apply(&diskOp{off: r.Off, n: r.Len, vals: o.vals})
			done(nil)
			return
		}
		d.write(p, r.Off, r.Len, o.vals, r.FUA, done)
	default:
		d.write(p, r.Off, r.Len, nil, r.FUA, done)
	}
}

// complete is volume.complete.
func (p *process) complete(r *replica.Request, err error) {
	if r.Internal() {
		p.m.Finished(p.now(), r)
		p.run()
		return
	}
	p.answered(r.Tag.(*clientOp), err)
}

func (p *process) linkTo(n *node) *link {
	for i, q := range p.n.peers {
		if q == n {
			return p.links[i]
		}
	}
	return nil
}

func (p *process) peerID(n *node) replica.PeerID {
	return replica.PeerID(slices.Index(p.n.peers, n))
}

// attach is volume.AttachPeer.
func (p *process) attach(peer *node, e *end) {
	id := p.peerID(peer)
	l := newLink(p, id, peer, e)
	if p.stopping {
		l.refuse(protocol.CodeShutdown, "stopping")
		return
	}
	if old := p.links[id]; old != nil {
		p.links[id] = nil
		p.m.Lost(p.now(), id, errors.New("replaced by a new connection"))
		old.abort()
	}
	p.links[id] = l
	err := p.m.Linked(p.now(), id)
	if err != nil {
		p.links[id] = nil
		p.run()
		var r *replica.Refusal
		errors.As(err, &r)
		l.refuse(r.Code, r.Text)
		return
	}
	p.all = append(p.all, l)
	p.run()
	l.begin()
}

// fell is what a death leaves of what the node stores, where no process of it runs yet.
func (n *node) fell(power bool) {
	if !power {
		n.meta.killed()
		return
	}
	n.meta.powerCut()
	n.disk.powerCut()
	n.shelf.powerCut()
	n.w.o.powerCut(n)
}

// kill ends the process without notice.
func (n *node) kill(power bool) {
	p := n.proc
	if p == nil {
		return
	}
	w := n.w
	p.dead = true
	n.proc = nil
	for _, net := range w.links {
		s := net.sess
		if s == nil || s.procs[net.side2(n)] != p {
			continue
		}
		i := net.side2(n)
		for _, c := range s.conns {
			c.ends[i].killed()
		}
		s.down[i] = true
		w.at(w.between(5*milli, w.sc.silence), func() { s.drop(1-i, errSilence) })
	}
	w.o.died(p)
	if power {
		n.disk.powerCut()
		n.shelf.powerCut()
		n.meta.powerCut()
		w.o.powerCut(n)
		return
	}
	n.disk.killed()
	n.meta.killed()
}

// side2 returns n's side, or 0 if it has none (then nothing matches).
func (n *net) side2(x *node) int {
	if x == n.b {
		return 1
	}
	return 0
}

// pause stops the process (SIGSTOP) for a while.
func (n *node) pause(d int64) {
	p := n.proc
	if p == nil || p.paused {
		return
	}
	p.paused = true
	w := n.w
	for _, net := range w.links {
		s := net.sess
		if s == nil || s.procs[net.side2(n)] != p {
			continue
		}
		i := net.side2(n)
		w.at(w.between(2*second, 2*second+w.sc.silence), func() {
			if p.paused {
				s.drop(1-i, errSilence)
			}
		})
	}
	w.at(d, func() { n.resume(p) })
}

func (n *node) resume(p *process) {
	if !p.paused {
		return
	}
	p.paused = false
	list := p.deferred
	p.deferred = nil
	for _, fn := range list {
		p.enter(fn)
	}
}

// shutdown is volume.Close: drain, step down, say goodbye, flush, mark clean.
func (p *process) shutdown(then func()) {
	p.stopping = true
	p.operate("close", func(done func(error)) { p.m.Demote(p.now(), done) }, func(err error) {
		if err != nil {
			p.n.kill(false)
			then()
			return
		}
		if sc := &p.w.sc; sc.quorum.Kind != replica.QuorumOff && !p.left {
			p.left = true
			p.operate("leave", func(done func(error)) { p.m.Leave(p.now(), done) }, func(error) { p.farewell(then) })
			return
		}
		p.farewell(then)
	})
}

// farewell is what follows when nothing is under way any more.
func (p *process) farewell(then func()) {
	p.m.Stop(p.now())
	p.run()
	var wait func()
	wait = func() {
		for _, l := range p.all {
			if l.active() {
				p.after(10*milli, wait)
				return
			}
		}
		p.n.disk.flush(p, func(err error) {
			if err != nil {
				p.n.kill(false)
				then()
				return
			}
			p.m.MarkClean(p.now())
			p.run()
			p.settleMeta(then)
		})
	}
	wait()
}

func (p *process) settleMeta(then func()) {
	if !p.m.MetaSettled() {
		p.after(2*milli, func() { p.settleMeta(then) })
		return
	}
	p.w.log("%s stopped in order", p.n.name)
	if p.file.Close() == nil && p.w.p(0.5) {
		p.n.meta.settle()
	}
	p.n.kill(false)
	then()
}
