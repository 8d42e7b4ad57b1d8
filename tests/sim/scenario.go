package sim

import (
	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
	"github.com/qrbd/qrbd/resync"
)

// threeFrom is the first of the seeds whose clusters all have three nodes.
const threeFrom = 2_000_000

// hangsFrom is the first of the seeds in whose clusters disks hang, and are given up.
const hangsFrom = 5_000_000

// restoresFrom is the first of the seeds whose operators put back what was given up.
const restoresFrom = 6_000_000

// growsFrom is the first of the seeds whose volumes grow.
const growsFrom = 10_000_000

// scenario is what a seed chooses before anything happens.
type scenario struct {
	size  int64   // that the volume has, or grows to
	sizes []int64 // that it has on the way there, of seeds from growsFrom
	count int     // of nodes
	modes [3]protocol.Mode
	// policies of each node for a split brain; they may differ by mistake
	policies [3]protocol.SplitPolicy
	ask      bool // a hook is asked before a resync
	honest   bool // --peer-fenced is only said when it is true
	windows  [][2]int64
	clients  int
	think    int64
	rest     bool // clients pause
	length   int64
	pace     int64   // between faults
	ambush   float64 // how many of them lie in wait (ambush.go)

	diskTime, metaTime int64
	metaFail           float64
	diskFail           float64
	badDisks           float64 // of all faults: of disks
	noData             replica.NoData
	onReadError        replica.OnReadError
	diskTimeout        int64 // 0: none
	netMin, netMax     int64
	byteTime           int64
	silence            int64 // a dead link is noticed within
	streamMax          int   // packets in a stream before the sender waits

	writeTimeout, flushInterval, activityIdle int64
	flushBytes, queueBytes                    int64
	ringMax, recentMax                        int // 0: as outside
	sync                                      resync.Options

	quorum        replica.Quorum // of seeds from quorumFrom
	minRedundancy replica.Quorum
	onNoQuorum    replica.OnNoQuorum
	lease         int64
	witness       bool
	fencing       replica.Fencing // of seeds from fencingFrom
	fenceBy       fenceBy
	lies          bool // hooks do

	archiveLimit  int64
	archiveAlways bool // also what nobody can rely on
	theme         theme
	pullAhead     bool  // primaries go ahead of peers under A (ahead.go)
	buffer, fill  int64 // of those
	restores      bool  // operators put back what was given up (restore.go)
}

// mode returns the protocol between two nodes.
func (sc *scenario) mode(a, b *node) protocol.Mode { return sc.modes[a.index+b.index-1] }

func (w *World) choose() {
	sc := &w.sc
	pick := func(v ...int64) int64 { return v[w.n(len(v))] }
	sc.count = 2
	if w.p(0.3) || w.seed >= threeFrom && w.seed < hangsFrom {
		sc.count = 3
	}
	sc.size = pick(5*bitmap.ExtentSize-7*bitmap.BlockSize+3*sectorSize, 5*bitmap.ExtentSize-7*bitmap.BlockSize+3*sectorSize,
		2*bitmap.ExtentSize, 65*bitmap.BlockSize, 9*bitmap.BlockSize+sectorSize)
	switch k := w.n(10); {
	case k < 5:
		sc.modes = [3]protocol.Mode{protocol.ModeC, protocol.ModeC, protocol.ModeC}
	case k < 6:
		sc.modes = [3]protocol.Mode{protocol.ModeA, protocol.ModeA, protocol.ModeA}
	case k < 7:
		sc.modes = [3]protocol.Mode{protocol.ModeB, protocol.ModeB, protocol.ModeB}
	default:
		for i := range sc.modes {
			sc.modes[i] = protocol.Mode(1 + w.n(3))
		}
	}
	sc.honest = w.p(0.75)
	w.choosePolicies()
	w.chooseHangs()
	w.windows()
	sc.clients = 1 + w.n(6)
	sc.think = pick(milli, 5*milli, 30*milli, 200*milli)
	sc.length = w.between(5*second, 40*second)
	sc.pace = pick(100*milli, 500*milli, 2*second, 5*second)
	sc.ambush = []float64{0, 0.3, 0.7}[w.n(3)]
	if w.p(0.02) { // generations go out of the history
		sc.length, sc.think, sc.clients = w.between(100*second, 300*second), 200*milli, 1
	}
	sc.diskTime = pick(100*micro, 500*micro, 5*milli)
	sc.metaTime = pick(200*micro, 2*milli, 20*milli)
	if w.p(0.1) {
		sc.metaFail = 0.002
	}
	if w.p(0.3) {
		sc.diskFail = []float64{0.1, 1}[w.n(2)]
	}
	if w.p(0.25) {
		sc.diskFail, sc.badDisks = 1, []float64{0.1, 0.3, 0.6}[w.n(3)]
		sc.metaFail = []float64{0, 0.002, 0.01}[w.n(3)]
	}
	if w.p(0.4) {
		sc.noData = replica.NoDataSuspend
	}
	if w.p(0.3) {
		sc.onReadError = replica.ReadDetach
	}
	sc.netMin = pick(50*micro, milli, 10*milli)
	sc.netMax = sc.netMin * pick(1, 2, 10)
	sc.byteTime = pick(1, 10, 100)
	sc.silence = pick(500*milli, 3*second, 6*second)
	sc.streamMax = int(pick(4, 64, 1000))
	sc.writeTimeout = pick(2*second, 3*second, 10*second)
	sc.flushInterval = pick(50*milli, 200*milli, second)
	sc.flushBytes = pick(64<<10, 1<<20, 64<<20)
	sc.activityIdle = pick(100*milli, 500*milli, 5*second)
	if w.p(0.2) { // rings that overflow
		sc.ringMax, sc.recentMax = 1+w.n(20), 1+w.n(20)
	}
	sc.queueBytes = pick(16<<10, 256<<10, 32<<20)
	sc.sync = resync.Options{WindowBytes: pick(8<<10, 1<<20, 8<<20), FlushBytes: pick(8<<10, 64<<10, 64<<20)}
	if sc.size > 1<<20 { // a verify of all must end
		sc.sync.WindowBytes = max(sc.sync.WindowBytes, 1<<20)
	}
	if w.p(0.3) {
		sc.sync.RateBytes = pick(200<<10, 2<<20, 20<<20)
	}
	sc.sync.FloorBytes = pick(1<<20, 8<<20)
	sc.archiveLimit = pick(0, 16<<10, 1<<20, 1<<40)
	sc.archiveAlways = w.p(0.3)
	if w.seed >= restoresFrom && w.seed < themesFrom {
		w.chooseRestores()
	}
	w.chooseTheme()
	w.chooseQuorum()
	w.chooseDrills()
	w.chooseFencing()
	w.chooseGrowth()
	w.chooseAhead()
	w.chooseSwitchovers()
}

// windows chooses where clients write: in every extent, over a border, at the end.
func (w *World) windows() {
	sc := &w.sc
	blocks := bitmap.Blocks(sc.size)
	for i := int64(0); i*bitmap.BlocksPerExtent < blocks; i++ {
		from := i*bitmap.BlocksPerExtent + int64(w.n(int(min(900, blocks-i*bitmap.BlocksPerExtent))))
		sc.windows = append(sc.windows, [2]int64{from, from + 2 + int64(w.n(20))})
	}
	if blocks > bitmap.BlocksPerExtent {
		sc.windows = append(sc.windows, [2]int64{bitmap.BlocksPerExtent - 2, bitmap.BlocksPerExtent + 2})
	}
	sc.windows = append(sc.windows, [2]int64{blocks - 3, blocks})
	sc.windows = sc.windows[w.n(len(sc.windows)-1):]
	for i := range sc.windows {
		sc.windows[i][1] = min(sc.windows[i][1], blocks)
	}
}
