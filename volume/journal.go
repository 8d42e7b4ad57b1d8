package volume

import (
	"fmt"
	"slices"
	"time"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
	"github.com/qrbd/qrbd/volume/meta"
)

// slotGone marks a peer in the metadata that is no longer configured: its bitmap
// is not kept up, so that all of it counts as out of sync should it return.
const slotGone uint32 = 1

// slotOlder: this node was primary when it was last connected to the peer.
const slotOlder uint32 = 2

// slotLeft: the peer left in order, and is not missed for a quorum. slotTold: it knows that
// this node left in order, and has not confirmed its return.
const (
	slotLeft uint32 = 4
	slotTold uint32 = 8
	// slotFenced: the peer cannot take over before it has been in sync with this node again.
	slotFenced uint32 = 16
	// slotWriter: the newest writes here are the peer's.
	slotWriter uint32 = 32
)

const (
	// superRestoring marks a replica that is half-way back to a side that was given up.
	superRestoring uint32 = 1
	// superOwn: replica.Stored.Own.
	superOwn uint32 = 2
	// superLacking: replica.Stored.Lacking.
	superLacking uint32 = 4
)

type goneSlot struct {
	index int
	slot  meta.PeerSlot
}

// stored turns the metadata into the machine's state, peers in the order of the
// configuration, and remembers which metadata slot is whose.
func (v *Volume) stored(peers []replica.PeerConfig) (replica.Stored, error) {
	s := &v.opt.State.Super
	st := replica.Stored{Volume: s.Volume, Disk: s.Disk, Primary: s.Primary, Clean: s.Clean, Shaken: s.Shaken, Current: s.Current,
		History: s.History, Seq: s.Seq, Lost: s.Lost, Restoring: s.Flags&superRestoring != 0, Own: s.Flags&superOwn != 0, Lacking: s.Flags&superLacking != 0, Archive: s.Archive, Term: s.Term, Voted: s.Voted, Overruled: s.Overruled, Floor: s.Floor}
	index := make(map[string]int)
	for i, p := range s.Peers {
		index[p.Name] = i
	}
	next := len(s.Peers)
	v.kept = s
	v.regions = &regions{}
	for _, p := range peers {
		i, known := index[p.Name]
		if !known {
			if next == protocol.PeersMax {
				return st, fmt.Errorf("volume %s: no metadata slot is free for peer %s: %d peers were configured in its life", v.opt.Name, p.Name, next)
			}
			v.regions.slots = append(v.regions.slots, next)
			next++
			st.Peers = append(st.Peers, replica.PeerSlot{Name: p.Name, Dirty: bitmap.NewSet(bitmap.Blocks(v.size))})
			continue
		}
		slot := replica.PeerSlot{Name: p.Name, Bitmap: s.Peers[i].Bitmap, Disk: s.Peers[i].Disk, Dirty: v.opt.State.Bitmaps[i],
			First: s.Peers[i].First, Last: s.Peers[i].Last, Older: s.Peers[i].Flags&slotOlder != 0,
			Left: s.Peers[i].Flags&slotLeft != 0, Told: s.Peers[i].Flags&slotTold != 0, Fenced: s.Peers[i].Flags&slotFenced != 0, Writer: s.Peers[i].Flags&slotWriter != 0}
		if s.Peers[i].Flags&slotGone != 0 {
			slot.Fenced = false
			slot.Dirty.SetAll()
		}
		v.regions.slots = append(v.regions.slots, i)
		st.Peers = append(st.Peers, slot)
		delete(index, p.Name)
	}
	for _, i := range index {
		g := s.Peers[i]
		g.Flags |= slotGone
		v.regions.former = append(v.regions.former, goneSlot{i, g})
	}
	return st, nil
}

// batch turns the machine's snapshot into the metadata file's.
func (v *Volume) batch(b replica.MetaBatch, where *regions) *meta.Batch {
	out := &meta.Batch{Activity: b.Activity}
	if s := b.Super; s != nil {
		old := v.kept
		sup := &meta.Super{Volume: s.Volume, Size: old.Size, Node: old.Node, Name: old.Name, Disk: s.Disk, Primary: s.Primary, Clean: s.Clean, Shaken: s.Shaken,
			Flags: old.Flags &^ (superRestoring | superOwn | superLacking), Current: s.Current, History: s.History, Seq: s.Seq, Lost: s.Lost, Archive: s.Archive, Term: s.Term, Voted: s.Voted, Overruled: s.Overruled, Floor: s.Floor}
		if s.Restoring {
			sup.Flags |= superRestoring
		}
		if s.Own {
			sup.Flags |= superOwn
		}
		if s.Lacking {
			sup.Flags |= superLacking
		}
		sup.Peers = make([]meta.PeerSlot, len(where.slots)+len(where.former))
		for _, g := range where.former {
			sup.Peers[g.index] = g.slot
		}
		for i, p := range s.Peers {
			slot := meta.PeerSlot{Name: p.Name, Bitmap: p.Bitmap, Disk: p.Disk, First: p.First, Last: p.Last}
			if p.Older {
				slot.Flags |= slotOlder
			}
			if p.Left {
				slot.Flags |= slotLeft
			}
			if p.Told {
				slot.Flags |= slotTold
			}
			if p.Fenced {
				slot.Flags |= slotFenced
			}
			if p.Writer {
				slot.Flags |= slotWriter
			}
			sup.Peers[where.slots[i]] = slot
		}
		out.Super = sup
	}
	for _, p := range b.Bitmaps {
		out.Bitmap = append(out.Bitmap, meta.BitmapPage{Slot: where.slots[p.Peer], Page: p.Page, Data: p.Data})
	}
	return out
}

// journalLoop commits metadata: whatever was asked for while one commit ran
// shares the next.
func (v *Volume) journalLoop() {
	defer v.ended.Done()
	for {
		select {
		case <-v.journal:
		case <-v.stop:
			return
		}
		for v.commitOnce() {
		}
	}
}

// write makes a batch durable. A commit that is cut short leaves any subset of
// its pages, so that bits go first: no super page may give a meaning (a
// generation, "closed in order") to bits that are not there.
func (v *Volume) write(b replica.MetaBatch, where *regions) error {
	all := v.batch(b, where)
	if err := v.writeNames(all.Super); err != nil {
		return err
	}
	if all.Super != nil && len(all.Bitmap) > 0 {
		if err := v.disk.Load().meta.Commit(&meta.Batch{Activity: all.Activity, Bitmap: all.Bitmap}); err != nil {
			return err
		}
		all.Activity, all.Bitmap = nil, nil
	}
	if err := v.disk.Load().meta.Commit(all); err != nil {
		return err
	}
	if all.Super != nil {
		v.kept = all.Super
	}
	return nil
}

// writeNames makes room for the bits of peers that are new to the file. Nothing but
// names is new on this page, and until the bits are there all count as set.
func (v *Volume) writeNames(s *meta.Super) error {
	if s == nil || len(s.Peers) <= len(v.kept.Peers) {
		return nil
	}
	named := *v.kept
	named.Peers = slices.Clone(v.kept.Peers)
	for _, p := range s.Peers[len(named.Peers):] {
		named.Peers = append(named.Peers, meta.PeerSlot{Name: p.Name, Flags: slotGone})
	}
	if err := v.disk.Load().meta.Commit(&meta.Batch{Super: &named}); err != nil {
		return err
	}
	v.kept = &named
	return nil
}

func (v *Volume) commitOnce() bool {
	v.mu.Lock()
	var b replica.MetaBatch
	ok := false
	if !v.replacing {
		b, ok = v.m.MetaBatch()
	}
	where := v.regions
	v.mu.Unlock()
	if !ok {
		return false
	}
	began := v.now()
	err := v.write(b, where)
	v.meter.commits.Add(time.Duration(v.now() - began))
	v.mu.Lock()
	v.m.MetaDone(v.now(), b.Version, b, err)
	v.unlockAndRun()
	return err == nil
}
