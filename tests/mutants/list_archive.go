package main

// ofArchives loses what a side was to keep.
var ofArchives = []Mutant{
	{
		Name:  "archive-not-synced",
		Why:   "a block is overwritten before its copy in the archive is on stable storage",
		Edits: []Edit{{"volume/archive/file.go", "	return f.sync(end)\n", "	_ = end\n	return nil\n"}},
	},
	{
		Name:  "archive-ends-before-the-loss",
		Why:   "an archive ends before it is durable that the sync has: a crash between leaves a sync that cannot be resumed",
		Edits: []Edit{{"replica/discard.go", "	m.whenDurable(func() { m.emit(Effect{Kind: DoArchiveEnd, Discard: d}) })\n", "	m.emit(Effect{Kind: DoArchiveEnd, Discard: d})\n"}},
	},
}
