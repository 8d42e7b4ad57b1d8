package replica

import (
	"fmt"
	"sort"
	"strings"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/resync"
)

// world is a few machines with perfect disks and a network that a script links,
// cuts and delivers. Everything happens in the order in which it was asked for;
// ids count up, so that a script's output is always the same.
type world struct {
	names []string
	nodes map[string]*wnode
	now   Time
	ids   uint64
	out   strings.Builder
	mode  protocol.Mode
	size  int64
	mute  map[string]bool // "from>to": frames are kept back
	far   map[string]bool // whose protocol with everybody is A
	later map[string]bool // "a/b": a does not know b yet
	watch watcher         // nil: nobody
	votes Config          // Quorum and what belongs to it
	voter string          // the witness
	cutAt int             // the connection is lost in place of so many messages later; 0: none
}

type wnode struct {
	name    string
	m       *Machine
	durable Stored
	bitmaps map[PeerID]*bitmap.Set // as on disk
	active  map[int64]bool         // activity map on disk
	queues  map[string][]wframe    // frames to each peer
	up      bool
	noMeta  bool // metadata commits are kept back
	local   []*Request
	policy  protocol.SplitPolicy
	asked   PeerID // of the last DoAskTarget
	token   uint64
	holdIO  bool // local I/O is kept back
	noSync  bool // syncs from here do not get on
	asleep  bool
	fences  map[PeerID]uint64 // tokens of DoFence
	fill    int64             // it goes ahead of peers under A that lag so many bytes behind; 0: never
	wdisk
}

// watcher is told what becomes of writes and blocks, by those who do it.
type watcher interface {
	wrote(x *wnode, off int64, tag any)
	answered(x *wnode, r *Request, err error)
	copied(from, to *wnode, off, n int64)
	synced(x, from *wnode)
}

type wframe struct {
	data *protocol.Data
	tag  any // of the request behind data
	ack  *protocol.Ack
	msg  protocol.Message

	reply *protocol.PeerReply // on the bulk stream, in reality
}

// newWorld makes brand-new replicas. A name that ends in ~A is a far node, the last one may
// end in + : the others do not know it yet.
func newWorld(mode protocol.Mode, names []string) *world {
	w := &world{nodes: map[string]*wnode{}, now: 1e9, mode: mode, size: 64 << 20, mute: map[string]bool{}, far: map[string]bool{}, later: map[string]bool{}}
	for _, n := range names {
		name, late := strings.CutSuffix(n, "+")
		name, far := strings.CutSuffix(name, "~A")
		w.far[name] = far
		for _, early := range w.names {
			w.later[early+"/"+name] = late
		}
		w.names = append(w.names, name)
	}
	names = w.names
	for _, n := range names {
		x := &wnode{name: n, durable: Stored{Disk: protocol.Inconsistent}, bitmaps: map[PeerID]*bitmap.Set{}, active: map[int64]bool{}, queues: map[string][]wframe{},
			wdisk: wdisk{fails: map[string]bool{}, rot: map[int64]bool{}, content: map[int64]wvalue{}}}
		w.nodes[n] = x
		for i := range w.peersOf(n) {
			x.bitmaps[PeerID(i)] = bitmap.NewSet(bitmap.Blocks(w.size))
		}
		w.boot(x)
	}
	return w
}

func (w *world) peersOf(n string) (list []PeerConfig) {
	for _, p := range w.names {
		if p != n && !w.later[n+"/"+p] {
			mode := w.mode
			if w.far[n] || w.far[p] {
				mode = protocol.ModeA
			}
			list = append(list, PeerConfig{Name: p, Mode: mode, Witness: p == w.voter})
		}
	}
	return list
}

// add makes x know one more replica.
func (w *world) add(x *wnode, name string) error {
	id := PeerID(len(x.m.peers))
	if err := x.m.AddPeer(w.now, PeerConfig{Name: name, Mode: w.mode}); err != nil {
		return err
	}
	delete(w.later, x.name+"/"+name)
	x.bitmaps[id] = bitmap.NewSet(bitmap.Blocks(w.size))
	return nil
}

func (w *world) id() uint64 { w.ids++; return w.ids }

// boot starts a node from what is durable.
func (w *world) boot(x *wnode) {
	cfg := Config{Self: x.name, Name: "crm", Size: w.size, Peers: w.peersOf(x.name), Rand: w.id,
		VolumeID:     func() protocol.VolumeID { return protocol.VolumeID{1} },
		WriteTimeout: 10e9, FlushInterval: 1e9, FlushBytes: 64 << 20, ActivityIdle: 30e9, HandshakeTime: 15e9,
		RetryMin: 1e8, RetryMax: 2e9, AskTime: 5e9, QueueBytes: 32 << 20, Policy: x.policy,
		NoData: x.noData, OnReadError: x.onRead, DiskTimeout: x.timeout}
	for i := range cfg.Peers {
		if x.fill > 0 {
			cfg.Peers[i].OnCongestion, cfg.Peers[i].Fill = CongestionPullAhead, x.fill
		}
	}
	cfg.Quorum, cfg.MinRedundancy, cfg.OnNoQuorum, cfg.Lease, cfg.Witness = w.votes.Quorum, w.votes.MinRedundancy, w.votes.OnNoQuorum, w.votes.Lease, x.name == w.voter
	cfg.Fencing = w.votes.Fencing
	st := x.durable
	st.Peers = nil
	for i, p := range cfg.Peers {
		slot := PeerSlot{Name: p.Name, Dirty: bitmap.NewSet(bitmap.Blocks(w.size))}
		if len(x.durable.Peers) > i {
			slot = x.durable.Peers[i]
			slot.Dirty = bitmap.NewSet(bitmap.Blocks(w.size))
		}
		copySet(slot.Dirty, x.bitmaps[PeerID(i)])
		st.Peers = append(st.Peers, slot)
	}
	act := bitmap.NewActivity(w.size)
	if !st.Clean {
		for e := range x.active {
			act.Load(e)
		}
	}
	x.m, x.up, x.local, x.holdIO = New(cfg, st, act, w.now), true, nil, false
	x.queues = map[string][]wframe{}
	x.fences = map[PeerID]uint64{}
	w.collect(x)
	w.commit(x)
}

func copySet(dst, src *bitmap.Set) {
	for from := int64(0); ; {
		start, n := src.Next(from, src.Blocks())
		if n == 0 {
			return
		}
		dst.Set(start, start+n)
		from = start + n
	}
}

func (x *wnode) peer(name string) PeerID {
	for _, p := range x.m.all {
		if p.name == name {
			return p.id
		}
	}
	panic("no peer " + name)
}

func (w *world) say(format string, args ...any) { fmt.Fprintf(&w.out, format+"\n", args...) }

// collect executes effects that need no waiting.
func (w *world) collect(x *wnode) {
	es := append([]Effect(nil), x.m.Effects()...)
	for _, e := range es {
		switch e.Kind {
		case DoLocal:
			x.local = append(x.local, e.Req)
		case DoSend:
			to := x.m.all[e.Peer].name
			f := wframe{msg: e.Msg}
			if e.Msg == nil {
				d := e.Data
				f.data = &d
				if e.Req != nil {
					f.tag = e.Req.Tag
				}
			}
			x.queues[to] = append(x.queues[to], f)
		case DoComplete:
			if e.Req.Internal() {
				x.m.Finished(w.now, e.Req)
				w.collect(x)
				continue
			}
			w.say("%s: %s %d+%d: %s", x.name, e.Req.Op, e.Req.Off, e.Req.Len, okOr(e.Err))
			if w.watch != nil {
				w.watch.answered(x, e.Req, e.Err)
			}
		case DoDrop:
			to := x.m.all[e.Peer].name
			w.flushQueue(x, w.nodes[to]) // last words arrive
			w.unlink(w.nodes[to], x.name, fmt.Errorf("%s closed the connection", x.name))
		case DoReply:
			e.Reply(e.Err)
		case DoEvent:
			if from, ok := strings.CutPrefix(e.Event.Reason, "in sync with "); ok && w.watch != nil && e.Event.Field == "disk" {
				w.watch.synced(x, w.nodes[from])
			}
			if e.Event.Field != "peer-role" && e.Event.Field != "peer-disk" && e.Event.Field != "connection" {
				w.say("%s: %s %s -> %s%s", x.name, join2(e.Event.Peer, e.Event.Field), w.name(e.Event.Old), w.name(e.Event.New), reason(e.Event.Reason))
			}
		case DoArchive:
			w.say("%s: archives %s", x.name, w.discard(e.Discard))
			x.archived = e.Discard
			x.m.Archived(w.now, e.Peer, e.Discard, nil)
			w.collect(x)
		case DoAskTarget:
			w.say("%s: may %s overwrite it?", x.name, x.m.all[e.Peer].name)
			x.asked, x.token = e.Peer, e.Token
		case DoArchiveEnd:
			w.say("%s: archive of %s ends", x.name, w.name(e.Discard.Lost.String()))
		case DoFence:
			w.say("%s: fence-peer %s", x.name, x.m.all[e.Peer].name)
			x.fences[e.Peer] = e.Token
		case DoSettle:
			x.m.StoreSettled(w.now)
			w.collect(x)
		case DoServe:
			w.serve(x, &e)
		case DoSync:
			if x.dropSync {
				x.dropSync, x.dropped = false, x.m.all[e.Peer].plan
			}
		case DoConnect, DoPersist, DoResume:
		}
	}
}

func reason(s string) string {
	if s == "" {
		return ""
	}
	return " (" + s + ")"
}

func join2(a, b string) string {
	if a == "" {
		return b
	}
	return a + " " + b
}

// name shortens a generation's sixteen digits.
func (w *world) name(s string) string {
	if len(s) == 16 && strings.HasPrefix(s, "00000") {
		return "g" + strings.TrimLeft(s, "0")
	}
	return s
}

func okOr(err error) string {
	if err == nil {
		return "ok"
	}
	return err.Error()
}

func (w *world) commit(x *wnode) bool {
	if x.noMeta {
		return false
	}
	b, ok := x.m.MetaBatch()
	if !ok {
		return false
	}
	if b.Super != nil {
		x.durable = *b.Super
	}
	for _, p := range b.Bitmaps {
		if err := x.bitmaps[p.Peer].LoadPage(p.Page, p.Data); err != nil {
			panic(err)
		}
	}
	for _, p := range b.Activity {
		for i := range int64(len(p.Data) * 8) {
			if e := p.Index*int64(len(p.Data)*8) + i; p.Data[i/8]>>(i%8)&1 == 1 {
				x.active[e] = true
			} else {
				delete(x.active, e)
			}
		}
	}
	x.m.MetaDone(w.now, b.Version, b, nil)
	w.collect(x)
	return true
}

func (w *world) link(a, b string) {
	x, y := w.nodes[a], w.nodes[b]
	for _, e := range [][2]*wnode{{x, y}, {y, x}} {
		if err := e[0].m.Linked(w.now, e[0].peer(e[1].name)); err != nil {
			w.say("%s refuses the link: %s", e[0].name, err)
			w.collect(e[0])
			w.unlink(x, b, err)
			w.unlink(y, a, err)
			return
		}
		w.collect(e[0])
	}
}

func (w *world) unlink(x *wnode, peer string, cause error) {
	if !x.up || !x.m.all[x.peer(peer)].linked {
		return
	}
	x.m.Lost(w.now, x.peer(peer), cause)
	delete(x.queues, peer)
	w.collect(x)
}

func (w *world) cut(a, b string) {
	delete(w.nodes[a].queues, b)
	delete(w.nodes[b].queues, a)
	w.unlink(w.nodes[a], b, fmt.Errorf("link lost"))
	w.unlink(w.nodes[b], a, fmt.Errorf("link lost"))
}

func (w *world) crash(name string) {
	x := w.nodes[name]
	x.up = false
	for _, p := range w.names {
		if p != name {
			delete(w.nodes[p].queues, name)
			w.unlink(w.nodes[p], name, fmt.Errorf("%s is dead", name))
		}
	}
}

// flushQueue delivers what x has sent to y.
func (w *world) flushQueue(x, y *wnode) bool {
	moved := false
	for len(x.queues[y.name]) > 0 && y.up && !y.asleep && !w.mute[x.name+">"+y.name] {
		if y.m.Held(y.peer(x.name)) {
			if !w.commit(y) {
				break
			}
			continue
		}
		f := x.queues[y.name][0]
		if f.msg != nil && w.cutAt > 0 {
			if w.cutAt--; w.cutAt == 0 {
				w.say("lost: %v from %s to %s", f.msg.Type(), x.name, y.name)
				w.cut(x.name, y.name)
				return true
			}
		}
		x.queues[y.name] = x.queues[y.name][1:]
		w.receive(y, x.name, f)
		moved = true
	}
	return moved
}

func (w *world) receive(y *wnode, from string, f wframe) {
	id := y.peer(from)
	if !y.m.all[id].linked {
		return
	}
	switch {
	case f.data != nil:
		_, err := y.m.PeerData(w.now, id, f.data)
		w.collect(y)
		if err != nil {
			return
		}
		if f.data.Op != protocol.DataFlush {
			y.wrote(w.nodes[from], f.data.Seq, f.data.Off, f.data.Len)
		}
		if w.watch != nil && f.data.Op == protocol.DataWrite {
			w.watch.wrote(y, f.data.Off, f.tag)
		}
		w.applied(y, id, f.data)
		a := y.m.AckFor(id)
		y.queues[from] = append(y.queues[from], wframe{ack: &a})
	case f.ack != nil:
		y.m.Acked(w.now, id, *f.ack)
	case f.reply != nil:
		y.m.FarRead(id, f.reply)
		y.m.FarReadDone(w.now, id, f.reply)
	default:
		y.m.Receive(w.now, id, f.msg)
	}
	w.collect(y)
}

// sync runs the plans of x to their ends.
func (w *world) sync(x *wnode) bool {
	moved := false
	for _, p := range x.m.all {
		for p.plan != nil && p.plan != x.dropped {
			plan := p.plan
			st := plan.Step(w.now, x.m.Free(p.id))
			if st.Kind == resync.StepWait {
				break
			}
			moved = true
			switch st.Kind {
			case resync.StepDone:
				x.m.PlanDone(w.now, p.id)
			case resync.StepRun:
				w.runs(x, p, st.Run)
			case resync.StepFlush:
				plan.Flushed(st.Flush)
				x.m.PlanProgressed(w.now, p.id)
			case resync.StepData, resync.StepWait:
				panic("a run that is not plain")
			}
			w.collect(x)
			if st.Kind == resync.StepDone {
				break
			}
		}
	}
	return moved
}

// run delivers and executes until nothing moves.
func (w *world) run() {
	for range 10000 {
		moved := false
		for _, n := range w.names {
			x := w.nodes[n]
			if !x.up || x.asleep {
				continue
			}
			for len(x.local) > 0 && !x.holdIO {
				r := x.local[0]
				x.local = x.local[1:]
				if w.watch != nil && r.Op == Write {
					w.watch.wrote(x, r.Off, r.Tag)
				}
				err := x.wdisk.err(r.Op)
				if err == nil && (r.Op == Write || r.Op == Zero || r.Op == Trim) {
					x.wrote(x, r.seq, r.Off, r.Len)
				}
				x.m.LocalDone(w.now, r, err, err != nil && err != errWorldSpace)
				w.collect(x)
				moved = true
			}
			moved = w.commit(x) || moved
			moved = !x.noSync && w.sync(x) || moved
			for _, p := range w.names {
				if p != n {
					moved = w.flushQueue(x, w.nodes[p]) || moved
				}
			}
		}
		if !moved {
			return
		}
	}
	panic("the world does not come to rest")
}

func (w *world) status(names ...string) {
	if len(names) == 0 {
		names = w.names
	}
	for _, n := range names {
		x := w.nodes[n]
		if !x.up {
			w.say("%s: down", n)
			continue
		}
		m := x.m
		var hist []string
		for _, h := range m.history {
			hist = append(hist, w.name(h.String()))
		}
		sort.Strings(hist)
		w.say("%s: %s %s current=%s history=%v", n, m.role, m.disk, w.name(m.current.String()), hist)
		for _, p := range m.all {
			w.say("  %s: %s %s %s/%s slot=%s dirty=%d%s", p.name, p.conn, p.repl, p.role, p.disk, w.name(p.slot.String()), p.dirty.Count(), why(p))
		}
	}
}

func why(p *peer) string {
	if p.conn == protocol.Standalone {
		return "\n    " + p.reason
	}
	return ""
}

func (w *world) discard(d *Discard) string {
	s := fmt.Sprintf("%s, given up for %s (%s)", w.name(d.Lost.String()), w.name(d.Kept.String()), d.Reason)
	for _, f := range []struct {
		on   bool
		text string
	}{{d.Diverged, "diverged"}, {d.Full, "full"}, {d.Resumed, "resumed"}} {
		if f.on {
			s += " " + f.text
		}
	}
	return s
}

// setQuorum gives every node the same settings, and starts all anew.
func (w *world) setQuorum(words []string) {
	w.votes = Config{Lease: 4e9, Quorum: Quorum{Kind: QuorumMajority}}
	if words[0] == "all" {
		w.votes.Quorum.Kind = QuorumAll
	}
	for i, word := range words[1:] {
		switch word {
		case "io-error":
			w.votes.OnNoQuorum = NoQuorumError
		case "redundancy":
			w.votes.MinRedundancy = Quorum{Kind: QuorumCount, Count: int(words[i+2][0] - '0')}
		default:
			if w.nodes[word] != nil {
				w.voter = word
			}
		}
	}
	for _, n := range w.names {
		w.boot(w.nodes[n])
	}
}
