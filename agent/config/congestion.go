package config

import (
	"fmt"

	"github.com/qrbd/qrbd/protocol"
)

// OnCongestion is what happens when a peer under protocol A takes less than clients write
// and its buffer is full.
type OnCongestion uint8

// The values of on_congestion.
const (
	CongestionBlock     OnCongestion = iota // writes wait for room
	CongestionPullAhead                     // it gets no more, and catches up later
)

// String returns the word in the configuration.
func (o OnCongestion) String() string {
	if o == CongestionPullAhead {
		return "pull-ahead"
	}
	return "block"
}

func parseOnCongestion(s string) (OnCongestion, error) {
	for _, o := range []OnCongestion{CongestionBlock, CongestionPullAhead} {
		if s == o.String() {
			return o, nil
		}
	}
	return 0, fmt.Errorf("%q: write \"block\" (writes wait for room in send_buffer) or \"pull-ahead\" (the peer gets no more writes, and catches up later)", s)
}

// Bounds of send_buffer and congestion_fill, bytes. What is in a buffer is in memory.
const (
	SendBufferDefault = 32 << 20
	sendBufferMin     = 1 << 20
	sendBufferMax     = 4 << 30
	congestionFillMin = 64 << 10
)

// decodeCongestion reads what is done about peers under protocol A that lag behind.
// REQUIRES: the volume's peers, quorum and fencing are known.
func decodeCongestion(s *section, v *Volume) {
	buffer := readSize(s, "send_buffer", "")
	policy := read(s, "on_congestion", CongestionBlock.String(), parseOnCongestion)
	fill := readSize(s, "congestion_fill", "")
	far := false
	for i := range v.Peers {
		if p := &v.Peers[i]; p.Mode == protocol.ModeA && !p.Witness {
			far = true
			p.SendBuffer, p.OnCongestion, p.CongestionFill = buffer, policy, fill
		}
	}
	if !far {
		for _, key := range []string{"send_buffer", "on_congestion", "congestion_fill"} {
			if _, given := s.keys[key]; given {
				s.fault(key, "is for peers with protocol A, and the volume has none: under B and C every write waits for the peer")
			}
		}
		return
	}
	has := int64(SendBufferDefault)
	if buffer > 0 {
		has = buffer
	}
	switch {
	case buffer != 0 && (buffer < sendBufferMin || buffer > sendBufferMax):
		s.fault("send_buffer", "%d bytes is not between 1MiB and 4GiB", buffer)
	case fill != 0 && policy != CongestionPullAhead:
		s.fault("congestion_fill", "says nothing without on_congestion = \"pull-ahead\"")
	case fill != 0 && (fill < congestionFillMin || fill > has):
		s.fault("congestion_fill", "%d bytes is not between 64KiB and send_buffer, %d bytes", fill, has)
	case policy == CongestionPullAhead && !v.Quorum.Off():
		s.fault("on_congestion", "\"pull-ahead\" is not for a volume with a quorum: a node that is behind would have a vote, and not the data")
	case policy == CongestionPullAhead && v.Fencing != FencingDontCare:
		s.fault("on_congestion", "\"pull-ahead\" is not for a volume with fencing: a primary would go on without a peer before it is certain that this one does not take over")
	}
}

// SendBuffers returns how many bytes the volume's peers may keep from being freed.
func (v *Volume) SendBuffers() int64 {
	most := int64(0)
	for _, p := range v.Peers {
		switch {
		case p.SendBuffer > 0:
			most = max(most, p.SendBuffer)
		case p.OnCongestion == CongestionPullAhead:
			most = max(most, SendBufferDefault)
		}
	}
	return most
}
