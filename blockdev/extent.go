package blockdev

// AppendExtent appends e to list, which must end where e begins, merging it with
// the last extent when they are of one kind. An empty extent is dropped.
func AppendExtent(list []Extent, e Extent) []Extent {
	if e.Len <= 0 {
		return list
	}
	if n := len(list); n > 0 {
		last := &list[n-1]
		if last.Hole == e.Hole && last.Zero == e.Zero {
			last.Len += e.Len
			return list
		}
	}
	return append(list, e)
}
