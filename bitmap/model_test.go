package bitmap

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// naive is the model of a Set: one bool per block.
type naive struct {
	bits  []bool
	taken [][]byte // content of each page when it was last taken or loaded
}

func newNaive(blocks int64) *naive {
	m := &naive{bits: make([]bool, blocks)}
	for range NewSet(blocks).Pages() {
		m.taken = append(m.taken, make([]byte, PageBytes))
	}
	return m
}

func (m *naive) put(from, to int64, v bool) (n int64) {
	for b := from; b < to; b++ {
		if m.bits[b] != v {
			m.bits[b] = v
			n++
		}
	}
	return n
}

func (m *naive) page(p int64) []byte {
	out := make([]byte, PageBytes)
	for i := range int64(BlocksPerPage) {
		if b := p*BlocksPerPage + i; b < int64(len(m.bits)) && m.bits[b] {
			out[i/8] |= 1 << (i % 8)
		}
	}
	return out
}

func (m *naive) next(from, limit int64) (start, n int64) {
	for b := from; b < int64(len(m.bits)); b++ {
		if m.bits[b] {
			for start = b; b < int64(len(m.bits)) && m.bits[b] && b-start < limit; b++ {
			}
			return start, b - start
		}
	}
	return 0, 0
}

// checkAll compares everything that can be asked of a set with the model.
func (m *naive) checkAll(t failer, s *Set) {
	var count int64
	for b, v := range m.bits {
		if v {
			count++
		}
		if s.Test(int64(b)) != v {
			t.Fatalf("Test(%d) = %v", b, !v)
		}
	}
	if s.Count() != count {
		t.Fatalf("Count = %d, want %d", s.Count(), count)
	}
	words := s.AppendWords(nil, 0, int(s.Words())+5)
	if int64(len(words)) != s.Words() {
		t.Fatalf("%d words, want %d", len(words), s.Words())
	}
	nonzero := int64(-1)
	for i := s.Words() - 1; i >= 0; i-- {
		var w uint64
		for b := i * 64; b < min(i*64+64, s.Blocks()); b++ {
			if m.bits[b] {
				w |= 1 << (b % 64)
			}
		}
		if words[i] != w {
			t.Fatalf("word %d = %#x, want %#x", i, words[i], w)
		}
		if w != 0 {
			nonzero = i
		}
		if got := s.NextWord(i); got != nonzero {
			t.Fatalf("NextWord(%d) = %d, want %d", i, got, nonzero)
		}
	}
	for p := range s.Pages() {
		want := m.page(p)
		if !slices.Equal(s.AppendPage(nil, p), want) {
			t.Fatalf("page %d differs", p)
		}
		if !s.PageChanged(p) && !slices.Equal(want, m.taken[p]) {
			t.Fatalf("page %d differs from what was taken and is not marked changed", p)
		}
		if s.counts[p] == 0 != (s.pages[p] == nil) || s.counts[p] == BlocksPerPage != (s.pages[p] == fullPage) {
			t.Fatalf("page %d of %d blocks is not stored as it should be", p, s.counts[p])
		}
	}
	for _, w := range fullPage {
		if w != ^uint64(0) {
			t.Fatalf("the full page was written to")
		}
	}
	if zeroPage != (page{}) {
		t.Fatalf("the zero page was written to")
	}
}

type failer interface{ Fatalf(string, ...any) }

func TestSetAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		blocks := rapid.SampledFrom([]int64{0, 1, 63, 64, 65, 1000, BlocksPerPage - 1, BlocksPerPage, BlocksPerPage + 1, 2*BlocksPerPage + 100}).Draw(t, "blocks")
		s, m := NewSet(blocks), newNaive(blocks)
		pos := rapid.OneOf(rapid.Int64Range(0, blocks),
			rapid.Map(rapid.Int64Range(0, 2*max(blocks/64, 1)), func(i int64) int64 { return min(i*32, blocks) }),
			rapid.Map(rapid.Int64Range(0, 3), func(i int64) int64 { return min(i*BlocksPerPage, blocks) }))
		span := func() (int64, int64) {
			a, b := pos.Draw(t, "a"), pos.Draw(t, "b")
			return min(a, b), max(a, b)
		}
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				from, to := span()
				if got, want := s.Set(from, to), m.put(from, to, true); got != want {
					t.Fatalf("Set(%d, %d) = %d, want %d", from, to, got, want)
				}
			},
			"clear": func(t *rapid.T) {
				from, to := span()
				if got, want := s.Clear(from, to), m.put(from, to, false); got != want {
					t.Fatalf("Clear(%d, %d) = %d, want %d", from, to, got, want)
				}
			},
			"all": func(*rapid.T) { s.SetAll(); m.put(0, blocks, true) },
			"next": func(t *rapid.T) {
				from, limit := pos.Draw(t, "from"), rapid.Int64Range(1, 40000).Draw(t, "max")
				start, n := s.Next(from, limit)
				if ws, wn := m.next(from, limit); start != ws || n != wn {
					t.Fatalf("Next(%d, %d) = %d, %d; want %d, %d", from, limit, start, n, ws, wn)
				}
			},
			"any": func(t *rapid.T) {
				from, to := span()
				if got, want := s.Any(from, to), slices.Contains(m.bits[from:to], true); got != want {
					t.Fatalf("Any(%d, %d) = %v", from, to, got)
				}
			},
			"or": func(t *rapid.T) {
				first := rapid.Int64Range(0, s.Words()).Draw(t, "first")
				words := rapid.SliceOfN(rapid.SampledFrom([]uint64{0, 1, 1 << 63, ^uint64(0), 0xf0f0}), 0, 600).Draw(t, "words")
				var want int64
				bad := first+int64(len(words)) > s.Words()
				for i, w := range words {
					for k := range int64(64) {
						bad = bad || w>>k&1 != 0 && (first+int64(i))*64+k >= blocks
					}
				}
				for i, w := range words {
					for k := range int64(64) {
						if b := (first+int64(i))*64 + k; !bad && w>>k&1 != 0 {
							want += m.put(b, b+1, true)
						}
					}
				}
				got, err := s.OrWords(first, words)
				if got != want || errors.Is(err, ErrRange) != bad {
					t.Fatalf("OrWords(%d, %d words) = %d, %v; want %d, bad %v", first, len(words), got, err, want, bad)
				}
			},
			"take": func(t *rapid.T) {
				changed := s.ChangedPages(nil)
				if !slices.IsSorted(changed) {
					t.Fatalf("not ascending: %v", changed)
				}
				for p := range s.Pages() {
					if s.PageChanged(p) {
						t.Fatalf("page %d is changed after it was taken", p)
					}
					if slices.Contains(changed, p) {
						m.taken[p] = m.page(p)
					}
				}
			},
			"load": func(t *rapid.T) {
				if blocks == 0 {
					return
				}
				p := rapid.Int64Range(0, s.Pages()-1).Draw(t, "page")
				content := make([]byte, PageBytes)
				switch rapid.IntRange(0, 2).Draw(t, "kind") {
				case 0:
				case 1:
					for i := range content {
						content[i] = 0xff
					}
				case 2:
					binary.LittleEndian.PutUint64(content[8*rapid.IntRange(0, WordsPerPage-1).Draw(t, "word"):], rapid.Uint64().Draw(t, "value"))
				}
				old, bad := m.page(p), false
				for i := range int64(BlocksPerPage) {
					b := p*BlocksPerPage + i
					v := content[i/8]>>(i%8)&1 != 0
					if b < blocks {
						m.bits[b] = v
					} else if v {
						bad = true
					}
				}
				if err := s.LoadPage(p, content); errors.Is(err, ErrRange) != bad {
					t.Fatalf("LoadPage: %v, bad %v", err, bad)
				}
				if bad {
					content = old
					for i := range min(BlocksPerPage, blocks-p*BlocksPerPage) {
						m.bits[p*BlocksPerPage+i] = old[i/8]>>(i%8)&1 != 0
					}
				} else {
					m.taken[p] = content
				}
			},
			"": func(t *rapid.T) { m.checkAll(t, s) },
		})
	})
}

// FuzzSet runs a program of three-byte-operand operations on a set and on the model.
func FuzzSet(f *testing.F) {
	f.Add([]byte{0, 0, 0, 255, 255, 1, 1, 0, 2, 0})
	f.Add([]byte{2, 0, 0, 0, 0, 1, 124, 0, 124, 1, 3, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, program []byte) {
		const blocks = 2*BlocksPerPage + 77
		s, m := NewSet(blocks), newNaive(blocks)
		for ; len(program) >= 5; program = program[5:] {
			a := int64(binary.BigEndian.Uint16(program[1:])) * (blocks + 1) / 65536
			b := int64(binary.BigEndian.Uint16(program[3:])) * (blocks + 1) / 65536
			from, to := min(a, b), max(a, b)
			switch program[0] % 4 {
			case 0:
				if got, want := s.Set(from, to), m.put(from, to, true); got != want {
					t.Fatalf("Set = %d, want %d", got, want)
				}
			case 1:
				if got, want := s.Clear(from, to), m.put(from, to, false); got != want {
					t.Fatalf("Clear = %d, want %d", got, want)
				}
			case 2:
				s.SetAll()
				m.put(0, blocks, true)
			case 3:
				for _, p := range s.ChangedPages(nil) {
					m.taken[p] = m.page(p)
				}
			}
		}
		m.checkAll(t, s)
	})
}
