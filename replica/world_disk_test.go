package replica

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/resync"
)

// wdisk is what a script does to a node's disk.
type wdisk struct {
	fails    map[string]bool // "read", "write", "flush": every one, from now on
	rot      map[int64]bool  // blocks that are not what the others have
	content  map[int64]wvalue
	noData   NoData
	onRead   OnReadError
	timeout  Time
	dropSync bool         // the next start of a plan is forgotten
	dropped  *resync.Plan // that was
	archived *Discard     // the last side that was given up
}

var (
	errWorldDisk  = errors.New("input/output error")
	errWorldSpace = errors.New("no space left on the backing store")
)

// err returns how an operation ends.
func (d *wdisk) err(op Op) error {
	kind := "write"
	switch op {
	case Read:
		kind = "read"
	case Flush:
		kind = "flush"
	case Write, Zero, Trim, Pull:
	}
	switch {
	case d.fails[kind]:
		return errWorldDisk
	case d.fails["space"] && op == Write:
		return errWorldSpace
	}
	return nil
}

// applied is what a peer's store makes of d.
func (w *world) applied(y *wnode, id PeerID, d *protocol.Data) {
	op := map[protocol.DataOp]Op{protocol.DataWrite: Write, protocol.DataZero: Zero, protocol.DataTrim: Trim, protocol.DataFlush: Flush}[d.Op]
	err := y.wdisk.err(op)
	if op != Flush {
		if y.m.PeerApplied(w.now, id, d.Seq, err); err != nil {
			return
		}
		if d.Flags&protocol.DataFUA == 0 {
			return
		}
		err = y.wdisk.err(Flush)
	} else {
		y.m.PeerApplied(w.now, id, d.Seq, nil)
	}
	y.m.PeerDurable(w.now, id, d.Seq, err)
}

// serve answers a peer's read.
func (w *world) serve(x *wnode, e *Effect) {
	a := &protocol.PeerReply{ID: e.Read.ID, Len: e.Read.Len, Zero: true}
	err := e.Err
	if err == nil {
		err = x.wdisk.err(Read)
	}
	if err != nil {
		a.Zero, a.Code = false, protocol.CodeDiskFailed
	}
	to := x.m.peers[e.Peer].name
	if e.Read.Len < protocol.ReadMax || err != nil { // not a run of a refill
		w.say("%s: serves %s %d+%d: %s", x.name, to, e.Read.Off, e.Read.Len, okOr(err))
	}
	x.queues[to] = append(x.queues[to], wframe{reply: a})
}

// wvalue names the write that a block has its content from: whose, in which life.
type wvalue struct{ instance, seq uint64 }

// wrote notes what a write of by's left on x.
func (x *wnode) wrote(by *wnode, seq uint64, off, n int64) {
	for b, to := bitmap.Touched(off, n); b < to; b++ {
		x.content[b] = wvalue{by.m.instance, seq}
	}
}

// runs compares a run, or copies it.
func (w *world) runs(x *wnode, p *peer, r resync.Run) {
	plan, y := p.plan, w.nodes[p.name]
	n := min(r.Len, resync.DataMax)
	plan.Narrow(r.ID, n)
	from, to := bitmap.Touched(r.Off, n)
	if plan.Kind() == resync.Verify {
		differ := &protocol.SyncDiffers{ID: r.ID}
		for b := from; b < to; b++ {
			if x.rot[b] != y.rot[b] {
				differ.Differ[(b-from)/64] |= 1 << ((b - from) % 64)
			}
		}
		plan.Take(w.now, differ)
		return
	}
	plan.Plain(r.ID)
	if w.watch != nil {
		w.watch.copied(x, y, r.Off, n)
	}
	for b := from; b < to; b++ {
		if x.content[b] != y.content[b] || x.rot[b] != y.rot[b] {
			y.m.Overwrites(y.peer(x.name), b*bitmap.BlockSize, bitmap.BlockSize)
		}
		y.rot[b], y.content[b] = x.rot[b], x.content[b]
	}
	plan.Acked(w.now, r.ID)
}

// replace gives a node whose disk failed an empty one, with metadata that know nothing.
func (w *world) replace(x *wnode) error {
	if err := x.m.MayReplace(w.now); err != nil {
		return err
	}
	for _, r := range x.local {
		if r.Late() {
			return errors.New("requests are still stuck in the failed disk")
		}
	}
	primary := x.m.role == protocol.Primary
	if !primary { // the agent closes the volume and makes it anew
		for _, p := range w.names {
			if p != x.name {
				w.cut(x.name, p)
			}
		}
	}
	x.durable = Stored{Disk: protocol.Inconsistent}
	for id := range x.bitmaps {
		x.bitmaps[id] = bitmap.NewSet(bitmap.Blocks(w.size))
	}
	x.active, x.fails, x.rot, x.content = map[int64]bool{}, map[string]bool{}, map[int64]bool{}, map[int64]wvalue{}
	if primary {
		x.m.Replaced(w.now)
		return nil
	}
	w.boot(x)
	return nil
}

// restore puts the last side that x gave up back; crash: x dies in the middle.
func (w *world) restore(x *wnode, crash bool, done func(error)) {
	d := x.archived
	g := GivenUp{Lost: d.Lost, Kept: d.Kept, History: d.History}
	x.m.Restore(w.now, g, func(err error) {
		switch {
		case err != nil:
			done(err)
		case crash:
			w.crash(x.name)
			w.say("%s dies in the middle of the restore", x.name)
		default:
			x.m.Restored(w.now, g, nil, false, done)
			w.collect(x)
		}
	})
}

// diskCommand executes the commands about disks; false: it is none of them.
func (w *world) diskCommand(x *wnode, f []string) (bool, error) {
	arg := func(i int) string {
		if i < len(f) {
			return f[i]
		}
		return ""
	}
	num := func(i int) int64 {
		n, _ := strconv.ParseInt(arg(i), 0, 64)
		return n
	}
	done := func(err error) { w.say("%s %s: %s", f[0], arg(1), okOr(err)) }
	switch f[0] {
	case "fail":
		x.fails[arg(2)] = true
	case "die": // the disk fails over something that nobody waits for
		x.m.failDisk("the disk died")
	case "mend":
		x.fails = map[string]bool{}
	case "replace":
		done(w.replace(x))
	case "restore":
		w.restore(x, arg(2) == "crash", done)
	case "nodata":
		x.noData = map[string]NoData{"io-error": NoDataError, "suspend-io": NoDataSuspend}[arg(2)]
		x.m.cfg.NoData = x.noData
	case "readerror":
		x.onRead = map[string]OnReadError{"repair": ReadRepair, "detach": ReadDetach}[arg(2)]
		x.m.cfg.OnReadError = x.onRead
	case "timeout":
		x.timeout = num(2) * 1e9
		x.m.cfg.DiskTimeout = x.timeout
	case "rot":
		from, to := bitmap.Touched(num(2), num(3))
		for b := from; b < to; b++ {
			x.rot[b] = true
		}
	case "rotten":
		var list []string
		for b := range bitmap.Blocks(w.size) {
			if x.rot[b] {
				list = append(list, fmt.Sprint(b))
			}
		}
		w.say("%s: blocks that differ: [%s]", x.name, strings.Join(list, " "))
	case "drop":
		x.dropSync = true
	case "verify":
		id := x.peer(arg(2))
		x.m.Verify(w.now, id, VerifyOptions{Off: num(3), Len: num(4)}, func(err error) {
			v := x.m.LastVerify(id)
			w.say("verify %s %s: %s; %d+%d up to %d, compared %d, differed %d", x.name, arg(2), okOr(err), v.Off, v.Len, v.Next, v.Compared, v.Differed)
			for _, r := range v.Bad {
				w.say("  differs: %d+%d", r.Off, r.Len)
			}
		})
	case "stop-verify":
		x.m.StopVerify(w.now, x.peer(arg(2)), "stopped by the operator")
	case "repair":
		done(x.m.Repair(w.now, x.peer(arg(2)), arg(3) == "from-peer"))
	default:
		return false, nil
	}
	return true, nil
}
