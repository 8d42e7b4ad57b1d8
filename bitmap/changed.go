package bitmap

// AnyChanged reports whether a page has changed since it was last taken.
func (s *Set) AnyChanged() bool {
	for _, w := range s.changed {
		if w != 0 {
			return true
		}
	}
	return false
}
