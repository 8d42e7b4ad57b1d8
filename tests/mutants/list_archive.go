package main

// Where the simulator's seeds begin in which what is named is common (tests/sim:
// threeFrom, restoresFrom, themesFrom, switchoversFrom).
const (
	threes      = 2_000_000
	restores    = 6_000_000
	fullStores  = 7_000_000
	refills     = 7_100_000
	splits      = 7_300_000
	quickCuts   = 7_400_000
	shelves     = 7_500_000
	carriers    = 7_200_000
	laggards    = 7_600_000
	blind       = 7_700_000
	switchovers = 12_000_000
)

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
	{
		Name:  "unvouched-archive-believed",
		Why:   "an archive that says that it follows is believed, though the metadata do not vouch for it: what was overwritten beside it is missing",
		First: shelves,
		Edits: []Edit{{"volume/archive/dir.go", "	case f.head.File == d.opt.Vouched:\n", "	case d.live.Load() == nil:\n"}},
	},
	{
		Name:  "connects-under-a-restore",
		Why:   "a sync begins while a restore still writes: older blocks land over newer ones",
		First: restores,
		Edits: []Edit{{"replica/connect.go", "	if m.putting {", "	if m.putting && m.stopping {"}},
	},
	{
		Name:  "half-restored-promoted",
		Why:   "a replica is promoted in the middle of a restore",
		First: restores,
		Edits: []Edit{{"replica/promote.go", "	if m.restoring {\n		return m.unfinished()", "	if m.restoring && m.stopping {\n		return m.unfinished()"}},
	},
	{
		Name:  "restored-not-marked",
		Why:   "what a restore overwrites is not marked: a sync that comes later leaves it",
		First: restores,
		Edits: []Edit{{"replica/restore.go", "		m.standStill(p)\n		p.dirty.SetAll()\n", "		m.standStill(p)\n"}},
	},
}
