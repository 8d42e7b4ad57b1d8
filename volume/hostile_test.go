package volume

import (
	"context"
	"strings"
	"testing"

	"github.com/qrbd/qrbd/protocol"
)

// TestHostileMessages: a peer with a configured key says things that no sound peer
// says. The connection ends; the volume goes on.
func TestHostileMessages(t *testing.T) {
	write := func(seq uint64, off, n int64) (*protocol.Data, []byte) {
		return &protocol.Data{Op: protocol.DataWrite, Seq: seq, Off: off, Len: n}, make([]byte, n)
	}
	cases := []struct {
		name string
		node string // that is attacked; the other is the attacker
		do   func(p *rawPeer)
	}{
		{"data before the handshake", "beta", func(p *rawPeer) { p.send(write(1, 0, 4096)) }},
		{"bulk data before the handshake", "beta", func(p *rawPeer) {
			p.sendBulk(&protocol.SyncWrite{ID: 1, Len: 4096}, make([]byte, 4096))
		}},
		{"an empty write", "beta", func(p *rawPeer) {
			p.asPrimary("alpha")
			p.send(write(1<<40, 0, 0))
			p.send(write(1<<40, 0, 0)) // twice the same sequence
		}},
		{"a write beyond the end", "beta", func(p *rawPeer) {
			p.asPrimary("alpha")
			p.send(write(1<<40, testSize, 4096))
		}},
		{"a trim beyond the end", "beta", func(p *rawPeer) {
			p.asPrimary("alpha")
			p.send(&protocol.Data{Op: protocol.DataTrim, Seq: 1 << 40, Off: 4096, Len: 1<<62 - 1}, nil)
		}},
		{"sequences going backwards", "beta", func(p *rawPeer) {
			p.asPrimary("alpha")
			p.send(write(1<<40, 0, 4096))
			p.send(write(1<<40-1, 0, 4096))
		}},
		{"the last sequence of all", "beta", func(p *rawPeer) {
			p.asPrimary("alpha")
			p.send(write(^uint64(0), 0, 4096))
		}},
		{"an acknowledgement of what was not sent", "alpha", func(p *rawPeer) {
			p.hello("beta", nil)
			p.send(&protocol.Ack{Received: 1 << 60, Applied: 1 << 60, Durable: 1 << 60}, nil)
			p.send(&protocol.SyncReady{}, nil)
		}},
		{"an empty bulk write", "beta", func(p *rawPeer) {
			p.beSource()
			p.sendBulk(&protocol.SyncWrite{ID: 1}, nil)
			p.sendBulk(&protocol.SyncWrite{ID: 1, Off: testSize + 1}, nil)
		}},
		{"bulk zeroes beyond the end", "beta", func(p *rawPeer) {
			p.beSource()
			p.sendBulk(&protocol.SyncZero{ID: 1, Off: 1 << 40, Len: 1 << 50}, nil)
		}},
		{"digests beyond the end", "beta", func(p *rawPeer) {
			p.beSource()
			p.sendBulk(&protocol.SyncDigests{ID: 1, Off: 1 << 40, Len: 4096, Digests: make([]uint64, 1)}, nil)
		}},
		{"nothing to copy, though blocks are marked", "beta", func(p *rawPeer) {
			p.hello("alpha", func(h *protocol.Hello) { h.Role, h.Disk = protocol.Primary, protocol.UpToDate })
			p.verdict(protocol.NoSync, "equal")
		}},
		{"counts of dirty blocks that cancel out", "alpha", func(p *rawPeer) {
			p.hello("beta", func(h *protocol.Hello) {
				h.Slots = []protocol.PeerSlot{{Name: "alpha", Dirty: -slotOf(&p.theirs, "beta").Dirty}}
			})
			p.send(&protocol.SyncReady{}, nil)
		}},
		{"a primary told to be overwritten", "alpha", func(p *rawPeer) {
			p.hello("beta", func(h *protocol.Hello) { h.Role = protocol.Primary })
			p.verdict(protocol.TargetFull, "history-peer")
		}},
		{"a verdict of a rule that nobody knows", "beta", func(p *rawPeer) {
			p.hello("alpha", func(h *protocol.Hello) { h.Role, h.Disk = protocol.Primary, protocol.UpToDate })
			p.verdict(protocol.RefusedStrategy, "because")
		}},
		{"two hellos", "beta", func(p *rawPeer) {
			p.hello("alpha", nil)
			p.hello2()
		}},
		{"bits of a volume that is larger", "beta", func(p *rawPeer) {
			p.beTargetOf("alpha")
			p.send(&protocol.BitmapPart{First: 1 << 30, Words: []uint64{1}}, nil)
		}},
		{"bits beyond the last block", "beta", func(p *rawPeer) {
			p.beTargetOf("alpha")
			p.send(&protocol.BitmapPart{First: uint64(p.words() - 1), Words: []uint64{^uint64(0)}}, nil)
		}},
		{"the same bits for ever", "beta", func(p *rawPeer) {
			p.beTargetOf("alpha")
			for p.send(&protocol.BitmapPart{First: 0, Words: []uint64{1}}, nil) == nil {
			}
		}},
		{"a sync that ends before it runs", "beta", func(p *rawPeer) {
			p.asPrimary("alpha")
			p.send(&protocol.SyncDone{Current: 5}, nil)
		}},
		{"a generation of no parent", "beta", func(p *rawPeer) {
			p.asPrimary("alpha")
			p.send(&protocol.NewGeneration{Parent: 3, Current: 5, Weak: []string{"nobody", "beta"}}, nil)
		}},
		{"the generation zero", "beta", func(p *rawPeer) {
			p.asPrimary("alpha")
			p.send(&protocol.NewGeneration{Parent: p.theirs.Current}, nil)
		}},
		{"a generation minted by a secondary", "alpha", func(p *rawPeer) {
			p.hello("beta", nil)
			p.send(&protocol.NewGeneration{Parent: p.theirs.Current, Current: 5}, nil)
		}},
		{"a message of the control stream", "beta", func(p *rawPeer) {
			p.asPrimary("alpha")
			p.send(&protocol.Ping{}, nil)
		}},
		{"a message of the write stream on the bulk stream", "beta", func(p *rawPeer) {
			p.asPrimary("alpha")
			p.sendBulk(&protocol.Ack{}, nil)
		}},
		{"garbage", "beta", func(p *rawPeer) { p.write.Write(make([]byte, 1<<20)) }},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c := lonely(t, protocol.ModeC, tc.node)
			attacker := map[string]string{"alpha": "beta", "beta": "alpha"}[tc.node]
			if strings.Contains(tc.name, "dirty") || strings.Contains(tc.name, "marked") {
				c.markDirty(tc.node)
			}
			p := rawTo(t, c, tc.node, attacker)
			tc.do(p)
			t.Log("last word:", p.ended())
			serving(t, c, tc.node, attacker)
		})
	}
}

func slotOf(h *protocol.Hello, name string) protocol.PeerSlot {
	for _, s := range h.Slots {
		if s.Name == name {
			return s
		}
	}
	return protocol.PeerSlot{}
}

// markDirty has a node write alone, so that blocks are marked toward the other.
func (c *cluster) markDirty(node string) {
	c.t.Helper()
	if c.v(node).Status().Role == "primary" {
		c.randomWrites(node, 5, 3)
		return
	}
	c.promote(node, PromoteOptions{PeerFenced: true})
	c.randomWrites(node, 5, 3)
	if err := c.v(node).Demote(context.Background()); err != nil {
		c.t.Fatal(err)
	}
}

func (p *rawPeer) words() int64 { return (testSize/4096 + 1 + 63) / 64 }

func (p *rawPeer) hello2() {
	h := p.theirs
	h.Attempt = 99
	p.send(&h, nil)
}

// beSource makes the node a target that is ready.
func (p *rawPeer) beSource() {
	p.t.Helper()
	p.hello("alpha", func(h *protocol.Hello) {
		h.Role, h.Disk, h.Current, h.History = protocol.Primary, protocol.UpToDate, 1234, []protocol.Generation{h.Current}
	})
	p.verdict(protocol.TargetFull, "history-peer")
	p.send(&protocol.SyncStart{Base: p.theirs.Current, Volume: p.theirs.Volume, Blocks: 10}, nil)
	expect[*protocol.SyncReady](p)
}

// beTargetOf has the node, a secondary, overwrite this peer by bitmap.
func (p *rawPeer) beTargetOf(self string) {
	p.t.Helper()
	p.hello(self, func(h *protocol.Hello) { h.Disk = protocol.Inconsistent })
	p.verdict(protocol.SourceBitmap, "equal-disk")
}
