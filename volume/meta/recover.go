package meta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"

	"github.com/qrbd/qrbd/bitmap"
)

// State is what a metadata file says.
type State struct {
	Super    Super
	Activity *bitmap.Activity // extents that may have been mid-write: all hot
	Bitmaps  []*bitmap.Set    // one per Super.Peers
	// Damaged names, for the log, the pages whose newest content is lost: such a
	// bitmap page counts as all set, such an activity page as all active.
	Damaged []string
	// Torn names the pages of which one slot was bad and the other had what was
	// last committed: torn by a crash, or damaged without harm.
	Torn []string
}

// namesMax bounds Damaged and Torn; the last entry then tells how many more.
const namesMax = 64

// Sparse is what an image may be able to tell of its holes. Without it Recover
// reads everything.
type Sparse interface {
	// NextData returns the first range at or after off that is not a hole, or
	// io.EOF. It may call holes data.
	NextData(off int64) (from, to int64, err error)
}

// Recover reads the state out of the first size bytes of img, changing nothing.
// A slot that cannot be read counts as bad.
func Recover(img io.ReaderAt, size int64) (*State, error) {
	r, err := recoverImage(img, size)
	if err != nil {
		return nil, err
	}
	return r.state, nil
}

// doubt is a pair that can be judged only when the highest sequence is known.
type doubt struct {
	id    pageID
	slots [2]copyState
}

// recovery is the work of one Recover.
type recovery struct {
	img   io.ReaderAt
	lay   layout
	file  uint64 // the file's id
	state *State

	top       uint64   // highest sequence seen
	next      []uint64 // a bit per pair: the slot that the next commit writes
	doubts    []doubt
	unsettled []pageID // the slots differ; none is damaged
	unborn    []pageID // never written, but for a first write that was torn
	damaged   []pageID
	torn      int
}

func recoverImage(img io.ReaderAt, size int64) (*recovery, error) {
	r := &recovery{img: img, state: new(State)}
	if err := r.readSuper(size); err != nil {
		return nil, err
	}
	s := r.state
	s.Activity = bitmap.NewActivity(r.lay.size)
	for range s.Super.Peers {
		s.Bitmaps = append(s.Bitmaps, bitmap.NewSet(r.lay.blocks))
	}
	if err := r.scan(); err != nil {
		return nil, err
	}
	if err := r.settleDoubts(); err != nil {
		return nil, err
	}
	return r, nil
}

const recreate = "restore the file, or create the volume anew with --force and let it sync in full from a peer"

// readSuper reads the super pair and with it the geometry.
func (r *recovery) readSuper(size int64) error {
	var pair [pairSize]byte
	if size < pairSize {
		n := readWhat(r.img, pair[:max(size, 0)], 0)
		if n < len(magic) || !hasMagic(pair[:]) {
			return fmt.Errorf("the file %w (%d bytes)", ErrNotMeta, size)
		}
		return fmt.Errorf("%w: the file has %d bytes, less than a superblock; %s", ErrDamaged, size, recreate)
	}
	r.readPair(pair[:], superPair)
	id := pageID{kind: kindSuper}
	d := doubt{id: id}
	for i := range 2 {
		p := pair[i*pageSize : (i+1)*pageSize]
		if v := binary.LittleEndian.Uint16(p[atVersion:]); headerHolds(p, superSeed) && v > version {
			return fmt.Errorf("%w: %d, this program knows %d; use the qrbd that wrote it or a newer one", ErrVersion, v, version)
		}
		d.slots[i] = judge(p, id, 0)
		r.see(d.slots[i])
	}
	v := decide(d.slots, r.top)
	if v.valid < 0 {
		if !hasMagic(pair[:]) && !hasMagic(pair[pageSize:]) {
			return fmt.Errorf("the file %w", ErrNotMeta)
		}
		return fmt.Errorf("%w: both copies of the superblock are bad; %s", ErrDamaged, recreate)
	}
	p := pair[v.valid*pageSize:][:pageSize]
	super, err := decodeSuper(p)
	if err != nil {
		return fmt.Errorf("superblock: %w; %s", err, recreate)
	}
	r.lay = newLayout(super.Size)
	if want := r.lay.bytes(); size < want {
		return fmt.Errorf("%w: the file was truncated: it has %d bytes, a volume of %d bytes needs %d; %s",
			ErrDamaged, size, super.Size, want, recreate)
	}
	r.state.Super = super
	r.file = binary.LittleEndian.Uint64(p[atFile:])
	r.next = make([]uint64, (r.lay.pairs+63)/64)
	r.note(d)
	return nil
}

// chunkPairs are read at once: 1 MiB.
const chunkPairs = 128

// scan reads all pairs behind the super pair that are not holes.
func (r *recovery) scan() error {
	var buf []byte
	sparse, _ := r.img.(Sparse)
	for pair := int64(fixedPairs); pair < r.lay.pairs; {
		end := r.lay.pairs
		if sparse != nil {
			from, to, err := sparse.NextData(pair * pairSize)
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("looking for data at byte %d: %w", pair*pairSize, err)
			}
			pair = max(pair, from/pairSize)
			end = min(end, max((to-1)/pairSize, pair)+1)
		}
		for pair < end {
			n := min(chunkPairs, end-pair)
			if n*pairSize > int64(len(buf)) {
				buf = make([]byte, n*pairSize)
			}
			r.readPairs(buf[:n*pairSize], pair)
			for i := range n {
				r.load(pair+i, buf[i*pairSize:(i+1)*pairSize])
			}
			pair += n
		}
	}
	return nil
}

// readPairs fills buf from the given pair on. Slots that cannot be read are filled
// with ones, which no check accepts.
func (r *recovery) readPairs(buf []byte, pair int64) {
	if readWhat(r.img, buf, pair*pairSize) == len(buf) {
		return
	}
	for i := 0; i < len(buf); i += pairSize {
		r.readPair(buf[i:i+pairSize], pair+int64(i/pairSize))
	}
}

func (r *recovery) readPair(buf []byte, pair int64) {
	for i := range int64(2) {
		p := buf[i*pageSize : (i+1)*pageSize]
		if readWhat(r.img, p, pair*pairSize+i*pageSize) < pageSize {
			for k := range p {
				p[k] = 0xff
			}
		}
	}
}

// readWhat returns how many bytes could be read, none after an error.
func readWhat(img io.ReaderAt, p []byte, off int64) int {
	n, err := img.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0
	}
	return n
}

// load takes one pair in.
func (r *recovery) load(pair int64, buf []byte) {
	id, ok := r.lay.page(pair)
	if !ok || isZero(buf) {
		return
	}
	d := doubt{id: id}
	for i := range 2 {
		p := buf[i*pageSize : (i+1)*pageSize]
		d.slots[i] = judge(p, id, r.file)
		if d.slots[i].condition == intact && !clearFrom(p[headerBytes:], r.lay.bits(id)) {
			d.slots[i].condition = broken
		}
		r.see(d.slots[i])
	}
	if v := decide(d.slots, r.top); v.valid >= 0 {
		r.apply(id, buf[v.valid*pageSize+headerBytes:][:bitmap.PageBytes])
	}
	r.note(d)
}

// see remembers the highest sequence.
func (r *recovery) see(s copyState) {
	if s.condition == intact || s.condition == dated {
		r.top = max(r.top, s.seq)
	}
}

// apply loads a page's content into the state. A bitmap of a slot that no peer
// has is left over from a crash while a peer was added; it says nothing.
func (r *recovery) apply(id pageID, content []byte) {
	if id.kind == kindActivity {
		first := id.index * bitmap.ExtentsPerActivityPage
		for i, b := range content {
			for ; b != 0; b &= b - 1 {
				r.state.Activity.Load(first + int64(i*8+bits.TrailingZeros8(b)))
			}
		}
		return
	}
	if id.slot < len(r.state.Bitmaps) {
		if err := r.state.Bitmaps[id.slot].LoadPage(id.index, content); err != nil {
			panic(fmt.Sprintf("meta: %v was checked: %v", id, err))
		}
	}
}

// note decides a pair, now if it is whole, else when the highest sequence is known.
func (r *recovery) note(d doubt) {
	v := decide(d.slots, r.top)
	if v.bad {
		r.doubts = append(r.doubts, d)
		return
	}
	r.conclude(d.id, v)
}

// conclude remembers what Open has to do about a pair.
func (r *recovery) conclude(id pageID, v verdict) {
	pair := r.lay.pair(id)
	r.next[pair/64] |= v.next << (uint(pair) % 64)
	switch {
	case v.damaged:
		r.damaged = append(r.damaged, id)
	case v.valid < 0 && v.bad:
		r.unborn = append(r.unborn, id)
	case !v.settled:
		r.unsettled = append(r.unsettled, id)
	}
}

// settleDoubts decides the pairs with bad slots.
func (r *recovery) settleDoubts() error {
	s := r.state
	for _, d := range r.doubts {
		v := decide(d.slots, r.top)
		r.conclude(d.id, v)
		switch {
		case v.damaged && d.id.kind == kindSuper:
			return fmt.Errorf("%w: the newest copy of the superblock is bad and the other one is older; %s", ErrDamaged, recreate)
		case v.damaged:
			s.Damaged = appendName(s.Damaged, len(r.damaged), d.id)
			r.assumeWorst(d.id)
		default:
			r.torn++
			s.Torn = appendName(s.Torn, r.torn, d.id)
		}
	}
	r.doubts = nil
	return nil
}

// assumeWorst makes a page all set or all active.
func (r *recovery) assumeWorst(id pageID) {
	s := r.state
	n := r.lay.bits(id)
	if id.kind == kindActivity {
		first := id.index * bitmap.ExtentsPerActivityPage
		for e := first; e < first+n; e++ {
			s.Activity.Load(e)
		}
		s.Activity.MarkChanged(id.index)
		return
	}
	if id.slot < len(s.Bitmaps) {
		first := id.index * bitmap.BlocksPerPage
		s.Bitmaps[id.slot].Set(first, first+n)
		s.Bitmaps[id.slot].MarkChanged(id.index)
	}
}

// appendName appends the n-th name to a bounded list.
func appendName(names []string, n int, id pageID) []string {
	switch {
	case n < namesMax:
		return append(names, id.String())
	case n == namesMax:
		return append(names, "and 1 more")
	}
	names[namesMax-1] = fmt.Sprintf("and %d more", n-namesMax+1)
	return names
}
