package replica

import (
	"maps"
	"strings"
	"testing"

	"github.com/qrbd/qrbd/protocol"
)

// TestEveryMessageLost: a story of three replicas is told again and again, and each
// time the connection is lost in place of another message other than data and
// acknowledgements. Afterwards everything is connected again, equal and without bits.
func TestEveryMessageLost(t *testing.T) {
	lost := map[string]int{}
	for at := 1; ; at++ {
		a := newAncestry(t.Fatalf, []string{"alpha", "beta", "gamma"})
		a.w.cutAt = at
		a.tell(t)
		out := a.w.out.String()
		i := strings.Index(out, "lost: ")
		if i < 0 {
			t.Logf("%d messages lost, one at a time: %v", at-1, lost)
			if at < 50 || len(lost) < 12 {
				t.Error("the story is too short")
			}
			return
		}
		lost[strings.Fields(out[i:])[1]]++
		for _, n := range a.w.names {
			x := a.w.nodes[n]
			if !maps.Equal(a.block[x], a.block[a.w.nodes["alpha"]]) || x.m.disk != protocol.UpToDate {
				a.fail("message %d: in the end %s is %s, and has %v", at, n, x.m.disk, a.block[x])
			}
			for _, p := range x.m.peers {
				if p.repl != protocol.Established || p.dirty.Count() != 0 || p.slot != 0 {
					a.fail("message %d: in the end %s and %s are %s, %d blocks out of sync at %s", at, n, p.name, p.repl, p.dirty.Count(), p.slot)
				}
			}
		}
	}
}

// tell is the story: a primary that writes, parts from one and then the other, hands
// over, dies, and comes back.
func (a *ancestry) tell(t *testing.T) {
	w := a.w
	do := func(f ...string) {
		a.story = append(a.story, strings.Join(f, " "))
		if err := w.command(f); err != nil {
			t.Fatal(err)
		}
		w.run()
		a.judge()
	}
	join := func() {
		for range 8 { // whatever is to be done takes a few connections
			for i, n := range w.names {
				for _, k := range w.names[i+1:] {
					x, y := w.nodes[n], w.nodes[k]
					if x.up && y.up && !x.m.peers[x.peer(k)].linked && !y.m.peers[y.peer(n)].linked {
						do("link", n, k)
					}
				}
			}
			do("tick", "1")
		}
	}
	write := func(block int64) {
		for _, n := range w.names {
			if x := w.nodes[n]; x.up && x.m.role == protocol.Primary {
				a.submit(x, block)
				w.run()
				a.judge()
				return
			}
		}
	}
	primary := func(n string) { // who has the role is asked until it is n
		for range 4 {
			if w.nodes[n].m.role == protocol.Primary {
				return
			}
			for _, k := range w.names {
				if x := w.nodes[k]; k != n && x.up && x.m.role == protocol.Primary {
					do("switchover", k, n)
				}
			}
			join()
			if w.nodes[n].m.primary() == "" {
				do("promote", n)
			}
			join()
		}
		a.fail("%s does not become primary", n)
	}
	join()
	primary("alpha")
	write(0)
	do("cut", "alpha", "gamma")
	write(1)
	join()
	do("cut", "alpha", "beta")
	do("cut", "beta", "gamma")
	write(2)
	join()
	primary("beta")
	write(3)
	do("crash", "beta")
	join()
	do("promote", "gamma", "fenced")
	write(4)
	do("boot", "beta")
	join()
	primary("alpha")
	write(5)
	w.cutAt = 0
	join()
}
