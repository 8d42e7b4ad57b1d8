package protocol

import (
	"bytes"
	"fmt"
	"math"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

// TestRoundTrip draws any legal message of every type and expects it back.
func TestRoundTrip(t *testing.T) {
	for i := range 256 {
		if !Type(i).known() {
			continue
		}
		t.Run(Type(i).String(), func(t *testing.T) {
			var d Decoder
			rapid.Check(t, func(t *rapid.T) {
				m, payload := drawMessage(t, Type(i))
				before := fmt.Sprintf("%+v", m)
				got, gotPayload, err := decodeFrame(&d, append(AppendFrame(nil, m, payload), payload...))
				if err != nil {
					t.Fatalf("%+v: %v", m, err)
				}
				if !equal(got, m) || !bytes.Equal(payload, gotPayload) {
					t.Fatalf("got %+v, want %+v", got, m)
				}
				if after := fmt.Sprintf("%+v", m); after != before {
					t.Fatalf("encoding changed %s to %s", before, after)
				}
			})
		})
	}
}

// drawMessage fills the fields by their types, then mends what a struct's
// contract ties together.
func drawMessage(t *rapid.T, typ Type) (Message, []byte) {
	m := newMessage(typ)
	drawFields(t, reflect.ValueOf(m).Elem())
	var payload []byte
	switch m := m.(type) {
	case *Data:
		m.Flags = rapid.SampledFrom([]uint8{0, DataFUA}).Draw(t, "flags")
		switch m.Op {
		case DataWrite:
			payload = rapid.SliceOfN(rapid.Byte(), 0, 5000).Draw(t, "payload")
			m.Len = int64(len(payload))
		case DataFlush:
			m.Off, m.Len = 0, 0
		case DataZero:
			m.Flags |= DataNoHole
		case DataTrim:
		}
		m.Off = min(m.Off, math.MaxInt64-m.Len)
	case *SyncWrite:
		payload = rapid.SliceOfN(rapid.Byte(), 0, 5000).Draw(t, "payload")
		m.Len = int64(len(payload))
		m.Off = min(m.Off, math.MaxInt64-m.Len)
	case *SyncZero:
		m.Off = min(m.Off, math.MaxInt64-m.Len)
	case *SyncDigests:
		m.Digests = rapid.SliceOfN(rapid.Uint64(), 1, DigestsMax).Draw(t, "digests")
		m.Len = int64(len(m.Digests)*DigestBlock) - rapid.Int64Range(0, DigestBlock-1).Draw(t, "short by")
		m.Off = min(m.Off, math.MaxInt64-m.Len) / DigestBlock * DigestBlock
	case *BitmapPart:
		m.First %= bitmapFirstMax
		m.Words = rapid.SliceOfN(rapid.Uint64(), 1, 300).Draw(t, "words")
	case *PeerRead:
		m.Len = 1 + m.Len%ReadMax
		m.Off = min(m.Off, math.MaxInt64-m.Len)
	case *PeerReply:
		m.Len = 1 + m.Len%5000
		if !m.Zero && m.Code == CodeNone {
			payload = rapid.SliceOfN(rapid.Byte(), int(m.Len), int(m.Len)).Draw(t, "payload")
		}
	case *Hello:
		m.Flags &= helloFlags
	}
	return m, payload
}

func drawFields(t *rapid.T, v reflect.Value) {
	for i := range v.NumField() {
		f, name := v.Field(i), v.Type().Field(i).Name
		f.Set(reflect.ValueOf(drawField(t, f.Interface(), name)))
	}
}

func drawField(t *rapid.T, field any, name string) any {
	text := rapid.StringOfN(rapid.RuneFrom([]rune("azAZ09-_.ü€ 字")), 1, 20, NameMax)
	switch field.(type) {
	case Role:
		return rapid.SampledFrom([]Role{Secondary, Primary}).Draw(t, name)
	case Disk:
		return Disk(rapid.Uint8Range(uint8(Diskless), uint8(UpToDate)).Draw(t, name))
	case Mode:
		return Mode(rapid.Uint8Range(1, 3).Draw(t, name))
	case Strategy:
		return Strategy(rapid.Uint8Range(1, 9).Draw(t, name))
	case NoVote:
		return NoVote(rapid.Uint8Range(uint8(VoteYes), uint8(NoFollow)).Draw(t, name))
	case Standing:
		return Standing(rapid.Uint8Range(uint8(StandingOff), uint8(StandingStopped)).Draw(t, name))
	case StreamKind:
		return StreamKind(rapid.Uint8Range(1, 2).Draw(t, name))
	case DataOp:
		return DataOp(rapid.Uint8Range(1, 4).Draw(t, name))
	case Code:
		return Code(rapid.Uint16().Draw(t, name))
	case Generation:
		return Generation(rapid.Uint64().Draw(t, name))
	case [JoinTicketLen]byte:
		return [JoinTicketLen]byte(rapid.SliceOfN(rapid.Byte(), JoinTicketLen, JoinTicketLen).Draw(t, name))
	case VolumeID:
		return VolumeID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, name))
	case SplitPolicy:
		p := SplitPolicy{Node: text.Draw(t, "node")}
		for _, a := range []*AfterSB{&p.Pri0, &p.Pri1, &p.Pri2} {
			*a = AfterSB(rapid.Uint8Range(0, uint8(CallPriLost)).Draw(t, "policy"))
		}
		return p
	case Changes:
		n := func() int64 { return rapid.Int64Range(0, math.MaxInt64/2).Draw(t, "n") }
		c := Changes{First: n(), Last: n(), Ranges: []Range{}}
		for range rapid.IntRange(0, ChangesMax).Draw(t, "ranges") {
			c.Ranges = append(c.Ranges, Range{n(), n()})
		}
		return c
	case string:
		return text.Draw(t, name)
	case bool:
		return rapid.Bool().Draw(t, name)
	case uint8:
		return rapid.Uint8().Draw(t, name)
	case uint16:
		return rapid.Uint16().Draw(t, name)
	case uint32:
		return rapid.Uint32().Draw(t, name)
	case uint64:
		return rapid.Uint64().Draw(t, name)
	case int64:
		if name == "Time" {
			return rapid.Int64().Draw(t, name)
		}
		return rapid.Int64Range(0, math.MaxInt64).Draw(t, name)
	case []uint64:
		return []uint64(nil) // drawMessage knows the limits
	case [DigestsMax / 64]uint64:
		return [DigestsMax / 64]uint64(rapid.SliceOfN(rapid.Uint64(), 4, 4).Draw(t, name))
	case []string:
		return rapid.SliceOfN(text, 0, PeersMax).Draw(t, name)
	case []Generation:
		return rapid.SliceOfN(rapid.Map(rapid.Uint64(), func(n uint64) Generation { return Generation(n) }), 0, HistoryMax).Draw(t, name)
	case []PeerSlot:
		return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) (s PeerSlot) {
			drawFields(t, reflect.ValueOf(&s).Elem())
			return s
		}), 0, PeersMax).Draw(t, name)
	case []PeerStable:
		return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) (s PeerStable) {
			drawFields(t, reflect.ValueOf(&s).Elem())
			return s
		}), 0, PeersMax).Draw(t, name)
	}
	panic(fmt.Sprintf("no generator for %s %T", name, field))
}
