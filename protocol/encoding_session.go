package protocol

import (
	"cmp"
	"fmt"
)

// Type implements Message.
func (*NodeHello) Type() Type { return TypeNodeHello }

func (m *NodeHello) encode(b []byte) []byte {
	b = putU16(b, m.Major)
	b = putU16(b, m.Minor)
	b = putU64(b, m.Features)
	b = putU64(b, m.Instance)
	return putName(b, m.Name)
}

func (m *NodeHello) decode(r *reader) {
	m.Major = r.u16()
	m.Minor = r.u16()
	m.Features = r.u64()
	m.Instance = r.u64()
	m.Name = r.name(m.Name)
}

func (m *NodeHello) check(int) error { return checkName(m.Name) }

// Type implements Message.
func (*Ping) Type() Type { return TypePing }

func (m *Ping) encode(b []byte) []byte { return putI64(putU64(b, m.ID), m.Time) }

func (m *Ping) decode(r *reader) {
	m.ID = r.u64()
	m.Time = r.i64()
}

func (m *Ping) check(int) error { return nil }

// Type implements Message.
func (*Pong) Type() Type { return TypePong }

func (m *Pong) encode(b []byte) []byte { return putI64(putU64(b, m.ID), m.Time) }

func (m *Pong) decode(r *reader) {
	m.ID = r.u64()
	m.Time = r.i64()
}

func (m *Pong) check(int) error { return nil }

// Type implements Message.
func (*StreamOpen) Type() Type { return TypeStreamOpen }

func (m *StreamOpen) encode(b []byte) []byte {
	b = append(b, byte(m.Kind))
	b = putU64(b, m.Attempt)
	return putName(b, m.Volume)
}

func (m *StreamOpen) decode(r *reader) {
	m.Kind = StreamKind(r.u8())
	m.Attempt = r.u64()
	m.Volume = r.name(m.Volume)
}

func (m *StreamOpen) check(int) error {
	return cmp.Or(
		checkEnum("stream kind", uint8(m.Kind), uint8(StreamWrite), uint8(StreamBulk)),
		checkName(m.Volume))
}

// Type implements Message.
func (*ConnectAsk) Type() Type { return TypeConnectAsk }

func (m *ConnectAsk) encode(b []byte) []byte { return putName(b, m.Volume) }

func (m *ConnectAsk) decode(r *reader) { m.Volume = r.name(m.Volume) }

func (m *ConnectAsk) check(int) error { return checkName(m.Volume) }

// Type implements Message.
func (*ReachAsk) Type() Type { return TypeReachAsk }

func (m *ReachAsk) encode(b []byte) []byte { return putU64(b, m.ID) }

func (m *ReachAsk) decode(r *reader) { m.ID = r.u64() }

func (m *ReachAsk) check(int) error { return nil }

// Type implements Message.
func (*ReachAnswer) Type() Type { return TypeReachAnswer }

func (m *ReachAnswer) encode(b []byte) []byte {
	b = putU32(putI64(putU64(b, m.ID), m.RTT), m.Largest)
	return putText(putText(putText(b, m.Address), m.Build), m.Reason)
}

func (m *ReachAnswer) decode(r *reader) {
	m.ID = r.u64()
	m.RTT = r.i64()
	m.Largest = r.u32()
	m.Address = r.text(m.Address)
	m.Build = r.text(m.Build)
	m.Reason = r.text(m.Reason)
}

func (m *ReachAnswer) check(int) error { return nil }

// Type implements Message.
func (*Failover) Type() Type { return TypeFailover }

func (m *Failover) encode(b []byte) []byte {
	b = append(b, byte(m.Standing))
	b = putBool(putBool(b, m.Paused), m.Move)
	b = putU64(putU64(b, m.Change), m.Vote)
	return putText(putName(putName(b, m.Volume), m.By), m.Reason)
}

func (m *Failover) decode(r *reader) {
	m.Standing = Standing(r.u8())
	m.Paused = r.bool()
	m.Move = r.bool()
	m.Change = r.u64()
	m.Vote = r.u64()
	m.Volume = r.name(m.Volume)
	m.By = r.name(m.By)
	m.Reason = r.text(m.Reason)
}

func (m *Failover) check(int) error {
	return cmp.Or(
		checkEnum("standing", uint8(m.Standing), uint8(StandingOff), uint8(StandingStopped)),
		checkName(m.Volume), checkNameOrNone(m.By))
}

// String returns the word shown to people.
func (s Standing) String() string {
	return word(uint8(s), "off", "ready", "unable", "starting", "running", "stopping", "stopped")
}

// Type implements Message.
func (*Close) Type() Type { return TypeClose }

func (m *Close) encode(b []byte) []byte { return putText(putU16(b, uint16(m.Code)), m.Text) }

func (m *Close) decode(r *reader) {
	m.Code = Code(r.u16())
	m.Text = r.text(m.Text)
}

func (m *Close) check(int) error { return nil }

// Type implements Message.
func (*Join) Type() Type { return TypeJoin }

func (m *Join) encode(b []byte) []byte { return append(b, m.Ticket[:]...) }

func (m *Join) decode(r *reader) { copy(m.Ticket[:], r.take(JoinTicketLen)) }

func (m *Join) check(int) error { return nil }

// String returns the word shown to people.
func (k StreamKind) String() string { return word(uint8(k), "?", "write", "bulk") }

// String returns the word used in logs.
func (o DataOp) String() string { return word(uint8(o), "?", "write", "zero", "trim", "flush") }

// String returns 32 hexadecimal digits.
func (v VolumeID) String() string { return fmt.Sprintf("%x", v[:]) }
