package protocol

import (
	"cmp"
	"fmt"
)

// helloFlags are the flags of Hello that this version knows.
const helloFlags = HelloCrashedPrimary | HelloReconnect | HelloDiscard | HelloFullTarget | HelloPeerFenced | HelloReplayed | HelloTarget | HelloWasPrimary |
	HelloShaken | HelloMayLack |
	HelloRepairTarget | HelloRepairSource | HelloUnvoted | HelloOwnWrites | HelloYourWrites | HelloOtherWrites

// Type implements Message.
func (*Hello) Type() Type { return TypeHello }

func (m *Hello) encode(b []byte) []byte {
	b = append(b, m.Volume[:]...)
	b = putI64(b, m.Size)
	b = putU32(b, m.Block)
	b = putU64(b, m.Attempt)
	b = putU64(b, m.Instance)
	b = append(b, byte(m.Role), byte(m.Disk), byte(m.Mode))
	b = putU32(b, m.Flags)
	b = putU64(b, m.Seq)
	b = putU64(b, uint64(m.Current))
	b = putSlots(b, m.Slots)
	b = putGenerations(b, m.History)
	b = putName(b, m.Primary)
	b = m.Policy.encode(b)
	return m.Changes.encode(b)
}

func (m *Hello) decode(r *reader) {
	copy(m.Volume[:8], r.take(8))
	copy(m.Volume[8:], r.take(8))
	m.Size = r.i64()
	m.Block = r.u32()
	m.Attempt = r.u64()
	m.Instance = r.u64()
	m.Role = Role(r.u8())
	m.Disk = Disk(r.u8())
	m.Mode = Mode(r.u8())
	m.Flags = r.u32()
	m.Seq = r.u64()
	m.Current = Generation(r.u64())
	m.Slots = r.slots(m.Slots)
	m.History = r.generations(m.History)
	m.Primary = r.name(m.Primary)
	m.Policy.decode(r)
	m.Changes.decode(r)
}

func (m *Hello) check(int) error {
	if m.Size < 0 {
		return fmt.Errorf("size %d: %w", m.Size, ErrMalformed)
	}
	if m.Flags&^helloFlags != 0 {
		return fmt.Errorf("hello flags %#x: %w", m.Flags, ErrMalformed)
	}
	return cmp.Or(
		checkRole(m.Role),
		checkDisk(m.Disk),
		checkEnum("mode", uint8(m.Mode), uint8(ModeA), uint8(ModeC)),
		checkSlots(m.Slots),
		checkCount("generations", len(m.History), HistoryMax),
		checkNameOrNone(m.Primary),
		m.Policy.check(),
		m.Changes.check())
}

// checkRole and checkDisk: a sender knows its own state, so unknown is refused.
func checkRole(r Role) error { return checkEnum("role", uint8(r), uint8(Secondary), uint8(Primary)) }

func checkDisk(d Disk) error { return checkEnum("disk", uint8(d), uint8(Diskless), uint8(UpToDate)) }

func putSlots(b []byte, slots []PeerSlot) []byte {
	b = putU16(b, uint16(len(slots)))
	for i := range slots {
		b = putName(b, slots[i].Name)
		b = putU64(b, uint64(slots[i].Bitmap))
		b = putU64(b, slots[i].Dirty)
	}
	return b
}

func (r *reader) slots(old []PeerSlot) []PeerSlot {
	slots := resize(old, r.count("slots", PeersMax))
	for i := range slots {
		s := &slots[i]
		s.Name = r.name(s.Name)
		s.Bitmap = Generation(r.u64())
		s.Dirty = r.u64()
	}
	return slots
}

func checkSlots(slots []PeerSlot) error {
	if err := checkCount("slots", len(slots), PeersMax); err != nil {
		return err
	}
	for i := range slots {
		if err := checkName(slots[i].Name); err != nil {
			return err
		}
	}
	return nil
}

// Type implements Message.
func (*Verdict) Type() Type { return TypeVerdict }

func (m *Verdict) encode(b []byte) []byte {
	b = putU64(b, m.Attempt)
	b = append(b, byte(m.Strategy))
	b = putBool(b, m.Digest)
	return putText(b, m.Rule)
}

func (m *Verdict) decode(r *reader) {
	m.Attempt = r.u64()
	m.Strategy = Strategy(r.u8())
	m.Digest = r.bool()
	m.Rule = r.text(m.Rule)
}

func (m *Verdict) check(int) error {
	return checkEnum("strategy", uint8(m.Strategy), uint8(NoSync), uint8(RefusedStrategy))
}

// Type implements Message.
func (*Refuse) Type() Type { return TypeRefuse }

func (m *Refuse) encode(b []byte) []byte { return putText(putU16(b, uint16(m.Code)), m.Text) }

func (m *Refuse) decode(r *reader) {
	m.Code = Code(r.u16())
	m.Text = r.text(m.Text)
}

func (m *Refuse) check(int) error { return nil }

// Type implements Message.
func (*Bye) Type() Type { return TypeBye }

func (m *Bye) encode(b []byte) []byte {
	b = putU16(b, uint16(m.Code))
	b = putBool(b, m.Outdate)
	return putText(b, m.Text)
}

func (m *Bye) decode(r *reader) {
	m.Code = Code(r.u16())
	m.Outdate = r.bool()
	m.Text = r.text(m.Text)
}

func (m *Bye) check(int) error { return nil }

// Type implements Message.
func (*State) Type() Type { return TypeState }

func (m *State) encode(b []byte) []byte {
	b = append(b, byte(m.Role), byte(m.Disk))
	b = putU64(b, uint64(m.Current))
	return putName(b, m.Primary)
}

func (m *State) decode(r *reader) {
	m.Role = Role(r.u8())
	m.Disk = Disk(r.u8())
	m.Current = Generation(r.u64())
	m.Primary = r.name(m.Primary)
}

func (m *State) check(int) error {
	return cmp.Or(checkRole(m.Role), checkDisk(m.Disk), checkNameOrNone(m.Primary))
}

// Type implements Message.
func (*PromoteAsk) Type() Type { return TypePromoteAsk }

func (m *PromoteAsk) encode(b []byte) []byte { return putBool(putU64(b, m.ID), m.Force) }

func (m *PromoteAsk) decode(r *reader) {
	m.ID = r.u64()
	m.Force = r.bool()
}

func (m *PromoteAsk) check(int) error { return nil }

// Type implements Message.
func (*PromoteAnswer) Type() Type { return TypePromoteAnswer }

func (m *PromoteAnswer) encode(b []byte) []byte {
	b = putU64(b, m.ID)
	b = putBool(b, m.Yes)
	b = putU16(b, uint16(m.Code))
	return putText(b, m.Text)
}

func (m *PromoteAnswer) decode(r *reader) {
	m.ID = r.u64()
	m.Yes = r.bool()
	m.Code = Code(r.u16())
	m.Text = r.text(m.Text)
}

func (m *PromoteAnswer) check(int) error { return nil }

// Type implements Message.
func (*Handover) Type() Type { return TypeHandover }

func (m *Handover) encode(b []byte) []byte {
	b = putU64(b, m.ID)
	b = putU64(b, uint64(m.Current))
	return putU64(b, m.Seq)
}

func (m *Handover) decode(r *reader) {
	m.ID = r.u64()
	m.Current = Generation(r.u64())
	m.Seq = r.u64()
}

func (m *Handover) check(int) error { return nil }

// Type implements Message.
func (*HandoverAnswer) Type() Type { return TypeHandoverAnswer }

func (m *HandoverAnswer) encode(b []byte) []byte {
	b = putU64(b, m.ID)
	b = putBool(b, m.Yes)
	return putText(b, m.Text)
}

func (m *HandoverAnswer) decode(r *reader) {
	m.ID = r.u64()
	m.Yes = r.bool()
	m.Text = r.text(m.Text)
}

func (m *HandoverAnswer) check(int) error { return nil }
