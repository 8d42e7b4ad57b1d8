package replica

import (
	"github.com/qrbd/qrbd/protocol"
)

// EffectKind says what an Effect asks for.
type EffectKind uint8

// The effects.
const (
	DoLocal      EffectKind = iota // execute Req on the local store, then call LocalDone
	DoSend                         // append Data (payload: Req's) or Msg to Peer's write stream
	DoComplete                     // Req is finished with Err
	DoPersist                      // metadata changed: MetaBatch, commit, MetaDone, soon
	DoDrop                         // end Peer's connection, after what was sent; Err says why
	DoConnect                      // have a connection to Peer made
	DoSync                         // run Peer's plan (Plan) until it is done or the peer is lost
	DoReply                        // call Reply with Err
	DoEvent                        // tell Event
	DoResume                       // a held stream of Peer may go on (PeerData)
	DoAskTarget                    // Peer is about to overwrite this replica: may it? Then call TargetAllowed with Token
	DoArchive                      // Peer is about to overwrite what Discard says: prepare to keep it, then call Archived
	DoArchiveEnd                   // the sync of Discard has ended
	DoServe                        // answer Peer's Read from the local store, on the bulk stream; Err: with an error
	DoFence                        // Peer is out of reach: see to it that it cannot take over, then call FenceAnswered with Token
	DoSettle                       // call StoreSettled when the store is done with what came over lost connections
)

// Effect is one thing the owner is to do.
type Effect struct {
	Kind  EffectKind
	Peer  PeerID
	Req   *Request
	Data  protocol.Data
	Msg   protocol.Message
	Err   error
	Reply func(error)
	Event Event

	Discard *Discard // also of DoAskTarget; nil: nothing is lost
	Token   uint64
	Read    protocol.PeerRead
}

// Event is a state change, for logs and watchers.
type Event struct {
	Peer     string // "" for the volume itself
	Field    string
	Old, New string
	Reason   string
}
