package replica

import "strconv"

// fenceCommand carries out a command of a script that has to do with fencing.
func (w *world) fenceCommand(x *wnode, f []string, done func(error)) {
	switch f[0] {
	case "fencing":
		for _, p := range []Fencing{FencingOff, FencingResource, FencingStonith} {
			if p.String() == f[1] {
				w.votes.Fencing = p
			}
		}
		for _, n := range w.names {
			w.boot(w.nodes[n])
		}
	case "answer":
		id := x.peer(f[2])
		code, _ := strconv.Atoi(f[3])
		answers := map[int]FenceAnswer{3: FenceInconsistent, 4: FenceOutdated, 5: FenceUnreachable, 6: FencePrimary, 7: FenceStonithed}
		x.m.FenceAnswered(w.now, id, x.fences[id], answers[code], "exit status "+f[3])
	case "outdate":
		x.m.Outdate(w.now, done)
	}
}
