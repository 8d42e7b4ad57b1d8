package replica

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
)

// ancestry knows what really happened: which writes each replica has, which of them
// were acknowledged, and what stands in each block. It asks, of every two replicas at
// every moment of a history, what Compare would have them do, and whether that
// loses or mixes anything. It knows nothing of generations, bits and flags.
type ancestry struct {
	t     *rapid.T // of random histories
	fatal func(format string, args ...any)
	w     *world
	next  int
	has   map[*wnode]map[int]bool
	block map[*wnode]map[int64]int
	// kept: acknowledged writes that count on a replica: of a primary that answered, of its
	// peers that were in the ack set then, and of whoever was synced from one of them. What
	// a replica has beside them it may lose: it was lost before the answer.
	kept  map[*wnode]map[int]bool
	calm  bool // one primary at a time, each with all that was ever written
	story []string
}

func newAncestry(fatal func(string, ...any), nodes []string) *ancestry {
	w := newWorld(protocol.ModeC, nodes)
	a := &ancestry{fatal: fatal, w: w, has: map[*wnode]map[int]bool{}, block: map[*wnode]map[int64]int{}, kept: map[*wnode]map[int]bool{}}
	for _, n := range nodes {
		a.has[w.nodes[n]], a.block[w.nodes[n]], a.kept[w.nodes[n]] = map[int]bool{}, map[int64]int{}, map[int]bool{}
		w.command([]string{"ids", n, "1048576", "disk:6"})
	}
	w.watch = a
	w.run()
	return a
}

func (a *ancestry) submit(x *wnode, block int64) {
	a.next++
	a.story = append(a.story, fmt.Sprintf("write %d of block %d on %s", a.next, block, x.name))
	x.m.Submit(a.w.now, &Request{Op: Write, Off: block * bitmap.BlockSize, Len: bitmap.BlockSize, Tag: a.next})
	a.w.collect(x)
}

func (a *ancestry) wrote(x *wnode, off int64, tag any) {
	n, ok := tag.(int)
	if !ok {
		return
	}
	a.has[x][n] = true
	a.block[x][off/bitmap.BlockSize] = n
}

func (a *ancestry) answered(x *wnode, r *Request, err error) {
	n, ok := r.Tag.(int)
	if !ok || err != nil {
		return
	}
	a.kept[x][n] = true
	for _, p := range x.m.peers {
		if p.live {
			a.kept[a.w.nodes[p.name]][n] = true
		}
	}
}

func (a *ancestry) copied(from, to *wnode, off, n int64) {
	for b := off / bitmap.BlockSize; b < (off+n)/bitmap.BlockSize; b++ {
		if v, ok := a.block[from][b]; ok {
			a.block[to][b] = v
		} else {
			delete(a.block[to], b)
		}
	}
}

func (a *ancestry) synced(x, from *wnode) {
	a.has[x], a.kept[x] = maps.Clone(a.has[from]), maps.Clone(a.kept[from])
}

func (a *ancestry) fail(format string, args ...any) {
	a.w.status()
	a.fatal("%s\nafter %s\n%s", fmt.Sprintf(format, args...), strings.Join(a.story, ", "), a.w.out.String())
}

// judge asks Compare about every two replicas that are not connected.
func (a *ancestry) judge() {
	for i, n := range a.w.names {
		for _, k := range a.w.names[i+1:] {
			x, y := a.w.nodes[n], a.w.nodes[k]
			if !x.up || !y.up || x.m.peers[x.peer(k)].linked || y.m.peers[y.peer(n)].linked {
				continue
			}
			me, peer := Side{Name: n, Hello: x.m.hello(x.m.peers[x.peer(k)])}, Side{Name: k, Hello: y.m.hello(y.m.peers[y.peer(n)])}
			d, m := Compare(me, peer), Compare(peer, me)
			if want := d.Mirror(); m.Strategy != want.Strategy || m.Rule != want.Rule {
				a.fail("%s says %s by %s, %s says %s by %s", n, d.Strategy, d.Rule, k, m.Strategy, m.Rule)
			}
			switch d.Strategy {
			case protocol.NoSync:
				a.equal(d, x, y)
			case protocol.SourceBitmap, protocol.SourceFull:
				a.overwrites(d, x, y)
			case protocol.TargetBitmap, protocol.TargetFull:
				a.overwrites(m, y, x)
			case protocol.SplitBrain, protocol.Unrelated:
				if a.calm {
					a.fail("%s and %s: %s by %s, and there was one primary at a time", n, k, d.Strategy, d.Rule)
				}
			case protocol.Retry, protocol.RefusedStrategy:
			}
		}
	}
}

func (a *ancestry) equal(d Decision, x, y *wnode) {
	if d.Rule == RuleDefer || d.Rule == RuleBothNew || d.Rule == RuleNoDisk || d.Rule == RuleDiskless {
		return
	}
	for b := int64(0); b < 64; b++ {
		if a.block[x][b] != a.block[y][b] && !marked(x, y.name, b) && !marked(y, x.name, b) {
			a.fail("%s and %s are taken for equal by %s: %v and %v", x.name, y.name, d.Rule, a.block[x], a.block[y])
		}
	}
}

func (a *ancestry) overwrites(d Decision, from, to *wnode) {
	if from.m.disk <= protocol.Inconsistent {
		a.fail("%s, %s, is to overwrite %s by %s", from.name, from.m.disk, to.name, d.Rule)
	}
	if to.m.disk > protocol.Inconsistent {
		for n := range a.kept[to] {
			if a.has[to][n] && !a.has[from][n] {
				a.fail("%s is to overwrite %s by %s, and does not have write %d, which was acknowledged", from.name, to.name, d.Rule, n)
			}
		}
	}
	if d.Strategy != protocol.SourceBitmap {
		return
	}
	for b := int64(0); b < 64; b++ {
		if a.block[from][b] != a.block[to][b] && !marked(from, to.name, b) && !marked(to, from.name, b) {
			a.fail("%s is to overwrite %s by %s: block %d is write %d and write %d, and no bit is set", from.name, to.name, d.Rule, b, a.block[from][b], a.block[to][b])
		}
	}
}

// marked reports whether x knows that the other may lack a block: by a bit, or by a
// write of a live primary, which it marks when it loses that primary.
func marked(x *wnode, other string, block int64) bool {
	q := x.m.peers[x.peer(other)]
	if q.dirty.Test(block) {
		return true
	}
	for _, w := range x.m.recent.list {
		if from, to := bitmap.Touched(w.off, w.n); w.seq > q.stable && from <= block && block < to {
			return true
		}
	}
	return false
}

// act does one thing that may happen.
func (a *ancestry) act() {
	w := a.w
	name := func() string { return rapid.SampledFrom(w.names).Draw(a.t, "node") }
	do := func(f ...string) {
		a.story = append(a.story, strings.Join(f, " "))
		if err := w.command(f); err != nil {
			a.t.Fatal(err)
		}
	}
	n, k := name(), name()
	x := w.nodes[n]
	switch rapid.IntRange(0, 19).Draw(a.t, "what") {
	case 0, 1, 2, 3, 4, 5:
		if x.up && x.m.role == protocol.Primary {
			a.submit(x, rapid.Int64Range(0, 7).Draw(a.t, "block"))
		}
	case 6, 7, 8, 9:
		if y := w.nodes[k]; n != k && x.up && y.up && !x.m.peers[x.peer(k)].linked {
			if x.m.peers[x.peer(k)].alone == aloneNo && y.m.peers[y.peer(n)].alone == aloneNo {
				do("link", n, k)
			}
		}
	case 10, 11:
		if n != k {
			do("cut", n, k)
		}
	case 12:
		if x.up {
			do("crash", n)
		}
	case 13, 14:
		if !x.up {
			do("boot", n)
		}
	case 15, 16:
		if x.up && a.mayPromote(x) {
			do("promote", n, "fenced")
		}
	case 17:
		if n != k && x.up && x.m.role == protocol.Primary {
			do("switchover", n, k)
		}
	case 18:
		if x.up && x.m.role == protocol.Primary && w.nodes[n].m.drain == nil {
			do("demote", n)
		}
	case 19:
		if n != k && !a.calm {
			do(rapid.SampledFrom([]string{"mute", "unmute", "unmute"}).Draw(a.t, "mute"), n, k)
		}
	}
	// In a calm history everything comes to its end: a generation that began for a
	// request which was then refused is one all the same.
	if rapid.IntRange(0, 3).Draw(a.t, "run") > 0 || a.calm {
		w.run()
	}
	if rapid.IntRange(0, 5).Draw(a.t, "time") == 0 {
		do("tick", "1")
	}
}

// mayPromote: in a calm history the operator knows everything and makes no mistake.
func (a *ancestry) mayPromote(x *wnode) bool {
	if !a.calm {
		return true
	}
	for _, y := range a.w.nodes {
		if y != x && y.up && (y.m.role == protocol.Primary || y.m.promote != nil || y.m.handover != nil) {
			return false
		}
		for n := range a.has[y] {
			if !a.has[x][n] {
				return false
			}
		}
	}
	return true
}

// TestAncestry: for random histories of two and three replicas in C, in which nodes
// part, write, crash and are promoted, rightly and wrongly, no two of them are ever
// taken for equal that differ, none that has an acknowledged write is overwritten by
// one that does not, bitmaps cover what differs, both sides come to the same result,
// and where there was only one primary at a time nothing is called a split brain.
func TestAncestry(t *testing.T) {
	for _, k := range []struct {
		name  string
		nodes []string
		calm  bool
	}{
		{"two", []string{"alpha", "beta"}, false},
		{"two calm", []string{"alpha", "beta"}, true},
		{"three", []string{"alpha", "beta", "gamma"}, false},
		{"three calm", []string{"alpha", "beta", "gamma"}, true},
	} {
		t.Run(k.name, rapid.MakeCheck(func(t *rapid.T) {
			a := newAncestry(t.Fatalf, k.nodes)
			a.t, a.calm = t, k.calm
			for range rapid.IntRange(1, 60).Draw(t, "length") {
				a.act()
				a.judge()
			}
		}))
	}
}
