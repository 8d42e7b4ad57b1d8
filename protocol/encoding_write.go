package protocol

import "fmt"

// Type implements Message.
func (*Data) Type() Type { return TypeData }

func (m *Data) encode(b []byte) []byte {
	b = append(b, byte(m.Op), m.Flags)
	b = putU64(b, m.Seq)
	b = putI64(b, m.Time)
	b = putI64(b, m.Off)
	return putI64(b, m.Len)
}

func (m *Data) decode(r *reader) {
	m.Op = DataOp(r.u8())
	m.Flags = r.u8()
	m.Seq = r.u64()
	m.Time = r.i64()
	m.Off = r.i64()
	m.Len = r.i64()
}

func (m *Data) check(payload int) error {
	wantPayload := int64(0)
	switch m.Op {
	case DataWrite:
		wantPayload = m.Len
	case DataZero, DataTrim:
	case DataFlush:
		if m.Off != 0 || m.Len != 0 {
			return fmt.Errorf("flush with a range of %d at %d: %w", m.Len, m.Off, ErrMalformed)
		}
	default:
		return fmt.Errorf("operation %d: %w", uint8(m.Op), ErrMalformed)
	}
	if m.Flags&^(DataFUA|DataNoHole) != 0 || m.Flags&DataNoHole != 0 && m.Op != DataZero {
		return fmt.Errorf("%v with flags %#x: %w", m.Op, m.Flags, ErrMalformed)
	}
	if err := checkRange(m.Off, m.Len); err != nil {
		return err
	}
	return checkPayload(payload, wantPayload)
}

func checkPayload(payload int, want int64) error {
	if want > PayloadMax {
		return fmt.Errorf("payload of %d bytes: %w", want, ErrTooLarge)
	}
	if int64(payload) != want {
		return fmt.Errorf("payload of %d bytes for %d: %w", payload, want, ErrMalformed)
	}
	return nil
}

// Type implements Message.
func (*Ack) Type() Type { return TypeAck }

func (m *Ack) encode(b []byte) []byte {
	b = putU64(b, m.Received)
	b = putU64(b, m.Applied)
	return putU64(b, m.Durable)
}

func (m *Ack) decode(r *reader) {
	m.Received = r.u64()
	m.Applied = r.u64()
	m.Durable = r.u64()
}

func (m *Ack) check(int) error { return nil }

// Type implements Message.
func (*Stable) Type() Type { return TypeStable }

func (m *Stable) encode(b []byte) []byte {
	b = putU16(b, uint16(len(m.Peers)))
	for i := range m.Peers {
		b = putName(b, m.Peers[i].Name)
		b = putU64(b, m.Peers[i].Durable)
		b = putBool(b, m.Peers[i].InSync)
		b = putBool(b, m.Peers[i].Settled)
	}
	return b
}

func (m *Stable) decode(r *reader) {
	m.Peers = resize(m.Peers, r.count("peers", PeersMax))
	for i := range m.Peers {
		p := &m.Peers[i]
		p.Name = r.name(p.Name)
		p.Durable = r.u64()
		p.InSync = r.bool()
		p.Settled = r.bool()
	}
}

func (m *Stable) check(int) error {
	if err := checkCount("peers", len(m.Peers), PeersMax); err != nil {
		return err
	}
	for i := range m.Peers {
		if err := checkName(m.Peers[i].Name); err != nil {
			return err
		}
	}
	return nil
}

// Type implements Message.
func (*NewGeneration) Type() Type { return TypeNewGeneration }

func (m *NewGeneration) encode(b []byte) []byte {
	b = putU64(b, uint64(m.Parent))
	b = putU64(b, uint64(m.Current))
	b = putU16(b, uint16(len(m.Weak)))
	for _, n := range m.Weak {
		b = putName(b, n)
	}
	return b
}

func (m *NewGeneration) decode(r *reader) {
	m.Parent = Generation(r.u64())
	m.Current = Generation(r.u64())
	m.Weak = resize(m.Weak, r.count("names", PeersMax))
	for i := range m.Weak {
		m.Weak[i] = r.name(m.Weak[i])
	}
}

func (m *NewGeneration) check(int) error { return checkNames(m.Weak) }

// Type implements Message.
func (*GoneAhead) Type() Type { return TypeGoneAhead }

func (*GoneAhead) encode(b []byte) []byte { return b }
func (*GoneAhead) decode(*reader)         {}
func (*GoneAhead) check(int) error        { return nil }

// Type implements Message.
func (*GenerationAck) Type() Type { return TypeGenerationAck }

func (m *GenerationAck) encode(b []byte) []byte { return putU64(b, uint64(m.Current)) }

func (m *GenerationAck) decode(r *reader) { m.Current = Generation(r.u64()) }

func (m *GenerationAck) check(int) error { return nil }
