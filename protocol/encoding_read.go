package protocol

import (
	"cmp"
	"fmt"
)

// Type implements Message.
func (*PeerRead) Type() Type { return TypePeerRead }

func (m *PeerRead) encode(b []byte) []byte { return putRun(b, m.ID, m.Off, m.Len) }

func (m *PeerRead) decode(r *reader) { m.ID, m.Off, m.Len = r.run() }

func (m *PeerRead) check(int) error {
	return cmp.Or(checkRange(m.Off, m.Len), checkReadLen(m.Len))
}

func checkReadLen(n int64) error {
	if n < 1 || n > ReadMax {
		return fmt.Errorf("read of %d bytes: %w", n, ErrMalformed)
	}
	return nil
}

// Type implements Message.
func (*PeerReply) Type() Type { return TypePeerReply }

func (m *PeerReply) encode(b []byte) []byte {
	b = putI64(putU64(b, m.ID), m.Len)
	b = putBool(b, m.Zero)
	return putU16(b, uint16(m.Code))
}

func (m *PeerReply) decode(r *reader) {
	m.ID = r.u64()
	m.Len = r.i64()
	m.Zero = r.bool()
	m.Code = Code(r.u16())
}

func (m *PeerReply) check(payload int) error {
	if err := checkReadLen(m.Len); err != nil {
		return err
	}
	want := m.Len
	if m.Zero || m.Code != CodeNone {
		want = 0
	}
	return checkPayload(payload, want)
}
