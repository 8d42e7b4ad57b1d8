package replica

import (
	"fmt"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
)

const (
	// pullsMax bounds the runs of a refill in flight: 8 of 256 KiB fill a link of
	// 1 GB/s at 2 ms, and hold up a write into one of them for a round trip.
	pullsMax = 8
	// pullPause is how long after an error a block is tried again.
	pullPause = Time(1e9)
)

func position(r *Request) string { return fmt.Sprintf("%d+%d", r.Off, r.Len) }

// lack notes that the local disk does not hold the blocks of the range.
func (m *Machine) lack(off, n int64) {
	if m.left == nil {
		m.left = bitmap.NewSet(bitmap.Blocks(m.cfg.Size))
	}
	m.left.Set(bitmap.Touched(off, n))
}

// lacks reports whether the local disk lacks a block of the range.
func (m *Machine) lacks(off, n int64) bool {
	if n == 0 {
		return false
	}
	from, to := bitmap.Touched(off, n)
	return m.left.Any(from, to)
}

// MayReplace says why the local disk cannot be replaced under a running primary
// now; nil: it can.
func (m *Machine) MayReplace(now Time) error {
	m.now = now
	name := m.cfg.Name
	switch {
	case m.stopping:
		return refusal(protocol.CodeShutdown, "%s is stopping", m.cfg.Self)
	case m.disk != protocol.Failed:
		return refusal(protocol.CodeNotAllowed, "the disk of %s on %s is %s, not failed: its data would be lost. To start anew on purpose: demote it, stop the agent and run qrbd create %s --force", name, m.cfg.Self, m.disk, name)
	case m.role != protocol.Primary:
		return nil
	case m.drain != nil || m.handover != nil:
		return refusal(protocol.CodeBusy, "another change of the role of %s is under way: try again in a moment", name)
	case m.carrier(0) == nil:
		return refusal(protocol.CodeNotAllowed, "no peer that holds the data of %s is connected: there is nothing to fill a new disk from. Connect one, or demote this node (qrbd demote %s --force)", name, name)
	case !m.detached:
		return refusal(protocol.CodeBusy, "the peers of %s are still being told that the disk failed: try again in a moment", name)
	case m.metaBusy:
		return refusal(protocol.CodeBusy, "the metadata of %s is still being written: try again in a moment", name)
	}
	if len(m.reading) > 0 {
		return refusal(protocol.CodeBusy, "the failed disk of %s still has reads under way: try again when they have ended, or restart the agent", name)
	}
	for _, s := range m.spans {
		if s.req.local {
			return refusal(protocol.CodeBusy, "the failed disk of %s still has requests under way: try again when they have ended, or restart the agent", name)
		}
	}
	return nil
}

// Replaced tells the primary that it has an empty disk, with metadata that knows
// nothing, in place of the failed one. REQUIRES MayReplace in the same hold of the
// owner's lock. The disk is filled from the peers, and is no copy until then: were
// this node to stop, its metadata say that it is brand new.
func (m *Machine) Replaced(now Time) {
	m.now = now
	m.event("", "disk", m.disk.String(), protocol.Inconsistent.String(), "replaced: it is filled from "+m.carrierNames())
	m.disk, m.diskWhy = protocol.Inconsistent, "replaced; not filled yet"
	m.filling = true
	m.vouched = 0
	m.left = bitmap.NewSet(bitmap.Blocks(m.cfg.Size))
	m.left.SetAll()
	m.leftFrom, m.fillFlush = 0, nil
	m.activity = bitmap.NewActivity(m.cfg.Size)
	m.localDurable, m.bootDurable, m.bootFlush = 0, true, nil
	m.metaDead, m.superTaken, m.metaDone, m.cleanMark = false, 0, 0, false
	m.idSerial++
	for _, p := range m.peers {
		p.dirty.MarkAllChanged()
	}
	m.wantBitmaps = true
	m.persist()
	m.whenDurable(m.notesKept)
	m.broadcastState()
	m.pumpFill()
}

// pumpFill takes the next runs that the local disk lacks from a carrier. A run
// holds its range like a write: what comes later waits, so that clients cannot keep
// it from its turn for ever.
func (m *Machine) pumpFill() {
	if m.left == nil || !m.usable() || m.role != protocol.Primary || m.carrier(0) == nil || m.frozen > 0 || m.stopping || m.now < m.pullAt {
		return
	}
	for m.pulls < pullsMax && m.carrier(0) != nil && m.left != nil {
		off, n := m.nextPull()
		if n == 0 {
			break
		}
		r := &Request{Op: Pull, Off: off, Len: n, Tag: internalTag, span: len(m.spans)}
		m.spans = append(m.spans, span{off, off + n, r})
		m.flights++
		m.pulls++
		m.pullWait = append(m.pullWait, r)
		m.pumpPulls()
	}
	if m.left != nil && m.pulls == 0 && m.left.Count() == 0 {
		m.filled()
	}
}

// nextPull returns a run that the disk lacks and that nothing in flight touches;
// n is 0 when there is none.
func (m *Machine) nextPull() (off, n int64) {
	for _, pass := range [2]int64{m.leftFrom, 0} {
		for from := pass; ; {
			start, run := m.left.Next(from, protocol.ReadMax/bitmap.BlockSize)
			if run == 0 {
				break
			}
			off = start * bitmap.BlockSize
			n = min(run*bitmap.BlockSize, m.cfg.Size-off)
			if !m.pulling(off, n) && !m.syncing(off, n) {
				m.leftFrom = start + run
				return off, n
			}
			from = start + run
		}
	}
	return 0, 0
}

// pulling reports whether a run touches the range.
func (m *Machine) pulling(off, n int64) bool {
	for _, s := range m.spans {
		if s.req.Op == Pull && s.off < off+n && off < s.end {
			return true
		}
	}
	return false
}

// pumpPulls asks for the runs under which no write is in flight any more.
func (m *Machine) pumpPulls() {
	list := m.pullWait
	m.pullWait = nil
	for _, r := range list {
		switch {
		case m.left == nil || !m.usable():
			m.pullEnded(r)
		case m.writing(r.Off, r.Len):
			m.pullWait = append(m.pullWait, r)
		default:
			m.readFar(r)
		}
	}
}

// writing reports whether a client's write in flight touches the range.
func (m *Machine) writing(off, n int64) bool {
	for _, s := range m.spans {
		if s.req.Op != Pull && s.off < off+n && off < s.end {
			return true
		}
	}
	return false
}

// pullDone: the local disk has written a run, or failed to.
func (m *Machine) pullDone(r *Request, err error) {
	r.local = false
	switch {
	case err != nil:
		m.failDisk(fmt.Sprintf("refill at %s: %v", position(r), err))
	case m.left != nil:
		m.left.Clear(bitmap.Covered(r.Off, r.Len, m.cfg.Size))
		r.err = nil
	}
	m.pulls--
	m.finish(r)
	m.pumpFill()
}

// pullEnded: a run could not be had from anybody.
func (m *Machine) pullEnded(r *Request) {
	m.pulls--
	m.pullAt = m.now + pullPause
	m.finish(r)
}

// filled: the local disk lacks nothing any more. A new one must be flushed, and
// known as a copy in its metadata, before it counts as one.
func (m *Machine) filled() {
	if !m.filling {
		m.left = nil
		m.event("", "data", "repair", "local", "what could not be read was written anew")
		return
	}
	if m.fillFlush == nil {
		m.fillFlush = &Request{Op: Flush, Tag: internalTag, span: -1, all: true}
		m.issueFlush(m.fillFlush)
	}
}

func (m *Machine) fillFlushed(err error) {
	m.fillFlush = nil
	if err != nil || !m.filling || !m.usable() || m.role != protocol.Primary {
		return // Tick tries again
	}
	m.left = nil
	m.setDisk(protocol.UpToDate, "filled from "+m.carrierNames())
	m.wantBitmaps = true
	m.persist()
	m.whenDurable(m.fillSettled)
}

// fillSettled makes a filled disk count once all that this node knows is durable
// there; Tick looks again when something else was being written.
func (m *Machine) fillSettled() {
	if !m.filling || m.disk != protocol.UpToDate || m.role != protocol.Primary || m.minting || m.metaDone != m.metaWant {
		return
	}
	m.filling, m.detached = false, false
	m.broadcastState()
	for _, p := range m.peers {
		if p.linked && p.settled && !p.live {
			m.restart(p, "the disk of "+m.cfg.Self+" is a copy again: compare again")
		}
	}
}

// tickFill goes on with what waited for time, a peer or the metadata.
func (m *Machine) tickFill() {
	m.fillSettled()
	m.pumpFill()
}

// leaveUnfilled makes a disk that was being filled, on a node that gives the role
// up, what its metadata say: brand new.
func (m *Machine) leaveUnfilled() bool {
	if !m.filling {
		m.left = nil
		return false
	}
	m.filling, m.left, m.fillFlush = false, nil, nil
	m.disk, m.diskWhy = protocol.Inconsistent, "replaced; not filled yet"
	m.current, m.history = 0, nil
	for _, p := range m.peers {
		p.slot = 0
		p.dirty.SetAll()
	}
	m.idSerial++
	m.wantBitmaps = true
	m.persist()
	return true
}
