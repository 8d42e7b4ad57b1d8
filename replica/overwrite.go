package replica

import (
	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
)

// The target of a sync marks toward every other replica what the sync may overwrite,
// durably, before the first block of it comes; and takes the marks back, when the sync has
// ended, of what was found to be the same already. After a full sync they stay: nothing is
// known of what was here before, and how it compares with a third. So three replicas without a primary come
// to rest: a sync passes on to the third what it has changed, and nothing else. Nobody's word
// on a third is needed, which may be older than what the third has by now.

// markWords marks toward all but p, the source, what a part of its bitmap names.
func (m *Machine) markWords(p *peer, first int64, words []uint64) error {
	for _, q := range m.peers {
		if q == p {
			continue
		}
		fresh := q.dirty.AppendWords(nil, first, len(words))
		if _, err := q.dirty.OrWords(first, words); err != nil {
			return err
		}
		for i := range fresh {
			fresh[i] = words[i] &^ fresh[i]
		}
		if _, err := p.freshToward(q).OrWords(first, fresh); err != nil {
			return err
		}
	}
	return nil
}

// freshToward returns the blocks that are marked toward q only because of the sync from p,
// and that have not changed.
func (p *peer) freshToward(q *peer) *bitmap.Set {
	if p.fresh == nil {
		p.fresh = map[PeerID]*bitmap.Set{}
	}
	if p.fresh[q.id] == nil {
		p.fresh[q.id] = bitmap.NewSet(q.dirty.Blocks())
	}
	return p.fresh[q.id]
}

// Overwrites tells the target that a range, which is about to be written by the sync from
// the peer, is not what it was. The owner calls it before it changes the store. What a sync
// writes over with the same, zeroes over zeroes, need not be told.
func (m *Machine) Overwrites(id PeerID, off, n int64) { m.all[id].overwrites(off, n) }

func (p *peer) overwrites(off, n int64) {
	for _, fresh := range p.fresh { // the order does not matter
		fresh.Clear(bitmap.Touched(off, n))
	}
}

// unmark takes back what the sync from p, which has ended, marked and has not changed.
func (m *Machine) unmark(p *peer) {
	for _, q := range m.peers {
		if fresh := p.fresh[q.id]; fresh != nil {
			eachRun(fresh, q.dirty.Clear)
		}
	}
	p.fresh = nil
}

// eachRun calls fn for every run of blocks in set, which fn does not change.
func eachRun(set *bitmap.Set, fn func(from, to int64) int64) {
	for from := int64(0); ; {
		start, n := set.Next(from, set.Blocks())
		if n == 0 {
			return
		}
		fn(start, start+n)
		from = start + n
	}
}

// markOverwritten takes the source's word on which blocks it will overwrite. From
// then on they may differ from those of every other replica.
func (m *Machine) markOverwritten(p *peer, b *protocol.BitmapPart) {
	if err := m.markWords(p, int64(b.First), b.Words); err != nil {
		m.dropPeer(p, refusal(protocol.CodeProtocol, "%s: %v", p.name, err))
	}
}
