package sim

// written is what the oracle knows of a client's write by its number.
type written struct {
	idx   int // acknowledgements before it was submitted
	flush int // of those, how many a flush had covered that was answered by then
}

// note gives a write its number, which its values carry.
func (o *oracle) note(c *clientOp) uint64 {
	o.writes = append(o.writes, written{})
	return uint64(len(o.writes) - 1)
}

// prefix is C7: a replica that holds a write holds everything that was acknowledged
// before that write was submitted, whatever the protocol, since every copy applies
// writes in the order of the primary's stream. After a power cut it holds what was
// flushed before that: a flush keeps its place in the stream.
func (o *oracle) prefix(n *node) {
	st := o.st[n.index]
	if st.broken || st.dur < st.wild {
		return
	}
	floor, by := 0, uint64(0)
	for _, s := range o.hot {
		id := n.disk.at(int64(s)) >> 16
		f := o.writes[id].idx
		if st.lost {
			f = o.writes[id].flush
		}
		if f > floor {
			floor, by = f, id
		}
	}
	for h, s := range o.hot {
		if v := n.disk.at(int64(s)); !st.br.legal(int32(h), v, floor, 0) {
			o.w.fail("C7: %s holds write %d, submitted when %d were acknowledged (power cut since: %v), and has %s in sector %d; branch %d has %s",
				n.name, by, floor, st.lost, valueText(v), s, st.br.id, st.br.text(int32(h)))
		}
	}
}
