package meta

import (
	"github.com/qrbd/qrbd/protocol"
)

// Super is what a node remembers of a volume besides bitmaps and activity map.
type Super struct {
	Volume  protocol.VolumeID // zero: not yet given
	Size    int64             // bytes; never changes
	Node    string            // this node's name
	Name    string            // the volume's name
	Disk    protocol.Disk     // as last known
	Primary bool              // was primary: durable before the first write is served, cleared on demote; after a crash: crashed primary
	Clean   bool              // closed in order: the activity map is empty and all bitmap pages are written
	Flags   uint32            // the owner's

	Current protocol.Generation
	History []protocol.Generation // newest first, at most protocol.HistoryMax

	Seq   uint64     // no sequence from here on was ever used; persisted in steps
	Peers []PeerSlot // at most protocol.PeersMax; the index is the bitmap region. Peers are appended, never moved
}

// PeerSlot is what a node remembers of one peer.
type PeerSlot struct {
	Name   string
	Bitmap protocol.Generation // at which the peer was last in sync; 0: it is in sync
	Disk   protocol.Disk       // as last known
	Flags  uint32              // the owner's
}

// Check compares what the file was created for with what is configured. A
// difference is ErrMismatch naming both values.
func Check(s *Super, wantSize int64, wantName, wantNode string) error {
	panic("meta: not built yet")
}
