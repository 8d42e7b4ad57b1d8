package sim

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
	"github.com/qrbd/qrbd/volume/archive"
)

// lostSide is what a replica held when it was given up, as the simulator saw it.
type lostSide struct {
	gen   protocol.Generation
	id    uint64                      // of the archive
	st    standing                    // what the replica was held to, all of it on stable storage
	pages map[int][sectorsPage]uint64 // of the disk; others held zeroes
}

func newLostSide(d *replica.Discard, st *standing, disk *disk) *lostSide {
	x := &lostSide{gen: d.Lost, id: d.Archive, st: *st, pages: map[int][sectorsPage]uint64{}}
	x.st.fua = maps.Clone(st.fua)
	for i, p := range disk.pages {
		if p != nil {
			x.pages[i] = p.cur
		}
	}
	return x
}

// block returns what a block held, and where it is.
func (x *lostSide) block(block, size int64) (from, to int64, want []uint64) {
	const per = bitmap.BlockSize / sectorSize // divides sectorsPage
	from = block * per
	to = min(from+per, size)
	page := x.pages[int(from/sectorsPage)]
	return from, to, page[from%sectorsPage : from%sectorsPage+to-from]
}

func (p *process) archiveOptions(s *shelf, vouched uint64, id func() uint64) archive.Options {
	return archive.Options{Shelf: s, Volume: "crm", Node: p.n.name, Size: p.n.size, Limit: p.w.sc.archiveLimit, Reserve: 1, Vouched: vouched,
		Now: func() time.Time { return time.Unix(0, p.now()) }, Rand: id}
}

// openArchives is what the agent and volume.settleArchive do.
func (p *process) openArchives(st *replica.Stored) {
	w, n := p.w, p.n
	d, err := archive.OpenDir(p.archiveOptions(n.shelf, st.Archive, w.id), diskBase{n})
	if err != nil {
		w.fail("%s: archives: %v", n.name, err)
	}
	p.archives = d
	if have := d.Lost(); have != 0 && have != st.Lost {
		if err := d.Complete(have); err != nil {
			w.fail("%s: an archive cannot be brought to where the metadata stands: %v", n.name, err)
		}
	}
	st.NoArchive = d.ID() != st.Archive
	p.checkLost()
}

// archiveLater is volume.archiveLater: one job after the other.
func (p *process) archiveLater(job func(done func())) {
	p.archiveJobs = append(p.archiveJobs, job)
	if len(p.archiveJobs) == 1 {
		p.nextArchive()
	}
}

func (p *process) nextArchive() {
	p.after(p.soon(), func() {
		p.archiveJobs[0](func() {
			if p.archiveJobs = p.archiveJobs[1:]; len(p.archiveJobs) > 0 {
				p.nextArchive()
			}
		})
	})
}

// archive is volume.beginArchive. What nobody can rely on is kept now and then only.
func (p *process) archive(id replica.PeerID, d *replica.Discard) {
	p.archiveLater(func(done func()) { p.beginArchive(id, d, done) })
}

func (p *process) beginArchive(id replica.PeerID, d *replica.Discard, done func()) {
	w, n := p.w, p.n
	w.log("%s archives: %s", n.name, d)
	answer := func(err error) {
		if err == nil {
			d.Archive = p.archives.ID()
		}
		kept := p.m.Archived(p.now(), id, d, err)
		p.archiving = d
		if err == nil && !kept {
			if err := p.archives.Seal("the sync did not begin"); err != nil {
				w.fail("%s: sealing what was not begun: %v", n.name, err)
			}
		}
		if err == nil && kept && !d.Resumed {
			n.lost = newLostSide(d, w.o.st[n.index], n.disk)
			if len(n.disk.order) > 0 {
				w.count("archive begun under a write")
				n.lost = nil
			}
		}
		p.run()
		done()
	}
	if !d.Diverged && !d.Resumed && !w.sc.archiveAlways {
		answer(replica.ErrNotKept)
		return
	}
	n.disk.flush(p, func(err error) {
		if err != nil {
			p.m.PeerApplied(p.now(), id, 0, err)
			answer(err)
			return
		}
		var delay int64
		if !w.calm && w.p(0.02) {
			delay = w.between(0, 30*second)
		}
		p.after(delay, func() {
			n.shelf.trouble(0.05)
			err := p.archives.Begin(archive.Start{Winner: d.Peer, Rule: string(d.Rule), ID: d.Volume, Lost: d.Lost, Kept: d.Kept, Parent: d.Parent,
				History: d.History, Disk: d.Disk, Full: d.Full, Resumed: d.Resumed, Blocks: d.Blocks})
			if n.shelf.endTrouble(p) {
				return
			}
			if errors.Is(err, archive.ErrMissing) && n.lost != nil && n.lost.gen == d.Lost && p.m.GivingUp() == d.Lost { // else it was put back meanwhile
				w.fail("C8: %s goes on giving up %s: %v", n.name, short(d.Lost), err)
			}
			if err == nil {
				w.count("archives begun")
			} else {
				w.count("archives refused")
			}
			answer(err)
		})
	})
}

// endArchive is volume.endArchive.
func (p *process) endArchive(d *replica.Discard) {
	lost := d.Lost
	p.archiveLater(func(done func()) {
		if d.Peer != "" && d != p.archiving {
			done()
			return
		}
		p.n.shelf.trouble(0.02)
		err := p.archives.Complete(lost)
		if p.n.shelf.endTrouble(p) {
			return
		}
		p.w.log("%s: the archive of %s ends: %v", p.n.name, short(lost), err)
		p.ended(lost)
		p.checkLost()
		done()
	})
}

// keep is link.keep; the gathering that saves syncs is not imitated. then is not called
// when the process dies of it.
func (l *link) keep(off, n int64, zero bool, then func(error)) {
	p := l.p
	if !p.archives.Live() {
		then(nil)
		return
	}
	p.keepAll(blockdev.Extent{Off: off, Len: n, Zero: zero}, func(err error) {
		if err != nil {
			p.w.count("archive failed")
			if l.current() {
				p.m.ArchiveFailed(p.now(), l.id, err)
			}
			p.run()
		}
		then(err)
	})
}

// keepLocal is volume.keepLocal; then is not called when the process dies of it.
func (p *process) keepLocal(r *replica.Request, then func(error)) {
	if !p.archives.Live() {
		then(nil)
		return
	}
	p.keepAll(blockdev.Extent{Off: r.Off, Len: r.Len, Zero: r.Op != replica.Write}, func(err error) {
		if err == nil {
			then(nil)
			return
		}
		err = p.archives.Seal(err.Error())
		p.w.log("%s: the archive ends early: %v", p.n.name, err)
		p.unlessUnsealed(err, then)
	})
}

// keepAll is volume.keepAll.
func (p *process) keepAll(e blockdev.Extent, then func(error)) {
	p.n.shelf.trouble(0.01)
	err := p.archives.Keep(e)
	if p.n.shelf.endTrouble(p) {
		return
	}
	p.unlessUnsealed(err, then)
}

// unlessUnsealed disowns the archive that an error says could not be sealed, as
// volume.disown does.
func (p *process) unlessUnsealed(err error, then func(error)) {
	var u *archive.UnsealedError
	if !errors.As(err, &u) {
		then(err)
		return
	}
	p.w.count("archive not sealed")
	p.n.unsealed()
	p.m.Disown(p.now(), u.ID, func(err error) {
		p.w.log("%s: archive %s is disowned: %v", p.n.name, u.Name, err)
		if err != nil {
			then(fmt.Errorf("%w: %w", u, err))
			return
		}
		if err := p.archives.Abandon(u.ID); err != nil {
			p.w.fail("%s: abandoning archive %s: %v", p.n.name, u.Name, err)
		}
		then(nil)
	})
	p.run()
}

// checkLost is C8: of a side that was given up every block is as it was, in the
// archive or in place. It knows nothing of how the archive does that.
func (p *process) checkLost() { p.n.checkLost(p.archives) }

func (n *node) checkLost(d *archive.Dir) {
	w := n.w
	if n.lost == nil {
		return
	}
	list, err := d.List()
	if err != nil {
		w.fail("C8: %s: %v", n.name, err)
	}
	var info *archive.Info
	for i := range list {
		if list[i].Header.Lost == n.lost.gen && list[i].Exact() {
			info = &list[i]
		}
	}
	if info == nil {
		for i := range list {
			if list[i].Header.Lost == n.lost.gen && list[i].Err != nil {
				if errors.Is(list[i].Err, archive.ErrFailed) {
					return // as this process has it; the next sync opens it anew, or the next write seals it
				}
				w.fail("C8: the archive of %s on %s: %v", short(n.lost.gen), n.name, list[i].Err)
			}
		}
		return // sealed, or given up: whoever calls it exact again answers for every block
	}
	f, err := d.Look(info.Name)
	if err != nil {
		w.fail("C8: %s: %v", n.name, err)
	}
	v := archive.NewView(f, diskBase{n})
	defer v.Close()
	w.count("lost sides checked")
	for block := range bitmap.Blocks(n.size) {
		if _, lost := n.lost.pages[int(block*bitmap.BlockSize/sectorSize/sectorsPage)]; !lost && n.disk.pages[block*bitmap.BlockSize/sectorSize/sectorsPage] == nil {
			continue // never written
		}
		from, to, want := n.lost.block(block, n.size/sectorSize)
		if slices.Equal(want, n.disk.values(from*sectorSize, (to-from)*sectorSize)) && block%61 != 0 {
			continue
		}
		w.count("lost blocks checked")
		b := make([]byte, (to-from)*sectorSize)
		if err := v.ReadAt(b, from*sectorSize); err != nil {
			w.fail("C8: %s: block %d of the lost side: %v", n.name, block, err)
		}
		for i, x := range want {
			if got := binary.LittleEndian.Uint64(b[i*sectorSize:]); got != x {
				w.fail("C8: %s gave up %s, and in sector %d its archive has %s, not %s", n.name, short(n.lost.gen), from+int64(i), valueText(got), valueText(x))
			}
		}
	}
}

// diskBase shows the numbers of the disk that a node has now as bytes.
type diskBase struct{ n *node }

func (b diskBase) ReadAt(p []byte, off int64) error {
	for i := 0; i < len(p); i += sectorSize {
		s := p[i:min(i+sectorSize, len(p))]
		clear(s)
		binary.LittleEndian.PutUint64(s, b.n.disk.at((off+int64(i))/sectorSize))
	}
	return nil
}

func (b diskBase) Extents(off, n int64, limit int) ([]blockdev.Extent, error) {
	var out []blockdev.Extent
	for n > 0 && len(out) < limit {
		length, zero := b.n.disk.zeroRun(off, n)
		out = append(out, blockdev.Extent{Off: off, Len: length, Hole: zero, Zero: zero})
		off, n = off+length, n-length
	}
	return out, nil
}

var errHook = errors.New("the hook refuses")

// askTarget is volume.askTarget: a command that takes a while, refuses, or hangs.
func (p *process) askTarget(id replica.PeerID, token uint64) {
	p.w.count("hook asked")
	delay := p.w.between(milli, 500*milli)
	var err error
	if !p.w.calm {
		if p.w.p(0.05) {
			err = errHook
			p.w.count("hook refused")
		}
		if p.w.p(0.05) {
			delay = p.w.between(0, 40*second)
		}
	}
	p.after(delay, func() {
		p.m.TargetAllowed(p.now(), id, token, err)
		p.run()
	})
}
