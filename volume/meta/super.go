package meta

import (
	"encoding/binary"
	"fmt"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
)

// Super is what a node remembers of a volume besides bitmaps and activity map.
type Super struct {
	Volume  protocol.VolumeID // zero: not yet given
	Size    int64             // bytes; changed by Grow only
	Node    string            // this node's name
	Name    string            // the volume's name
	Disk    protocol.Disk     // as last known
	Primary bool              // was primary: durable before the first write is served, cleared on demote; after a crash: crashed primary
	Clean   bool              // closed in order: the activity map is empty and all bitmap pages are written
	Shaken  bool              // stopped without notice once, and may have lost what was not flushed; not found equal to another replica since
	Flags   uint32            // the owner's

	Current protocol.Generation
	History []protocol.Generation // newest first, at most protocol.HistoryMax

	Term  uint64              // of the primary that was followed last, on a volume with a quorum
	Voted protocol.Generation // its generation
	// Overruled: an operator's word counts more than what voters have followed in terms up
	// to here; 0: nobody has said so.
	Overruled uint64
	Floor     uint64 // no primary is followed in a term up to here

	Lost    protocol.Generation // given up, while the sync that overwrites it has not ended; 0: none
	Archive uint64              // file id of the only archive that counts as kept up unless it says itself that it is sealed; 0: none
	Seq     uint64              // no sequence from here on was ever used; persisted in steps
	Peers   []PeerSlot          // at most protocol.PeersMax; the index is the bitmap region. Peers are appended, never moved
}

// PeerSlot is what a node remembers of one peer.
type PeerSlot struct {
	Name   string
	Bitmap protocol.Generation // at which the peer was last in sync; 0: it is in sync
	Disk   protocol.Disk       // as last known
	Flags  uint32              // the owner's
	First  int64               // when what it may lack was written here, ns since 1970; 0: not known
	Last   int64
}

// Check compares what the file was created for with what is configured. A
// difference is ErrMismatch naming both values.
func Check(s *Super, wantSize int64, wantName, wantNode string) error {
	switch {
	case s.Name != wantName:
		return fmt.Errorf("%w: it belongs to volume %q, not %q", ErrMismatch, s.Name, wantName)
	case s.Node != wantNode:
		return fmt.Errorf("%w: volume %q was created on node %q, not %q", ErrMismatch, s.Name, s.Node, wantNode)
	case s.Size < wantSize:
		return fmt.Errorf("%w: volume %q was created with %d bytes, configured are %d: to make it larger run qrbd resize %s %dB", ErrMismatch, s.Name, s.Size, wantSize, s.Name, wantSize)
	case s.Size != wantSize:
		return fmt.Errorf("%w: volume %q was created with %d bytes, configured are %d", ErrMismatch, s.Name, s.Size, wantSize)
	}
	return nil
}

// Limits on disk. They do not follow the wire's.
const (
	nameMax    = 64
	historyMax = 32

	// The wire's limits must fit.
	_ = uint(nameMax - protocol.NameMax)
	_ = uint(historyMax - protocol.HistoryMax)
	_ = uint(peersMax - protocol.PeersMax)
)

// Offsets of the super page's content, from the start of the page.
const (
	atVolume   = 128  // 16
	atSize     = 144  // 8
	atCurrent  = 152  // 8
	atSeq      = 160  // 8
	atFlags    = 168  // 4
	atDisk     = 172  // 1
	atState    = 173  // 1: stateBits
	atHistory  = 174  // 1: generations
	atPeers    = 175  // 1: peers
	atBlock    = 176  // 4: bytes of a block
	atExtent   = 180  // 4: bytes of an extent
	atLost     = 184  // 8
	atNode     = 192  // 72
	atName     = 264  // 72
	atHistory0 = 336  // 8 each, historyMax
	atPeer0    = 592  // peerBytes each, peersMax; ends at 2,032
	atTimes0   = 2032 // 16 each, peersMax: First, Last; ends at 2,272
	atArchive  = 2272 // 8
	atTerm     = 2280 // 8
	atVoted    = 2288 // 8
	atOver     = 2296 // 8
	atFloor    = 2304 // 8

	// A name takes 72 bytes: 1 length, 64 text, 7 zero.

	peerBytes    = 96
	inPeerBitmap = 72 // 8
	inPeerFlags  = 80 // 4
	inPeerDisk   = 84 // 1
)

const (
	statePrimary = 1 << iota
	stateClean
	stateShaken
)

// validate says why the super page cannot be stored.
func (s *Super) validate() error {
	var why string
	switch {
	case s.Size <= 0 || s.Size > SizeMax:
		why = fmt.Sprintf("size %d, possible are 1 to %d bytes", s.Size, int64(SizeMax))
	case len(s.Node) > nameMax || len(s.Name) > nameMax:
		why = fmt.Sprintf("name of more than %d bytes: node %q, volume %q", nameMax, s.Node, s.Name)
	case s.Disk > protocol.UpToDate:
		why = fmt.Sprintf("disk state %v", s.Disk)
	case len(s.History) > historyMax:
		why = fmt.Sprintf("%d generations of history, possible are %d", len(s.History), historyMax)
	case len(s.Peers) > peersMax:
		why = fmt.Sprintf("%d peers, possible are %d", len(s.Peers), peersMax)
	}
	for _, p := range s.Peers {
		if len(p.Name) > nameMax || p.Disk > protocol.UpToDate {
			why = fmt.Sprintf("peer %q with disk state %v", p.Name, p.Disk)
		}
	}
	if why != "" {
		return fmt.Errorf("%w: %s", ErrInvalid, why)
	}
	return nil
}

// encode fills the content of page p. REQUIRES: validate.
func (s *Super) encode(p []byte) {
	clear(p[headerBytes:])
	le := binary.LittleEndian
	copy(p[atVolume:], s.Volume[:])
	le.PutUint64(p[atSize:], uint64(s.Size))
	le.PutUint64(p[atCurrent:], uint64(s.Current))
	le.PutUint64(p[atSeq:], s.Seq)
	le.PutUint32(p[atFlags:], s.Flags)
	le.PutUint64(p[atLost:], uint64(s.Lost))
	le.PutUint64(p[atArchive:], s.Archive)
	le.PutUint64(p[atTerm:], s.Term)
	le.PutUint64(p[atVoted:], uint64(s.Voted))
	le.PutUint64(p[atOver:], s.Overruled)
	le.PutUint64(p[atFloor:], s.Floor)
	p[atDisk] = byte(s.Disk)
	if s.Primary {
		p[atState] |= statePrimary
	}
	if s.Clean {
		p[atState] |= stateClean
	}
	if s.Shaken {
		p[atState] |= stateShaken
	}
	p[atHistory] = byte(len(s.History))
	p[atPeers] = byte(len(s.Peers))
	le.PutUint32(p[atBlock:], bitmap.BlockSize)
	le.PutUint32(p[atExtent:], bitmap.ExtentSize)
	putName(p[atNode:], s.Node)
	putName(p[atName:], s.Name)
	for i, g := range s.History {
		le.PutUint64(p[atHistory0+8*i:], uint64(g))
	}
	for i, peer := range s.Peers {
		q := p[atPeer0+peerBytes*i:]
		putName(q, peer.Name)
		le.PutUint64(q[inPeerBitmap:], uint64(peer.Bitmap))
		le.PutUint32(q[inPeerFlags:], peer.Flags)
		q[inPeerDisk] = byte(peer.Disk)
		t := p[atTimes0+16*i:]
		le.PutUint64(t, uint64(peer.First))
		le.PutUint64(t[8:], uint64(peer.Last))
	}
}

// decodeSuper reads the content of an intact super page.
func decodeSuper(p []byte) (Super, error) {
	le := binary.LittleEndian
	if b, e := le.Uint32(p[atBlock:]), le.Uint32(p[atExtent:]); b != bitmap.BlockSize || e != bitmap.ExtentSize {
		return Super{}, fmt.Errorf("%w: blocks of %d and extents of %d bytes", ErrDamaged, b, e)
	}
	history, peers := int(p[atHistory]), int(p[atPeers])
	if history > historyMax || peers > peersMax {
		return Super{}, fmt.Errorf("%w: %d generations, %d peers", ErrDamaged, history, peers)
	}
	s := Super{
		Size:    int64(le.Uint64(p[atSize:])),
		Disk:    protocol.Disk(p[atDisk]),
		Primary: p[atState]&statePrimary != 0,
		Clean:   p[atState]&stateClean != 0,
		Shaken:  p[atState]&stateShaken != 0,
		Flags:   le.Uint32(p[atFlags:]),
		Current: protocol.Generation(le.Uint64(p[atCurrent:])),
		Seq:     le.Uint64(p[atSeq:]),
		Lost:    protocol.Generation(le.Uint64(p[atLost:])),
		Archive: le.Uint64(p[atArchive:]),
		Term:    le.Uint64(p[atTerm:]),
		Voted:   protocol.Generation(le.Uint64(p[atVoted:])),

		Overruled: le.Uint64(p[atOver:]),
		Floor:     le.Uint64(p[atFloor:]),
	}
	copy(s.Volume[:], p[atVolume:])
	var ok [2]bool
	s.Node, ok[0] = nameAt(p[atNode:])
	s.Name, ok[1] = nameAt(p[atName:])
	if !ok[0] || !ok[1] {
		return Super{}, fmt.Errorf("%w: name of more than %d bytes", ErrDamaged, nameMax)
	}
	for i := range history {
		s.History = append(s.History, protocol.Generation(le.Uint64(p[atHistory0+8*i:])))
	}
	for i := range peers {
		q := p[atPeer0+peerBytes*i:]
		name, ok := nameAt(q)
		if !ok {
			return Super{}, fmt.Errorf("%w: name of peer %d has more than %d bytes", ErrDamaged, i, nameMax)
		}
		s.Peers = append(s.Peers, PeerSlot{
			Name:   name,
			Bitmap: protocol.Generation(le.Uint64(q[inPeerBitmap:])),
			Disk:   protocol.Disk(q[inPeerDisk]),
			Flags:  le.Uint32(q[inPeerFlags:]),
			First:  int64(le.Uint64(p[atTimes0+16*i:])),
			Last:   int64(le.Uint64(p[atTimes0+16*i+8:])),
		})
	}
	if err := s.validate(); err != nil {
		return Super{}, fmt.Errorf("%w: %v", ErrDamaged, err)
	}
	return s, nil
}

func putName(p []byte, name string) {
	p[0] = byte(len(name))
	copy(p[1:1+nameMax], name)
}

func nameAt(p []byte) (string, bool) {
	n := int(p[0])
	if n > nameMax {
		return "", false
	}
	return string(p[1 : 1+n]), true
}
