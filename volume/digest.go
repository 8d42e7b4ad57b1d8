package volume

import (
	"io"

	"github.com/cespare/xxhash/v2"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/resync"
)

// digestPiece is what is read at once to be digested: it stays in a CPU's cache, and the system call is short.
const digestPiece = 256 << 10

// sendDigests sends the digests of a run instead of its data.
func (l *link) sendDigests(plan *resync.Plan, r resync.Run, seed uint64) error {
	v := l.v
	zero := true
	digests, err := l.digests(r.Off, r.Len, seed, func(b []byte, off int64) error {
		err := v.store().ReadAt(b, off)
		if err != nil {
			v.meter.localBad[OpKindRead].Add(1)
			return err
		}
		zero = zero && allZero(b)
		return nil
	})
	if err != nil {
		return err
	}
	if zero {
		v.mu.Lock()
		plan.Zeroes()
		v.mu.Unlock()
	}
	return l.writeBulk(&protocol.SyncDigests{ID: r.ID, Off: r.Off, Len: r.Len, Seed: seed, Verify: plan.Kind() == resync.Verify, Digests: digests}, nil)
}

// digests returns the digests of n bytes at off, which read reads piece by piece.
func (l *link) digests(off, n int64, seed uint64, read func(b []byte, off int64) error) ([]uint64, error) {
	buf := l.v.opt.Pool.Get(int(min(n, digestPiece)), l.dead)
	if buf == nil {
		return nil, io.ErrClosedPipe
	}
	defer buf.Release()
	digests := make([]uint64, 0, (n+bitmap.BlockSize-1)/bitmap.BlockSize)
	for end := off + n; off < end; {
		b := buf.Bytes()[:min(int64(len(buf.Bytes())), end-off)]
		if err := read(b, off); err != nil {
			return nil, err
		}
		digests = appendDigests(digests, b, seed)
		off += int64(len(b))
	}
	return digests, nil
}

// appendDigests appends a seeded XXH64 of each block. The seed is new for every
// run, so that a collision cannot be prepared.
func appendDigests(dst []uint64, b []byte, seed uint64) []uint64 {
	var d xxhash.Digest
	for len(b) > 0 {
		n := min(len(b), bitmap.BlockSize)
		d.ResetWithSeed(seed)
		d.Write(b[:n])
		dst = append(dst, d.Sum64())
		b = b[n:]
	}
	return dst
}

// syncCompare answers which blocks differ.
func (l *link) syncCompare(t *resync.Target, m *protocol.SyncDigests) error {
	v := l.v
	if err := l.allowed(m.Verify, m.Off, m.Len); err != nil {
		return err
	}
	mine, err := l.digests(m.Off, m.Len, m.Seed, func(b []byte, off int64) error {
		if err := l.enter(0); err != nil { // what is late may make them differ yet
			return err
		}
		err := v.store().ReadAt(b, off)
		l.left()
		if err != nil {
			return l.storeFailed(OpKindRead, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := l.allowed(m.Verify, m.Off, m.Len); err != nil {
		return err // a role that changed meanwhile let writes in
	}
	if len(mine) != len(m.Digests) {
		return refuse(protocol.CodeProtocol, "%s sent %d digests for %d bytes", l.name, len(m.Digests), m.Len)
	}
	ans, equal, err := t.Compare(m, mine)
	if err != nil {
		return refuse(protocol.CodeProtocol, "%s: %v", l.name, err)
	}
	if !m.Verify {
		v.mu.Lock()
		l.bulk.applied += equal
		v.mu.Unlock()
	}
	return l.writeBulk(ans, nil)
}
