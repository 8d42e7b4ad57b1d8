package agent

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/agent/hook"
	"github.com/qrbd/qrbd/agent/metrics"
	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/compress"
	"github.com/qrbd/qrbd/volume"
	"github.com/qrbd/qrbd/volume/meta"
)

// DrainTimeout bounds stopping: what is in flight then is dropped, as a crash
// would.
const DrainTimeout = 30 * time.Second

// lastTimeout bounds what follows draining: saying goodbye to peers, and ending
// the control server's calls.
const lastTimeout = 2 * time.Second

// Buffer bounds, bytes. Together with the bitmaps and what the session layer
// keeps they are most of an agent's memory.
const (
	clientPoolBytes = 64 << 20 // payloads of NBD requests
	peerPoolBytes   = 64 << 20 // payloads from peers
	// compressedMax payloads are compressed at once, and as many expanded: some 300 MB/s and
	// 1.5 MiB of memory for each. More than one, also on few CPUs, so that a write does not
	// wait for a resync's.
	compressedMax = 4
)

// Options are what an agent runs with.
type Options struct {
	Config  *config.Config // required
	Log     *slog.Logger   // required
	Version string         // shown in status

	// OpenStore opens a backing store; nil: blockdev.Open. Tests put a store
	// under the agent that forgets what was not flushed.
	OpenStore func(path string) (blockdev.Device, error)
	// OpenMeta opens the storage of a metadata file; nil: meta.OpenStorage.
	OpenMeta func(path string) (meta.Storage, error)

	// OnEvent is called, besides what the agent does itself, for every state
	// change, in order. It must not block. nil: ignored.
	OnEvent func(volume.Event)

	// Tests replace the real thing; nil: openVolume, startNetwork.
	openVolume func(*Agent, *slot) (running, error)
	network    func(*Agent) (network, error)
}

// Agent is a running node.
type Agent struct {
	cfg    *config.Config
	opt    Options
	log    *slog.Logger
	events *control.Ring

	lock *stateLock
	// config is what the configuration says as far as it holds here: Reload changes it.
	config     atomic.Pointer[config.Config]
	slotList   atomic.Pointer[[]*slot] // by configuration; it only grows
	doorList   atomic.Pointer[[]*door] // set before ready is closed; it only grows
	reloading  sync.Mutex
	attachDoor *attachDoor // nil: none; set before ready is closed
	locked     sync.Once   // this process's memory, when something is attached
	ready      chan struct{}
	clientPool *blockdev.Pool
	peerPool   *blockdev.Pool
	zstd       *compress.Zstd // of all volumes
	links      *links
	hooks      *hook.Runner
	net        network
	control    *control.Server
	metrics    *metrics.Server // nil: not configured
	reaches    reaches

	// Set by startNetwork, before anybody is answered.
	identitySince   time.Time
	certificateEnds time.Time

	// ctx ends when the agent stops; spawned counts what spawn started.
	ctx    context.Context
	cancel context.CancelFunc

	spawnMu sync.Mutex
	// Guarded by spawnMu.
	stopping bool
	spawned  sync.WaitGroup
}

// sendBuffers returns what may wait for peers under protocol A, beside what clients have
// under way: a payload takes up to twice its size.
func sendBuffers(c *config.Config) int64 {
	sum := int64(0)
	for i := range c.Volumes {
		sum += 2 * c.Volumes[i].SendBuffers()
	}
	return sum
}

// Start runs a node until Close. A volume that cannot be opened does not keep it
// from starting; a lock that is held, an address that is taken or an identity
// that cannot be read does.
func Start(o Options) (*Agent, error) {
	o = o.withDefaults()
	a := &Agent{
		cfg:        o.Config,
		opt:        o,
		log:        o.Log,
		events:     control.NewRing(0),
		clientPool: blockdev.NewPool(clientPoolBytes + sendBuffers(o.Config)),
		peerPool:   blockdev.NewPool(peerPoolBytes),
		zstd:       compress.New(compressedMax),
		ready:      make(chan struct{}),
	}
	a.config.Store(o.Config)
	a.slotList.Store(new([]*slot))
	a.doorList.Store(new([]*door))
	a.ctx, a.cancel = context.WithCancel(context.Background())
	a.reaches.waiting, a.reaches.busy = map[uint64]chan protocol.ReachAnswer{}, map[string]bool{}
	a.links = newLinks(a)
	a.hooks = hook.NewRunner(a.log)
	if err := a.start(); err != nil {
		ctx, cancel := context.WithTimeout(context.Background(), DrainTimeout)
		defer cancel()
		return nil, errors.Join(err, a.Close(ctx))
	}
	return a, nil
}

func (o Options) withDefaults() Options {
	if o.Config == nil || o.Log == nil {
		panic("agent: Options.Config and Options.Log are required")
	}
	if o.OpenStore == nil {
		o.OpenStore = func(path string) (blockdev.Device, error) { return blockdev.Open(path) }
	}
	if o.OpenMeta == nil {
		o.OpenMeta = meta.OpenStorage
	}
	if o.openVolume == nil {
		o.openVolume = openVolume
	}
	if o.network == nil {
		o.network = startNetwork
	}
	return o
}

// start opens everything, outward last: nobody is answered before the volumes
// are open.
func (a *Agent) start() (err error) {
	if err := a.cfg.CheckHooks(); err != nil {
		return err
	}
	if a.lock, err = lockState(a.cfg.Node.State); err != nil {
		return err
	}
	var slots []*slot
	for _, v := range a.cfg.Volumes {
		slots = append(slots, a.newSlot(v))
	}
	a.slotList.Store(&slots)
	a.openAll()
	doors, err := openDoors(slots, a.clientPool, a.log)
	if err != nil {
		return err
	}
	a.doorList.Store(&doors)
	a.recallServices() // before a helper can ask
	a.openAttachDoor(a.clientPool)
	a.spawn(a.tendKernel)
	close(a.ready)
	if a.net, err = a.opt.network(a); err != nil {
		return err
	}
	for _, s := range slots {
		a.spawn(func(ctx context.Context) { a.runSchedule(ctx, s) })
		a.spawn(s.failover.sup.Run)
		a.spawn(s.failover.arbitrate)
	}
	if a.metrics, err = a.startMetrics(); err != nil {
		return err
	}
	a.tellAgent("", "started")
	n := &a.cfg.Node
	access := control.Access{Owner: control.Account(n.ControlOwner), Group: control.Account(n.ControlGroup), Readers: control.Account(n.ControlReaders)}
	a.control, err = control.Listen(n.Control, access, a, a.events, a.log)
	return err
}

func (a *Agent) newSlot(v config.Volume) *slot {
	verify, err := newVerifier(v.Name, v.Size, a.cfg.VerifyPath(v.Name))
	if err != nil {
		a.log.Warn("the records of verifies are not used", "volume", v.Name, "err", err)
	}
	s := newSlot(v, verify)
	s.failover = a.newService(s)
	return s
}

// slots returns the configured volumes. The list does not change; Reload makes another.
func (a *Agent) slots() []*slot { return *a.slotList.Load() }

// doors returns the exports, likewise.
func (a *Agent) doors() []*door { return *a.doorList.Load() }

// openAll opens the volumes side by side: each reads its own files.
func (a *Agent) openAll() {
	var wg sync.WaitGroup
	for _, s := range a.slots() {
		wg.Go(func() { a.open(s) })
	}
	wg.Wait()
}

// open opens a slot's volume. A failure is the slot's reason.
func (a *Agent) open(s *slot) {
	vol, err := a.opt.openVolume(a, s)
	switch {
	case errors.Is(err, errNotCreated):
		a.log.Info("the volume is not created yet", "volume", s.cfg.Name)
	case err != nil:
		a.log.Error("the volume cannot be opened", "volume", s.cfg.Name, "err", err)
	default:
		a.log.Info("volume opened", "volume", s.cfg.Name, "disk", vol.Status().Disk)
	}
	a.put(s, vol, err)
}

// openLinked opens a slot's volume while the agent runs, and connects it to its
// peers. It returns why it could not be opened.
func (a *Agent) openLinked(s *slot) error {
	a.open(s)
	if _, err := s.opened(); err != nil {
		return err
	}
	a.links.volumeOpened(s)
	return nil
}

// slot returns the slot of that name, or nil.
func (a *Agent) slot(name string) *slot {
	for _, s := range a.slots() {
		if s.cfg.Name == name {
			return s
		}
	}
	return nil
}

// spawn runs f in a goroutine that Close waits for; its ctx ends when the agent
// stops. An agent that is stopping starts nothing.
func (a *Agent) spawn(f func(ctx context.Context)) { a.spawnOr(f, func() {}) }

// spawnOr is spawn, with what to do instead when the agent is stopping.
func (a *Agent) spawnOr(f func(ctx context.Context), instead func()) {
	a.spawnMu.Lock()
	stopping := a.stopping
	if !stopping {
		a.spawned.Go(func() { f(a.ctx) })
	}
	a.spawnMu.Unlock()
	if stopping {
		instead()
	}
}

func (a *Agent) isStopping() bool {
	a.spawnMu.Lock()
	defer a.spawnMu.Unlock()
	return a.stopping
}

// Close stops the node: clients' requests in flight are answered, volumes drain,
// flush and say goodbye to their peers. When ctx ends first the rest is dropped,
// as in a crash. It returns when every goroutine has ended.
func (a *Agent) Close(ctx context.Context) error {
	a.spawnMu.Lock()
	a.stopping = true
	a.spawnMu.Unlock()
	a.tellAgent("started", "stopping")
	var errs []error
	a.reloading.Lock() // what a reload has begun to open is closed too, and none begins
	defer a.reloading.Unlock()
	doors, slots := a.doors(), a.slots()
	each(len(doors)+1, func(i int) error {
		if i == len(doors) {
			return a.attachDoor.close(ctx)
		}
		return doors[i].close(ctx)
	}, &errs)
	each(len(slots), func(i int) error { return slots[i].close(ctx) }, &errs)
	a.cancel()
	// What is left has nothing to drain; it gets its time even when ctx is over.
	short, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastTimeout)
	defer cancel()
	if a.net != nil {
		errs = append(errs, a.net.Close(short))
	}
	a.links.close()
	errs = append(errs, a.hooks.Close(short))
	if a.control != nil {
		errs = append(errs, a.control.Close(short))
	}
	if a.metrics != nil {
		errs = append(errs, a.metrics.Close(short))
	}
	a.spawned.Wait()
	if a.lock != nil {
		errs = append(errs, a.lock.release())
	}
	return errors.Join(errs...)
}

// each runs f for 0 to n-1 side by side and collects the errors.
func each(n int, f func(i int) error, errs *[]error) {
	all := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { all[i] = f(i) })
	}
	wg.Wait()
	*errs = append(*errs, all...)
}

func (s *slot) close(ctx context.Context) error {
	s.mu.Lock()
	vol := s.vol
	s.mu.Unlock()
	if vol == nil {
		return nil
	}
	if err := vol.Close(ctx); err != nil {
		return fmt.Errorf("closing volume %s: %w", s.cfg.Name, err)
	}
	return nil
}

// event is every volume's OnEvent. It does not block. The volume has logged e.
func (a *Agent) event(s *slot, e volume.Event) {
	a.events.Add(e)
	if e.Field == volume.EventsLost {
		a.tellStates(s)
	}
	a.fireHooks(s, e)
	a.attachedEvent(s, e)
	s.failover.sup.Poke(e.Peer == "" && e.Field == "role" && e.New != protocol.Primary.String())
	if e.Peer == "" && e.Field == "role" && e.New != "primary" {
		a.expel(s, "it is no longer primary")
	}
	if e.Field == "clients" { // a connection whose request is stuck in the disk is not served any more
		a.expel(s, "requests are stuck in its disk")
	}
	if a.opt.OnEvent != nil {
		a.opt.OnEvent(e)
	}
}

// random returns a random number that is not zero.
func random() uint64 {
	var b [8]byte
	for {
		rand.Read(b[:]) // never fails
		if n := binary.LittleEndian.Uint64(b[:]); n != 0 {
			return n
		}
	}
}
