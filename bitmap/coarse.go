package bitmap

// Coarse returns at most limit ranges of blocks [from, to), in order, that hold every
// set bit; a range may hold clear ones too. It looks at every run once.
func (s *Set) Coarse(limit int) [][2]int64 {
	var out [][2]int64
	gap := int64(0) // ranges no further apart than this are one
	join := func() {
		n := 0
		for _, r := range out {
			if n > 0 && r[0]-out[n-1][1] <= gap {
				out[n-1][1] = r[1]
				continue
			}
			out[n] = r
			n++
		}
		out = out[:n]
	}
	for from := int64(0); from < s.blocks; {
		start, n := s.Next(from, s.blocks)
		if n == 0 {
			break
		}
		from = start + n
		if last := len(out) - 1; last >= 0 && start-out[last][1] <= gap {
			out[last][1] = from
			continue
		}
		out = append(out, [2]int64{start, from})
		for len(out) > limit {
			gap = 2*gap + 1
			join()
		}
	}
	return out
}
