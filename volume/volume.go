package volume

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
	"github.com/qrbd/qrbd/volume/meta"
)

// Volume is a running volume: a blockdev.Submitter for frontends, Control for
// operators, and the executor of its replica.Machine. Safe for concurrent use.
type Volume struct {
	opt         Options
	log         *slog.Logger
	size        int64
	disk        atomic.Pointer[localDisk] // replaced by ReplaceDisk only
	tuned       atomic.Pointer[Tuning]    // what Tune last set, or Open
	peerList    atomic.Pointer[[]PeerConfig]
	meter       *Meter
	bulkTimeout time.Duration

	flushTook atomic.Int64 // ns, running mean of the store's flushes; 0: none yet

	mu sync.Mutex // guards what follows; never held across I/O or callbacks
	m  *replica.Machine
	// links holds each peer's live connection, nil where there is none.
	links  []*link
	events []Event
	unsaid int // events that were dropped from events
	closed bool

	archiveJobs []archiveJob     // the first is being done
	restoring   atomic.Bool      // RestoreArchive is under way
	archiving   *replica.Discard // the last that began

	regions   *regions
	kept      *meta.Super // as the metadata file has it; the committer's
	begun     time.Time
	gone      chan struct{} // closed when Close is done
	applying  []*link       // the last link to each peer that was let at the store
	lateDone  chan struct{} // closed and made anew when a lost link has left the store
	settling  bool          // the machine waits for StoreSettled
	work      *workQueue
	pulled    map[*replica.Request]pulled // what a refill writes next
	stuck     int                         // requests that are answered and still with a store that does not answer
	replacing bool                        // the disk: nothing is committed
	journal   chan struct{}               // wakes the metadata committer; capacity 1
	tell      chan struct{}               // wakes the event teller; capacity 1
	stop      chan struct{}               // closed when the volume ends
	fenceEnd  chan struct{}               // closed when it begins to: no hook is waited for any more
	ended     sync.WaitGroup
	fast      sync.WaitGroup // links
}

const (
	workers   = 16
	tickEvery = 100 * time.Millisecond
	// inlineMax is the largest local write executed by the submitting goroutine:
	// copying 64 KiB into the page cache costs less than two goroutine switches.
	inlineMax = 64 << 10
)

var (
	_ blockdev.Submitter = (*Volume)(nil)
	_ Control            = (*Volume)(nil)
)

// Open starts a volume. It owns o.Store and o.Meta from then on, also when it
// fails. On return the metadata says that the volume is in use.
func Open(o Options) (*Volume, error) {
	v := &Volume{opt: o, log: o.Log, size: o.Size, work: newWorkQueue(), begun: time.Now(), bulkTimeout: bulkTimeout, gone: make(chan struct{}), lateDone: make(chan struct{}), pulled: map[*replica.Request]pulled{},
		journal: make(chan struct{}, 1), tell: make(chan struct{}, 1), stop: make(chan struct{}), fenceEnd: make(chan struct{})}
	if v.size == 0 {
		v.size = o.Store.Size()
	}
	if v.meter = o.Meter; v.meter == nil {
		v.meter = NewMeter()
	}
	t := o.Tuning().withDefaults()
	v.tuned.Store(&t)
	v.peerList.Store(&v.opt.Peers)
	v.setDisk(o.Store, o.Meta)
	if err := v.start(); err != nil {
		return nil, errors.Join(err, o.Archives.Close(), o.Store.Close(), o.Meta.Close())
	}
	return v, nil
}

func (v *Volume) start() error {
	cfg := v.machineConfig()
	if len(cfg.Peers) > protocol.PeersMax {
		return fmt.Errorf("volume %s has %d peers, at most %d are possible", v.opt.Name, len(cfg.Peers), protocol.PeersMax)
	}
	st, err := v.stored(cfg.Peers)
	if err != nil {
		return err
	}
	activity := v.opt.State.Activity
	if st.Clean {
		activity = bitmap.NewActivity(v.size)
	}
	v.settleArchive(&st)
	v.m = replica.New(cfg, st, activity, v.now())
	v.links = make([]*link, len(cfg.Peers))
	v.applying = make([]*link, len(cfg.Peers))
	v.m.Effects() // DoPersist: done here, so that nothing is served before it
	for {
		b, ok := v.m.MetaBatch()
		if !ok {
			break
		}
		if err := v.write(b, v.regions); err != nil {
			return fmt.Errorf("metadata of volume %s: %w", v.opt.Name, err)
		}
		v.m.MetaDone(v.now(), b.Version, b, nil)
	}
	v.ended.Add(workers + 3)
	for range workers {
		go v.worker()
	}
	go v.journalLoop()
	go v.tickLoop()
	go v.tellLoop()
	return nil
}

func (v *Volume) machineConfig() replica.Config {
	o := &v.opt
	t := v.tuned.Load().machine()
	cfg := replica.Config{Self: o.Self, Name: o.Name, Size: v.size, Rand: randomID, VolumeID: randomVolume,
		WriteTimeout:  t.WriteTimeout,
		FlushInterval: t.FlushInterval,
		FlushBytes:    t.FlushBytes,
		ActivityIdle:  t.ActivityIdle,
		HandshakeTime: int64(15 * time.Second),
		RetryMin:      int64(100 * time.Millisecond),
		RetryMax:      int64(2 * time.Second),
		AskTime:       int64(5 * time.Second),
		QueueBytes:    32 << 20,
		NoData:        t.NoData,
		OnReadError:   t.OnReadError,
		DiskTimeout:   t.DiskTimeout,
		Sync:          t.Sync,
		Policy:        t.Policy,
		AskTarget:     t.AskTarget,
		Quorum:        o.Quorum, MinRedundancy: o.MinRedundancy, OnNoQuorum: o.OnNoQuorum, Lease: int64(o.Lease), Witness: o.Witness,
		Fencing: o.Fencing,
	}
	if cfg.FlushBytes == 0 {
		cfg.FlushBytes = 64 << 20
	}
	cfg.Confirmed = v.confirmed
	cfg.Policy, cfg.AskTarget = o.AfterSB, o.MayResync != nil
	for _, p := range o.Peers {
		cfg.Peers = append(cfg.Peers, p.machine())
	}
	return cfg
}

// now is the wall clock as it was at Open, and runs evenly from there: a clock that
// is set must not end or extend every wait.
func (v *Volume) now() replica.Time { return v.begun.UnixNano() + int64(time.Since(v.begun)) }

func randomID() uint64 {
	var b [8]byte
	for {
		rand.Read(b[:])
		if n := binary.LittleEndian.Uint64(b[:]); n != 0 {
			return n
		}
	}
}

func randomVolume() (id protocol.VolumeID) {
	rand.Read(id[:])
	return id
}

// Size implements blockdev.Submitter.
func (v *Volume) Size() int64 { return v.size }

// Extents implements blockdev.Submitter.
func (v *Volume) Extents(off, n int64, limit int) ([]blockdev.Extent, error) {
	if err := blockdev.CheckRange(v.size, off, n); err != nil {
		return nil, err
	}
	v.mu.Lock()
	here := v.m.LocalReadable(off, n)
	v.mu.Unlock()
	if !here {
		return []blockdev.Extent{{Off: off, Len: n}}, nil // what a peer has there is not known
	}
	return v.store().Extents(off, n, limit)
}

func (v *Volume) tickLoop() {
	defer v.ended.Done()
	t := time.NewTicker(tickEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			v.mu.Lock()
			v.m.Tick(v.now())
			v.unlockAndRun()
			v.dropStalled()
			v.checkStore()
		case <-v.stop:
			return
		}
	}
}

// unlockAndRun releases v.mu, which the caller holds, and executes what the
// machine asked for meanwhile. It does not wait for the store.
func (v *Volume) unlockAndRun() {
	b := v.take()
	v.mu.Unlock()
	if b != nil {
		v.run(b, false)
	}
}

// unlockAndWork is unlockAndRun for a goroutine that may wait for the store: small
// writes are executed on the spot.
func (v *Volume) unlockAndWork() {
	b := v.take()
	v.mu.Unlock()
	if b != nil {
		v.run(b, true)
	}
}

// batch of effects that are executed without the lock.
type effects struct {
	list  []replica.Effect
	links []*link // have new frames
}

var effectsPool = sync.Pool{New: func() any { return new(effects) }}

// take sorts the machine's effects: frames go into the peers' queues at once, in
// order; the rest is returned. REQUIRES v.mu.
func (v *Volume) take() *effects {
	es := v.m.Effects()
	if len(es) == 0 {
		return nil
	}
	var b *effects
	for i := range es {
		e := &es[i]
		switch e.Kind {
		case replica.DoSend:
			if l := v.links[e.Peer]; l != nil && l.enqueue(e) {
				if b == nil {
					b = effectsPool.Get().(*effects)
				}
				b.links = append(b.links, l)
			}
		case replica.DoDrop:
			if l := v.links[e.Peer]; l != nil {
				v.links[e.Peer] = nil
				l.finish(e.Err)
			}
		case replica.DoResume:
			if l := v.links[e.Peer]; l != nil {
				kick(l.resume)
			}
		case replica.DoServe:
			if l := v.links[e.Peer]; l != nil {
				l.toServe(e)
			}
		case replica.DoPersist:
			kick(v.journal)
		case replica.DoEvent:
			v.note(e.Event)
		case replica.DoArchive, replica.DoArchiveEnd:
			v.archiveLater(archiveJob{e.Peer, e.Discard, e.Kind == replica.DoArchive})
		case replica.DoLocal, replica.DoComplete, replica.DoConnect, replica.DoSync, replica.DoReply, replica.DoAskTarget, replica.DoFence, replica.DoSettle:
			if b == nil {
				b = effectsPool.Get().(*effects)
			}
			b.list = append(b.list, *e)
		}
		*e = replica.Effect{}
	}
	return b
}

// run executes effects. The local part of a request may be done on the spot and
// lead to more.
func (v *Volume) run(b *effects, here bool) {
	for i, l := range b.links { // first: the peer's disk works beside ours
		l.pushNow()
		b.links[i] = nil
	}
	b.links = b.links[:0]
	for i := range b.list {
		e := &b.list[i]
		switch e.Kind {
		case replica.DoLocal:
			v.local(e.Req, here)
		case replica.DoComplete:
			v.complete(e.Req, e.Err)
		case replica.DoConnect:
			if v.opt.AskConnect != nil {
				v.opt.AskConnect(v.peers()[e.Peer].Name)
			}
		case replica.DoSync:
			v.startSync(e.Peer)
		case replica.DoReply:
			e.Reply(e.Err)
		case replica.DoAskTarget:
			v.askTarget(e.Peer, e.Token, e.Discard)
		case replica.DoFence:
			v.fence(e.Peer, e.Token)
		case replica.DoSettle:
			v.mu.Lock()
			v.settling = true
			v.settled()
			v.unlockAndRun()
		default:
			panic(fmt.Sprintf("volume: effect %d after the lock", e.Kind))
		}
		*e = replica.Effect{}
	}
	b.list = b.list[:0]
	effectsPool.Put(b)
}

func kick(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// eventsMax bounds the events that wait to be told; a teller that is stuck loses
// the oldest, and is told so.
const eventsMax = 4096

// EventsLost is the Field of an event that says that others before it were dropped.
const EventsLost = "events-lost"

// note queues an event. REQUIRES v.mu.
func (v *Volume) note(e replica.Event) {
	if len(v.events) == eventsMax {
		v.events = v.events[1:]
		v.unsaid++
	}
	v.events = append(v.events, Event{Time: time.Now(), Volume: v.opt.Name, Peer: e.Peer, Field: e.Field, Old: e.Old, New: e.New, Reason: e.Reason})
	kick(v.tell)
}

// tellLoop hands events on, in order; without a watcher it logs them.
func (v *Volume) tellLoop() {
	defer v.ended.Done()
	for {
		select {
		case <-v.tell:
			v.tellAll()
		case <-v.stop:
			v.tellAll()
			return
		}
	}
}

func (v *Volume) tellAll() {
	v.mu.Lock()
	list, unsaid := v.events, v.unsaid
	v.events, v.unsaid = nil, 0
	v.mu.Unlock()
	if unsaid > 0 {
		lost := Event{Time: time.Now(), Volume: v.opt.Name, Field: EventsLost, New: strconv.Itoa(unsaid), Reason: "whoever is told of events was too slow"}
		list = append([]Event{lost}, list...)
	}
	for _, e := range list {
		attrs := []any{"field", e.Field, "old", e.Old, "new", e.New}
		if e.Peer != "" {
			attrs = append(attrs, "peer", e.Peer)
		}
		if e.Reason != "" {
			attrs = append(attrs, "reason", e.Reason)
		}
		v.log.Info("state change", attrs...)
		if v.opt.OnEvent != nil {
			v.opt.OnEvent(e)
		}
	}
}

// Close implements Control. A second Close waits for the first.
func (v *Volume) Close(ctx context.Context) error {
	v.mu.Lock()
	if v.closed {
		v.mu.Unlock()
		return within(ctx, func() { <-v.gone })
	}
	v.closed = true
	close(v.fenceEnd)
	v.mu.Unlock()
	err := v.settleDown(ctx)
	v.mu.Lock()
	v.m.Stop(v.now())
	v.m.Abandon(v.now())
	v.unlockAndRun()
	v.end(false)
	var closing error
	// What hangs in the store or the metadata file cannot be ended from here; the
	// files are closed when it comes back.
	short, cancel := context.WithTimeout(context.WithoutCancel(ctx), lingerTime+time.Second)
	defer cancel()
	hung := within(short, func() {
		v.fast.Wait()
		v.ended.Wait()
		closing = errors.Join(v.opt.Archives.Close(), v.disk.Load().close())
		close(v.gone)
	})
	if hung != nil {
		return errors.Join(err, fmt.Errorf("close volume %s: its backing store or metadata does not answer: %w", v.opt.Name, hung))
	}
	return errors.Join(err, closing)
}

// end stops the volume's goroutines, the links' at once or after their last words.
func (v *Volume) end(atOnce bool) {
	close(v.stop)
	rest := v.work.close()
	v.mu.Lock()
	for i, l := range v.links {
		if l == nil {
			continue
		}
		v.links[i] = nil
		if atOnce {
			go l.abort()
		} else {
			l.finish(nil)
		}
	}
	v.mu.Unlock()
	for _, o := range rest {
		if !atOnce {
			v.localDone(o.request(), blockdev.ErrShutdown)
		}
	}
}

// within runs fn and waits for it or for ctx, whose error it returns; fn then goes
// on by itself.
func within(ctx context.Context, fn func()) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// settleDown drains, steps down, says goodbye, flushes and leaves the metadata
// marked clean. An error means that the next start will see a crash: nothing is
// lost by that.
func (v *Volume) settleDown(ctx context.Context) error {
	if err := v.Demote(ctx); err != nil {
		return fmt.Errorf("close volume %s: %w", v.opt.Name, err)
	}
	if v.opt.Quorum.Kind != QuorumOff {
		if err := v.operate(ctx, func(done func(error)) { v.m.Leave(v.now(), done) }); err != nil {
			return fmt.Errorf("close volume %s: %w", v.opt.Name, err)
		}
	}
	v.mu.Lock()
	v.m.Stop(v.now())
	v.unlockAndRun()
	flushed := make(chan error, 1)
	if err := within(ctx, func() {
		v.fast.Wait() // nothing is applied for a peer any more
		flushed <- v.store().Flush()
	}); err != nil {
		return fmt.Errorf("close volume %s: %w", v.opt.Name, err)
	}
	if err := <-flushed; err != nil {
		return fmt.Errorf("close volume %s: %w", v.opt.Name, err)
	}
	v.mu.Lock()
	v.m.MarkClean(v.now())
	v.unlockAndRun()
	return v.awaitMeta(ctx)
}

// awaitMeta waits until nothing is left to be made durable.
func (v *Volume) awaitMeta(ctx context.Context) error {
	for {
		v.mu.Lock()
		done := v.m.MetaSettled()
		v.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// halt ends the volume as a killed process would: nothing is drained, flushed,
// marked or answered. For tests of crashes in one process.
func (v *Volume) halt() {
	v.mu.Lock()
	if v.closed {
		v.mu.Unlock()
		return
	}
	v.closed = true
	close(v.fenceEnd)
	v.mu.Unlock()
	v.end(true)
	v.fast.Wait()
	v.ended.Wait()
}
