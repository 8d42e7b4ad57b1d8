package protocol

// Type implements Message.
func (*Ballot) Type() Type { return TypeBallot }

func (m *Ballot) encode(b []byte) []byte {
	b = putU64(b, m.Term)
	b = putU64(b, uint64(m.Voted))
	b = putU64(b, m.Floor)
	b = putU64(b, m.Overruled)
	b = putBool(b, m.Witness)
	b = putBool(b, m.Left)
	b = putBool(b, m.Serving)
	return putText(b, m.Rules)
}

func (m *Ballot) decode(r *reader) {
	m.Term = r.u64()
	m.Voted = Generation(r.u64())
	m.Floor = r.u64()
	m.Overruled = r.u64()
	m.Witness = r.bool()
	m.Left = r.bool()
	m.Serving = r.bool()
	m.Rules = r.text(m.Rules)
}

func (m *Ballot) check(int) error { return nil }

// Type implements Message.
func (*Claim) Type() Type { return TypeClaim }

func (m *Claim) encode(b []byte) []byte {
	b = putU64(b, m.Term)
	b = putI64(b, m.Stamp)
	b = putU64(b, uint64(m.Current))
	b = putU64(b, m.Overruled)
	return putGenerations(b, m.History)
}

func (m *Claim) decode(r *reader) {
	m.Term = r.u64()
	m.Stamp = r.i64()
	m.Current = Generation(r.u64())
	m.Overruled = r.u64()
	m.History = r.generations(m.History)
}

func (m *Claim) check(int) error { return checkCount("generations", len(m.History), HistoryMax) }

// Type implements Message.
func (*ClaimAnswer) Type() Type { return TypeClaimAnswer }

func (m *ClaimAnswer) encode(b []byte) []byte {
	b = putI64(b, m.Stamp)
	b = putU64(b, m.Term)
	b = putU64(b, uint64(m.Current))
	return append(b, byte(m.No))
}

func (m *ClaimAnswer) decode(r *reader) {
	m.Stamp = r.i64()
	m.Term = r.u64()
	m.Current = Generation(r.u64())
	m.No = NoVote(r.u8())
}

func (m *ClaimAnswer) check(int) error {
	return checkEnum("vote", uint8(m.No), uint8(VoteYes), uint8(NoFollow))
}

// Type implements Message.
func (*Leave) Type() Type { return TypeLeave }

func (*Leave) encode(b []byte) []byte { return b }

func (*Leave) decode(*reader) {}

func (*Leave) check(int) error { return nil }

// Type implements Message.
func (*Readmit) Type() Type { return TypeReadmit }

func (*Readmit) encode(b []byte) []byte { return b }

func (*Readmit) decode(*reader) {}

func (*Readmit) check(int) error { return nil }

// Type implements Message.
func (*Bond) Type() Type { return TypeBond }

func (*Bond) encode(b []byte) []byte { return b }

func (*Bond) decode(*reader) {}

func (*Bond) check(int) error { return nil }
