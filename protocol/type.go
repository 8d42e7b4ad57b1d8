package protocol

import "fmt"

// Type is the type of a frame: one for each message struct. Values are part of
// the wire and never reused.
type Type uint8

// Frame types. Control stream 1-15, volume handshake and state 16-31, writes
// 32-47, resync on the write stream 48-63, bulk stream 64-79.
const (
	TypeNodeHello   Type = 1
	TypePing        Type = 2
	TypePong        Type = 3
	TypeStreamOpen  Type = 4
	TypeConnectAsk  Type = 5
	TypeClose       Type = 6
	TypeJoin        Type = 7
	TypeReachAsk    Type = 8
	TypeReachAnswer Type = 9
	TypeFailover    Type = 10

	TypeHello          Type = 16
	TypeVerdict        Type = 17
	TypeRefuse         Type = 18
	TypeBye            Type = 19
	TypeState          Type = 20
	TypePromoteAsk     Type = 21
	TypePromoteAnswer  Type = 22
	TypeHandover       Type = 23
	TypeHandoverAnswer Type = 24
	TypeBallot         Type = 25
	TypeClaim          Type = 26
	TypeClaimAnswer    Type = 27
	TypeLeave          Type = 28
	TypeReadmit        Type = 29
	TypeBond           Type = 30

	TypeData          Type = 32
	TypeAck           Type = 33
	TypeStable        Type = 34
	TypeNewGeneration Type = 35
	TypeGenerationAck Type = 36
	TypePeerRead      Type = 37
	TypeGoneAhead     Type = 38

	TypeBitmapPart  Type = 48
	TypeBitmapDone  Type = 49
	TypeSyncStart   Type = 50
	TypeSyncReady   Type = 51
	TypeSyncDone    Type = 52
	TypeSyncDoneAck Type = 53

	TypeSyncWrite   Type = 64
	TypeSyncZero    Type = 65
	TypeSyncDigests Type = 66
	TypeSyncDiffers Type = 67
	TypeSyncAck     Type = 68
	TypeSyncFlush   Type = 69
	TypeSyncFlushed Type = 70
	TypePeerReply   Type = 71
)

// smallBodyMax bounds the body of every type but BitmapPart, in bytes. The
// largest is Hello: 15 slots of 2+64+8+8 bytes, 32 generations of 8, and 180
// others are 1666; the rest is room for fields of later minor versions.
const smallBodyMax = 4 << 10

// typeNames has a name for every type of this version.
var typeNames = map[Type]string{}

// known is typeNames as an array, for the hot path.
var known [TypePeerReply + 1]bool

func init() {
	for t := range Type(len(known)) {
		if m := newMessage(t); m != nil {
			name := fmt.Sprintf("%T", m)
			typeNames[t] = name[len("*protocol."):]
			known[t] = true
		}
	}
}

// String returns the name of the message struct.
func (t Type) String() string {
	if n, ok := typeNames[t]; ok {
		return n
	}
	return fmt.Sprintf("type(%d)", uint8(t))
}

// newMessage returns an empty message of a type, nil for an unknown type.
func newMessage(t Type) Message {
	switch t {
	case TypeNodeHello:
		return new(NodeHello)
	case TypePing:
		return new(Ping)
	case TypePong:
		return new(Pong)
	case TypeStreamOpen:
		return new(StreamOpen)
	case TypeConnectAsk:
		return new(ConnectAsk)
	case TypeClose:
		return new(Close)
	case TypeJoin:
		return new(Join)
	case TypeReachAsk:
		return new(ReachAsk)
	case TypeReachAnswer:
		return new(ReachAnswer)
	case TypeFailover:
		return new(Failover)
	case TypeHello:
		return new(Hello)
	case TypeVerdict:
		return new(Verdict)
	case TypeRefuse:
		return new(Refuse)
	case TypeBye:
		return new(Bye)
	case TypeState:
		return new(State)
	case TypePromoteAsk:
		return new(PromoteAsk)
	case TypePromoteAnswer:
		return new(PromoteAnswer)
	case TypeHandover:
		return new(Handover)
	case TypeHandoverAnswer:
		return new(HandoverAnswer)
	case TypeBallot:
		return new(Ballot)
	case TypeClaim:
		return new(Claim)
	case TypeClaimAnswer:
		return new(ClaimAnswer)
	case TypeLeave:
		return new(Leave)
	case TypeReadmit:
		return new(Readmit)
	case TypeBond:
		return new(Bond)
	case TypeData:
		return new(Data)
	case TypeAck:
		return new(Ack)
	case TypeStable:
		return new(Stable)
	case TypeNewGeneration:
		return new(NewGeneration)
	case TypeGenerationAck:
		return new(GenerationAck)
	case TypeGoneAhead:
		return new(GoneAhead)
	case TypePeerRead:
		return new(PeerRead)
	case TypeBitmapPart:
		return new(BitmapPart)
	case TypeBitmapDone:
		return new(BitmapDone)
	case TypeSyncStart:
		return new(SyncStart)
	case TypeSyncReady:
		return new(SyncReady)
	case TypeSyncDone:
		return new(SyncDone)
	case TypeSyncDoneAck:
		return new(SyncDoneAck)
	case TypeSyncWrite:
		return new(SyncWrite)
	case TypeSyncZero:
		return new(SyncZero)
	case TypeSyncDigests:
		return new(SyncDigests)
	case TypeSyncDiffers:
		return new(SyncDiffers)
	case TypeSyncAck:
		return new(SyncAck)
	case TypeSyncFlush:
		return new(SyncFlush)
	case TypeSyncFlushed:
		return new(SyncFlushed)
	case TypePeerReply:
		return new(PeerReply)
	}
	return nil
}

func (t Type) known() bool { return int(t) < len(known) && known[t] }

func (t Type) bodyMax() int {
	if t == TypeBitmapPart {
		return BodyMax
	}
	return smallBodyMax
}

func (t Type) payloadMax() int {
	if t == TypePeerReply {
		return ReadMax
	}
	if t == TypeData || t == TypeSyncWrite {
		return PayloadMax
	}
	return 0
}
