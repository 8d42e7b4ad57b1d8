package volume

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/compress"
	"github.com/qrbd/qrbd/protocol/compress/compresstest"
)

func always() bool { return true }

// packing is newCluster with compression.
func packing(t testing.TB, size int64, mode protocol.Mode, compressed func() bool, names ...string) *cluster {
	c := newCluster(t, size, mode)
	c.compress = compressed
	c.names = names
	for _, n := range c.names {
		c.create(n)
	}
	for _, n := range c.names {
		c.start(n)
	}
	return c
}

// mostly says yes three times of four.
func mostly() func() bool {
	var n atomic.Int64
	return func() bool { return n.Add(1)%4 != 0 }
}

// TestCompressedReplication: writes and resyncs of what compresses and what does not come
// out equal, whoever hands them over, and the meters on both sides say the same.
func TestCompressedReplication(t *testing.T) {
	for _, mode := range []protocol.Mode{protocol.ModeC, protocol.ModeA} {
		for _, try := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/%v", mode, try), func(t *testing.T) {
				const size = 16 << 20
				c := newCluster(t, size, mode)
				c.compress = always
				if try {
					c.tries = new(atomic.Int64)
				}
				c.startPair()
				off := int64(0)
				write := func() {
					for i, n := range []int{512, 1024, 4096, 8192, 16 << 10, 64 << 10, 256 << 10, 1 << 20} {
						for _, content := range []func(uint64, int) []byte{compresstest.Pages, compresstest.Noise} {
							c.write("alpha", off, content(uint64(i), n), 0)
							off += int64(n)
						}
					}
					c.flush("alpha")
				}
				write()
				c.await("alpha", func(s Status) bool { return peerOf(s, "beta").UnackedOps == 0 })
				c.equal("alpha", "beta")
				a, b := c.counted("alpha", "beta"), c.counted("beta", "alpha")
				if a.SentSaved < 500<<10 || a.SentSaved > 1400<<10 || a.Sent < 1400<<10 {
					t.Errorf("writes: %d bytes sent, %d saved", a.Sent, a.SentSaved)
				}
				if a.SentSaved != b.ReceivedSaved || b.SentSaved != 0 {
					t.Errorf("the peer saw %d bytes fewer, not %d, and took %d off", b.ReceivedSaved, a.SentSaved, b.SentSaved)
				}
				c.part("alpha", "beta")
				write()
				c.heal("alpha", "beta")
				c.synced("alpha", "beta")
				c.equal("alpha", "beta")
				if saved := c.counted("alpha", "beta").SentSaved - a.SentSaved; saved < 500<<10 {
					t.Errorf("resync: %d bytes saved", saved)
				}
				if n := peerOf(c.v("alpha").Status(), "beta").SyncSent; n < 2<<20 {
					t.Errorf("resync: %d bytes of payload", n)
				}
			})
		}
	}
}

// counted returns a node's status of a peer, with what was counted since it started.
func (c *cluster) counted(node, peer string) PeerStatus { return peerOf(c.v(node).Status(), peer) }

// TestCompressedReads: what a primary without a disk reads from its peer.
func TestCompressedReads(t *testing.T) {
	z := compress.New(1)
	b := compresstest.Pages(1, protocol.ReadMax)
	frame, saved := protocol.AppendCompressed(nil, &protocol.PeerReply{ID: 7, Len: protocol.ReadMax}, b, z)
	if saved == 0 {
		t.Fatal("nothing saved")
	}
	pool := blockdev.NewPool(0)
	var counted atomic.Uint64
	fr := newFrameReader(bytes.NewReader(frame), pool, z, &counted, nil)
	m, buf, err := fr.next()
	if r, ok := m.(*protocol.PeerReply); err != nil || !ok || r.ID != 7 || !bytes.Equal(buf.Bytes(), b) || counted.Load() != uint64(saved) {
		t.Fatalf("%+v, %v, %d saved", m, err, counted.Load())
	}
	buf.Release()
	if pool.Out() != 0 {
		t.Errorf("%d bytes are out", pool.Out())
	}
}

// TestAheadOfCompressed: what waits in the read buffer is seen through compression, up to a
// frame that is damaged, and nothing is taken out of it.
func TestAheadOfCompressed(t *testing.T) {
	z := compress.New(1)
	b := compresstest.Pages(1, 8192)
	var in []byte
	var ends []int
	for i := range 3 {
		in, _ = protocol.AppendCompressed(in, &protocol.Data{Op: protocol.DataWrite, Seq: uint64(i + 1), Off: int64(i) * 8192, Len: 8192}, b, z)
		ends = append(ends, len(in))
	}
	read := func(in []byte) []*protocol.Data {
		pool := blockdev.NewPool(0)
		fr := newFrameReader(bytes.NewReader(in), pool, z, new(atomic.Uint64), nil)
		fr.r.Peek(1)
		list := fr.ahead()
		if pool.Out() != 0 {
			t.Errorf("%d bytes are out", pool.Out())
		}
		if fr.r.Buffered() != len(in) {
			t.Errorf("%d of %d bytes are left", fr.r.Buffered(), len(in))
		}
		return list
	}
	if list := read(in); len(list) != 3 || list[2].Seq != 3 || list[1].Off != 8192 {
		t.Errorf("%+v", list)
	}
	if list := read(in[:ends[1]+50]); len(list) != 2 {
		t.Errorf("cut: %+v", list)
	}
	damaged := bytes.Clone(in)
	damaged[ends[0]+80] ^= 1
	if list := read(damaged); len(list) != 1 {
		t.Errorf("damaged: %+v", list)
	}
}

// compressedAs is a Compressor of what a test wants sent instead.
type compressedAs struct{ b []byte }

func (c compressedAs) Compress(dst, _ []byte) []byte { return append(dst, c.b...) }

// hostilePayloads are what a peer may send as the compressed form of b: all are refused.
func hostilePayloads(b []byte) map[string][]byte {
	z := compress.New(1)
	good := z.Compress(nil, b)
	other := bytes.Clone(b)
	other[len(b)/2] ^= 1
	return map[string][]byte{
		"truncated":         good[:len(good)-1],
		"trailing garbage":  append(bytes.Clone(good), 1, 2, 3),
		"a second frame":    append(bytes.Clone(good), z.Compress(nil, b[:100])...),
		"garbage":           bytes.Repeat([]byte{0x28, 0xb5, 0x2f}, 100),
		"a bomb":            z.Compress(nil, make([]byte, 16<<20)),
		"a shorter payload": z.Compress(nil, b[:len(b)-512]),
		"a longer payload":  z.Compress(nil, append(bytes.Clone(b), 0)),
		"other bytes":       z.Compress(nil, other),
	}
}

// TestHostileCompression: the connection ends with a reason, nothing of it reaches the
// disk, and the node goes on.
func TestHostileCompression(t *testing.T) {
	b := compresstest.Pages(3, 64<<10)
	for name, packed := range hostilePayloads(b) {
		for _, stream := range []string{"write", "bulk"} {
			t.Run(name+"/"+stream, func(t *testing.T) {
				t.Parallel()
				c := lonely(t, protocol.ModeC, "beta")
				before := make([]byte, testSize)
				if err := c.nodes["beta"].store.ReadAt(before, 0); err != nil {
					t.Fatal(err)
				}
				p := rawTo(t, c, "beta", "alpha")
				to, m := p.write, protocol.Message(&protocol.Data{Op: protocol.DataWrite, Seq: 1 << 40, Len: int64(len(b))})
				if stream == "bulk" {
					p.beSource()
					to, m = p.bulk, &protocol.SyncWrite{ID: 1, Len: int64(len(b))}
				} else {
					p.asPrimary("alpha")
				}
				frame, saved := protocol.AppendCompressed(nil, m, b, compressedAs{packed})
				if saved == 0 {
					t.Fatal("it would not be sent")
				}
				to.Write(frame)
				p.ended()
				serving(t, c, "beta", "alpha")
				reason := c.await("beta", func(s Status) bool { return peerOf(s, "alpha").Reason != "" })
				want := "cannot be expanded"
				if name == "other bytes" {
					want = "digest does not match"
				}
				if got := peerOf(reason, "alpha").Reason; !strings.Contains(got, want) {
					t.Errorf("reason %q", got)
				}
				after := make([]byte, testSize)
				if err := c.nodes["beta"].store.ReadAt(after, 0); err != nil || !bytes.Equal(before, after) {
					t.Errorf("the store has changed (%v)", err)
				}
				if n := c.counted("beta", "alpha").ReceivedSaved; n != 0 && name != "other bytes" {
					t.Errorf("%d bytes counted as saved", n)
				}
			})
		}
	}
}

// TestNothingIsMadeForTooMuch: a payload that is said to be larger than any is refused before
// there is room for it.
func TestNothingIsMadeForTooMuch(t *testing.T) {
	b := compresstest.Pages(1, 4096)
	frame, _ := protocol.AppendCompressed(nil, &protocol.SyncWrite{Len: 4096}, b, testZstd)
	h, err := protocol.ParseHeader(frame)
	if err != nil {
		t.Fatal(err)
	}
	at := protocol.HeaderLen + h.BodyLen
	copy(frame[at:], []byte{1, 0, 16, 0}) // 1 MiB and a byte
	pool := blockdev.NewPool(0)
	full := pool.Get(blockdev.MaxBuffer, nil) // who asks for room now gets none
	defer full.Release()
	stop := make(chan struct{})
	close(stop)
	if _, _, err := newFrameReader(bytes.NewReader(frame), pool, testZstd, new(atomic.Uint64), stop).next(); !errors.Is(err, protocol.ErrTooLarge) {
		t.Errorf("%v", err)
	}
}

// FuzzFrames: any bytes on a stream, sound frames and compressed ones among them: an error,
// or a payload of the length that the message names. Buffers come back.
func FuzzFrames(f *testing.F) {
	z := compress.New(1)
	b := compresstest.Pages(1, 4096)
	for _, m := range []protocol.Message{&protocol.Data{Op: protocol.DataWrite, Seq: 1, Len: 4096}, &protocol.SyncWrite{ID: 1, Len: 4096}, &protocol.PeerReply{ID: 1, Len: 4096}} {
		frame, _ := protocol.AppendCompressed(nil, m, b, z)
		f.Add(append(frame, frame...))
		f.Add(append(protocol.AppendFrame(nil, m, b), b...))
		for _, packed := range hostilePayloads(b) {
			bad, _ := protocol.AppendCompressed(nil, m, b, compressedAs{packed})
			f.Add(bad)
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		pool := blockdev.NewPool(0)
		fr := newFrameReader(bytes.NewReader(in), pool, z, new(atomic.Uint64), nil)
		fr.r.Peek(1)
		fr.ahead()
		for {
			m, buf, err := fr.next()
			if err != nil {
				break
			}
			n := int64(0)
			switch m := m.(type) {
			case *protocol.Data:
				if m.Op == protocol.DataWrite {
					n = m.Len
				}
			case *protocol.SyncWrite:
				n = m.Len
			case *protocol.PeerReply:
				if !m.Zero && m.Code == protocol.CodeNone {
					n = m.Len
				}
			}
			if int64(len(payload(buf))) != n {
				t.Fatalf("%+v with %d bytes", m, len(payload(buf)))
			}
			if buf != nil {
				buf.Release()
			}
		}
		if pool.Out() != 0 {
			t.Fatalf("%d bytes are out", pool.Out())
		}
	})
}
