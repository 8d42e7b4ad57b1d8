package linear

import (
	"fmt"
	"slices"

	"github.com/anishathalye/porcupine"
)

// register is the history of one block, ready to be checked.
type register struct {
	block    int
	volatile bool
	ops      []porcupine.Operation
	writes   map[uint64]*written // by value
}

// written is what the whole history says of a value.
type written struct {
	ret  int64 // when its write was acknowledged; 0: never
	fua  bool
	firm bool // no loss of one copy may take it away
}

// step is an operation on one block. It is porcupine's input; the output is not
// used.
type step struct {
	kind  kind
	value uint64
	call  int64
}

// state is the values that the block may fall back to, oldest first; the last one is
// what it holds. Without a loss only the last matters.
type state = []uint64

func (r *register) model() porcupine.Model {
	m := porcupine.NondeterministicModel{
		Init: func() []interface{} { return []interface{}{state{0}} },
		Step: func(s, input, _ interface{}) []interface{} { return r.step(s.(state), input.(step)) },
		Equal: func(a, b interface{}) bool {
			return slices.Equal(a.(state), b.(state))
		},
		Hash: func(s interface{}) uint64 {
			h := uint64(len(s.(state)))
			for _, v := range s.(state) {
				h = mix(h ^ v)
			}
			return h
		},
		DescribeOperation: func(input, _ interface{}) string { return r.describe(input.(step)) },
		DescribeState:     func(s interface{}) string { return fmt.Sprint(s.(state)) },
	}
	return m.ToModel()
}

// step returns the states that may follow.
func (r *register) step(s state, in step) (next []interface{}) {
	switch in.kind {
	case read:
		if s[len(s)-1] == in.value {
			next = append(next, s)
		}
	case write:
		w := r.writes[in.value]
		switch {
		case w.fua && w.ret != 0, !r.volatile && w.firm:
			next = append(next, state{in.value})
		default:
			next = append(next, append(slices.Clip(s), in.value))
		}
	case flush:
		from := 0
		for i, v := range s {
			if w := r.writes[v]; w != nil && w.ret != 0 && w.ret < in.call {
				from = i
			}
		}
		next = append(next, s[from:])
	case lostOne:
		from := 0
		for i, v := range s {
			if w := r.writes[v]; w != nil && w.firm {
				from = i
			}
		}
		for i := from; i < len(s); i++ {
			next = append(next, s[:i+1:i+1])
		}
	case lostAll:
		for _, v := range s {
			next = append(next, state{v})
		}
	}
	return next
}

func (r *register) describe(in step) string {
	switch in.kind {
	case read:
		return fmt.Sprintf("read %d", in.value)
	case write:
		w, end := r.writes[in.value], ""
		if w.fua {
			end = " fua"
		}
		if w.ret == 0 {
			end += " ?"
		}
		return fmt.Sprintf("write %d%s", in.value, end)
	case flush:
		return "flush"
	case lostOne:
		return "one copy lost"
	case lostAll:
		return "power cut"
	}
	return "invalid"
}

// registers takes the history apart. errs are mixtures that no write under way
// explains.
func (h *History) registers() (list []*register, errs []error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	blocks := map[int][]*op{}
	var all []*op // concern every block
	for _, o := range h.ops {
		for i := range o.values {
			blocks[o.first+i] = append(blocks[o.first+i], o)
		}
		if o.kind == lostOne || o.kind == lostAll || h.Volatile && o.kind == flush && o.ret != 0 {
			all = append(all, o)
		}
	}
	for b, ops := range blocks {
		r := &register{block: b, volatile: h.Volatile, writes: map[uint64]*written{}}
		errs = append(errs, h.prepare(r, ops)...)
		for _, o := range all {
			r.add(o, step{kind: o.kind, call: o.call}, h.until(o))
		}
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b *register) int { return a.block - b.block })
	return list, errs
}

// prepare fills the register with the reads and writes of its block. REQUIRES h.mu.
func (h *History) prepare(r *register, ops []*op) (errs []error) {
	seen := map[uint64]int64{} // value to the end of the first read that found it
	for _, o := range ops {
		if o.kind == write {
			r.writes[o.values[r.block-o.first]] = &written{ret: o.ret, fua: o.fua, firm: o.ret != 0}
		}
	}
	for _, o := range ops {
		i := r.block - o.first
		switch {
		case o.kind != read || o.ret == 0:
		case o.torn[i]:
			if !h.beside(o, r.block, ops) {
				errs = append(errs, fmt.Errorf("block %d: a read at %d…%d found a mixture, and no write was under way", r.block, o.call, o.ret))
			}
		default:
			v, end := o.values[i], h.until(o)
			if first, again := seen[v]; !again || end < first {
				seen[v] = end
			}
			if v != 0 && r.writes[v] == nil {
				errs = append(errs, fmt.Errorf("block %d: a read at %d…%d found value %d, which was never written there", r.block, o.call, o.ret, v))
			}
		}
	}
	for _, o := range ops {
		i := r.block - o.first
		v := o.values[i]
		switch {
		case o.kind == read && o.ret != 0 && !o.torn[i]:
			if w := r.writes[v]; w != nil && seen[v] < o.call {
				w.firm = true // this read was sent after the value had been seen
			}
			r.add(o, step{kind: read, value: v}, h.until(o))
		case o.kind == write:
			if _, found := seen[v]; found || o.ret != 0 {
				r.add(o, step{kind: write, value: v}, h.until(o))
			}
		}
	}
	return errs
}

// beside reports whether a write to the block may have run beside the read.
func (h *History) beside(rd *op, block int, ops []*op) bool {
	for _, o := range ops {
		if o.kind == write && o.call < rd.ret && h.until(o) > rd.call {
			return true
		}
	}
	return false
}

func (r *register) add(o *op, s step, until int64) {
	r.ops = append(r.ops, porcupine.Operation{ClientId: o.client + 1, Input: s, Call: o.call, Return: until})
}
