package protocol

import (
	"cmp"
	"fmt"
)

// bitmapFirstMax bounds BitmapPart.First: no volume has more words of 64 blocks
// of 4 KiB, since its size is an int64.
const bitmapFirstMax = 1 << (63 - 12 - 6)

// Type implements Message.
func (*BitmapPart) Type() Type { return TypeBitmapPart }

func (m *BitmapPart) encode(b []byte) []byte {
	b = putU64(b, m.First)
	return putWords(b, m.Words)
}

func (m *BitmapPart) decode(r *reader) {
	m.First = r.u64()
	m.Words = r.words(m.Words, BitmapWordMax)
}

func (m *BitmapPart) check(int) error {
	if m.First >= bitmapFirstMax || len(m.Words) == 0 {
		return fmt.Errorf("%d words at %d: %w", len(m.Words), m.First, ErrMalformed)
	}
	return checkCount("words", len(m.Words), BitmapWordMax)
}

func putWords(b []byte, ws []uint64) []byte {
	b = putU16(b, uint16(len(ws)))
	for _, w := range ws {
		b = putU64(b, w)
	}
	return b
}

func (r *reader) words(old []uint64, most int) []uint64 {
	n := r.count("words", most)
	if r.err == nil && 8*n > len(r.b) {
		r.fail(fmt.Errorf("%d words in %d bytes: %w", n, len(r.b), ErrMalformed))
		n = 0
	}
	ws := resize(old, n)
	for i := range ws {
		ws[i] = r.u64()
	}
	return ws
}

// Type implements Message.
func (*BitmapDone) Type() Type { return TypeBitmapDone }

func (m *BitmapDone) encode(b []byte) []byte { return putU64(b, m.Blocks) }

func (m *BitmapDone) decode(r *reader) { m.Blocks = r.u64() }

func (m *BitmapDone) check(int) error { return nil }

// Type implements Message.
func (*SyncStart) Type() Type { return TypeSyncStart }

func (m *SyncStart) encode(b []byte) []byte {
	b = putU64(b, uint64(m.Base))
	b = append(b, m.Volume[:]...)
	b = putU64(b, m.Blocks)
	return putBool(b, m.Digest)
}

func (m *SyncStart) decode(r *reader) {
	m.Base = Generation(r.u64())
	copy(m.Volume[:8], r.take(8))
	copy(m.Volume[8:], r.take(8))
	m.Blocks = r.u64()
	m.Digest = r.bool()
}

func (m *SyncStart) check(int) error { return nil }

// Type implements Message.
func (*SyncReady) Type() Type { return TypeSyncReady }

func (*SyncReady) encode(b []byte) []byte { return b }
func (*SyncReady) decode(*reader)         {}
func (*SyncReady) check(int) error        { return nil }

// Type implements Message.
func (*SyncDone) Type() Type { return TypeSyncDone }

func (m *SyncDone) encode(b []byte) []byte {
	b = putU64(b, uint64(m.Current))
	b = putU64(b, m.Seq)
	b = putSlots(b, m.Slots)
	return putGenerations(b, m.History)
}

func (m *SyncDone) decode(r *reader) {
	m.Current = Generation(r.u64())
	m.Seq = r.u64()
	m.Slots = r.slots(m.Slots)
	m.History = r.generations(m.History)
}

func (m *SyncDone) check(int) error {
	return cmp.Or(checkSlots(m.Slots), checkCount("generations", len(m.History), HistoryMax))
}

// Type implements Message.
func (*SyncDoneAck) Type() Type { return TypeSyncDoneAck }

func (*SyncDoneAck) encode(b []byte) []byte { return b }
func (*SyncDoneAck) decode(*reader)         {}
func (*SyncDoneAck) check(int) error        { return nil }

// Type implements Message.
func (*SyncWrite) Type() Type { return TypeSyncWrite }

func (m *SyncWrite) encode(b []byte) []byte { return putRun(b, m.ID, m.Off, m.Len) }

func (m *SyncWrite) decode(r *reader) { m.ID, m.Off, m.Len = r.run() }

func (m *SyncWrite) check(payload int) error {
	if err := checkRange(m.Off, m.Len); err != nil {
		return err
	}
	return checkPayload(payload, m.Len)
}

func putRun(b []byte, id uint64, off, n int64) []byte { return putI64(putI64(putU64(b, id), off), n) }

func (r *reader) run() (id uint64, off, n int64) { return r.u64(), r.i64(), r.i64() }

// Type implements Message.
func (*SyncZero) Type() Type { return TypeSyncZero }

func (m *SyncZero) encode(b []byte) []byte { return putRun(b, m.ID, m.Off, m.Len) }

func (m *SyncZero) decode(r *reader) { m.ID, m.Off, m.Len = r.run() }

func (m *SyncZero) check(int) error { return checkRange(m.Off, m.Len) }

// Type implements Message.
func (*SyncDigests) Type() Type { return TypeSyncDigests }

func (m *SyncDigests) encode(b []byte) []byte {
	b = putRun(b, m.ID, m.Off, m.Len)
	b = putU64(b, m.Seed)
	b = putBool(b, m.Verify)
	return putWords(b, m.Digests)
}

func (m *SyncDigests) decode(r *reader) {
	m.ID, m.Off, m.Len = r.run()
	m.Seed = r.u64()
	m.Verify = r.bool()
	m.Digests = r.words(m.Digests, DigestsMax)
}

func (m *SyncDigests) check(int) error {
	if err := cmp.Or(checkCount("digests", len(m.Digests), DigestsMax), checkRange(m.Off, m.Len)); err != nil {
		return err
	}
	n := int64(len(m.Digests))
	if m.Off%DigestBlock != 0 || m.Len > n*DigestBlock || m.Len <= (n-1)*DigestBlock {
		return fmt.Errorf("%d digests of %d bytes at %d: %w", n, m.Len, m.Off, ErrMalformed)
	}
	return nil
}

// Type implements Message.
func (*SyncDiffers) Type() Type { return TypeSyncDiffers }

func (m *SyncDiffers) encode(b []byte) []byte {
	b = putU64(b, m.ID)
	for _, w := range m.Differ {
		b = putU64(b, w)
	}
	return b
}

func (m *SyncDiffers) decode(r *reader) {
	m.ID = r.u64()
	for i := range m.Differ {
		m.Differ[i] = r.u64()
	}
}

func (m *SyncDiffers) check(int) error { return nil }

// Type implements Message.
func (*SyncAck) Type() Type { return TypeSyncAck }

func (m *SyncAck) encode(b []byte) []byte { return putU64(b, m.ID) }
func (m *SyncAck) decode(r *reader)       { m.ID = r.u64() }
func (m *SyncAck) check(int) error        { return nil }

// Type implements Message.
func (*SyncFlush) Type() Type { return TypeSyncFlush }

func (m *SyncFlush) encode(b []byte) []byte { return putU64(b, m.ID) }
func (m *SyncFlush) decode(r *reader)       { m.ID = r.u64() }
func (m *SyncFlush) check(int) error        { return nil }

// Type implements Message.
func (*SyncFlushed) Type() Type { return TypeSyncFlushed }

func (m *SyncFlushed) encode(b []byte) []byte { return putU64(b, m.ID) }
func (m *SyncFlushed) decode(r *reader)       { m.ID = r.u64() }
func (m *SyncFlushed) check(int) error        { return nil }
