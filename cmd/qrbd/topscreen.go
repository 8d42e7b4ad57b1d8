package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/volume"
)

// topSort is an order of volumes.
type topSort uint8

// The orders, as the key for them goes through them.
const (
	sortName topSort = iota
	sortTrouble
	sortLoad
	sortLatency
	topSorts
)

// String is the order's name on the screen.
func (s topSort) String() string { return [...]string{"name", "trouble", "load", "latency"}[s] }

// apply sorts; equal volumes are in the order of their names.
func (s topSort) apply(list []topVolume) {
	byName := func(a, b topVolume) int { return strings.Compare(a.Name, b.Name) }
	slices.SortFunc(list, func(a, b topVolume) int {
		switch s {
		case sortTrouble:
			return cmp.Or(cmp.Compare(troubles(b.status), troubles(a.status)), byName(a, b))
		case sortLoad:
			return cmp.Or(cmp.Compare(b.ReadRate+b.WriteRate, a.ReadRate+a.WriteRate), cmp.Compare(b.IOPS, a.IOPS), byName(a, b))
		case sortLatency:
			return cmp.Or(cmp.Compare(b.Write, a.Write), byName(a, b))
		case sortName, topSorts:
		}
		return byName(a, b)
	})
}

// troubles counts what is not as it should be.
func troubles(v *volume.Status) int {
	return len(control.NodeStatus{Volumes: []volume.Status{*v}}.Health().Causes)
}

// topColumn is a column of the list of volumes. Where the screen is too narrow, columns
// of the highest rank are left out first.
type topColumn struct {
	title string
	width int
	rank  int
	word  bool // is aligned to the left, figures to the right
	cell  func(p palette, v *topVolume) string
}

// nameMin is the least width of the first column.
const nameMin = 8

func figure(f func(v *topVolume) string) func(palette, *topVolume) string {
	return func(_ palette, v *topVolume) string {
		if !v.Known {
			return "-"
		}
		return f(v)
	}
}

var topColumns = []topColumn{
	{"ROLE", 9, 0, true, func(p palette, v *topVolume) string { return p.state(v.Role) }},
	{"DISK", 12, 1, true, func(p palette, v *topVolume) string { return p.state(v.Disk) }},
	{"READ/s", 6, 4, false, figure(func(v *topVolume) string { return shortBytes(v.ReadRate) })},
	{"WRITE/s", 7, 2, false, figure(func(v *topVolume) string { return shortBytes(v.WriteRate) })},
	{"IOPS", 5, 3, false, figure(func(v *topVolume) string { return shortCount(v.IOPS) })},
	{"WRITE", 5, 5, false, figure(func(v *topVolume) string { return shortTime(v.Write) })},
	{"99%", 5, 7, false, figure(func(v *topVolume) string { return shortTime(v.Write99) })},
	{"FLUSH", 5, 6, false, figure(func(v *topVolume) string { return shortTime(v.Flush) })},
}

// fitting returns the columns that fit beside a name, and how wide the name may be.
func fitting(width int) ([]topColumn, int) {
	list := slices.Clone(topColumns)
	for {
		rest := width
		worst := 0
		for i, c := range list {
			rest -= c.width + 1
			if c.rank > list[worst].rank {
				worst = i
			}
		}
		if rest >= nameMin || len(list) == 1 {
			return list, max(rest, 1)
		}
		list = slices.Delete(list, worst, worst+1)
	}
}

// lines lays all out in width columns.
func (v *topView) lines(width int) []string {
	p := v.colour
	lines := []string{v.head(width)}
	if v.failed != nil {
		return append(append(lines, ""), notice(p, "", v.failed.Error(), width)...)
	}
	list, nameWidth := fitting(width)
	longest := nameMin
	for i := range v.st.Volumes {
		longest = max(longest, columns(clean(v.st.Volumes[i].Name)))
	}
	nameWidth = min(nameWidth, longest)
	return append(append(lines, "", titleRow(p, list, nameWidth)), v.list(list, nameWidth, width)...)
}

// head is the first line: the node, the time, and whether all is well.
func (v *topView) head(width int) string {
	p := v.colour
	left := p.paint(bold, clean(v.st.Node)) + p.paint(dim, "  "+v.at.Format("15:04:05")+"  qrbd "+clean(v.st.Version))
	right := p.paint(green, "all is well")
	switch n := len(v.st.Health().Causes); {
	case v.failed != nil:
		right = p.paint(red, "the agent is away")
	case n > 0:
		right = p.paint(yellow, plural(n, "thing")+" to look at")
	}
	if gap := width - columns(left) - columns(right); gap >= 2 {
		return left + strings.Repeat(" ", gap) + right
	}
	return right
}

func titleRow(p palette, list []topColumn, nameWidth int) string {
	var b strings.Builder
	b.WriteString(pad("VOLUME", nameWidth))
	for _, c := range list {
		b.WriteString(" " + align(c, c.title))
	}
	return p.paint(dim, strings.TrimRight(b.String(), " "))
}

// align pads a cell.
func align(c topColumn, text string) string {
	if c.word {
		return pad(text, c.width)
	}
	return strings.Repeat(" ", max(0, c.width-columns(text))) + text
}

// list is a row for each volume, one for each of its peers, and one for each reason
// why something is not as it should be.
func (v *topView) list(list []topColumn, nameWidth, width int) []string {
	p := v.colour
	var lines []string
	for _, r := range v.rates() {
		var b strings.Builder
		b.WriteString(p.paint(bold, pad(clip(clean(r.Name), nameWidth), nameWidth)))
		for _, c := range list {
			b.WriteString(" " + align(c, c.cell(p, &r)))
		}
		lines = append(lines, strings.TrimRight(b.String(), " "))
		if r.status.Reason != "" {
			lines = append(lines, p.paint(yellow, clip("  ! "+clean(r.status.Reason), width)))
		}
		for _, s := range r.status.Peers {
			lines = append(lines, peerRow(p, s, width))
			if s.Reason != "" {
				lines = append(lines, p.paint(yellow, clip("    ! "+clean(s.Reason), width)))
			}
		}
	}
	if len(lines) == 0 {
		return []string{"no volumes are configured"}
	}
	return lines
}

// peerRow is a peer of a volume, with the bar of a sync or verify under way:
//
//	beta  established  up-to-date  in sync  0.3ms
//	beta  sync-source  [####----]  42.0%  112 MiB/s  53s left
func peerRow(p palette, s volume.PeerStatus, width int) string {
	parts := []string{"  " + clean(s.Name)}
	if syncing(s) {
		parts = append(parts, p.state(s.Replication))
		figures := []string{}
		percent := s.SyncPercent
		if s.SyncTotal > 0 {
			percent = 100 * float64(s.SyncDone) / float64(s.SyncTotal)
		}
		figures = append(figures, fmt.Sprintf("%.1f%%", floorTenth(percent)))
		if s.SyncRate > 0 {
			figures = append(figures, bytesText(s.SyncRate)+"/s")
		}
		if s.SyncETA > 0 {
			figures = append(figures, durationText(time.Duration(s.SyncETA*float64(time.Second)))+" left")
		}
		text := strings.Join(append(slices.Clone(parts), figures...), "  ")
		if room := width - columns(text) - 4; room >= barColumnsMin {
			parts = append(parts, bar(p, percent, min(room, barColumns)))
		}
		return clip(strings.Join(append(parts, figures...), "  "), width)
	}
	if s.Connection == "connected" {
		parts = append(parts, p.state(s.Replication), p.state(s.Disk))
	} else {
		parts = append(parts, p.state(s.Connection))
	}
	switch {
	case s.Connection == "connected" && s.OutOfSync == 0 && s.BehindSeconds != nil && *s.BehindSeconds < 1:
		parts = append(parts, "in sync") // but for what is on its way
	case s.BehindBytes > 0 && s.BehindSeconds != nil:
		parts = append(parts, p.paint(yellow, fmt.Sprintf("behind by %s, %s", bytesText(s.BehindBytes), durationText(time.Duration(*s.BehindSeconds*float64(time.Second))))))
	case s.BehindBytes > 0 || s.OutOfSync > 0:
		parts = append(parts, p.paint(yellow, "out of sync "+bytesText(max(s.OutOfSync, s.BehindBytes))))
	case s.Connection == "connected":
		parts = append(parts, "in sync")
	}
	if s.RTTMicros > 0 {
		parts = append(parts, p.paint(dim, "round trip "+shortTime(float64(s.RTTMicros)/1e6)))
	}
	return clip(strings.Join(parts, "  "), width)
}

// frame is what redraws a screen of width by height. The head and the titles stay;
// the list below them is scrolled.
func (v *topView) frame(width, height int) string {
	const fixed = 3 // head, an empty line, titles
	lines := v.lines(width)
	room := height - 2 // the last two rows are for the keys
	keys := "q quit  s sort: " + v.sort.String()
	if len(lines) > room && room > fixed {
		list := lines[fixed:]
		fits := room - fixed
		v.from = min(v.from, len(list)-fits)
		keys += fmt.Sprintf("  up/down: %d-%d of %s", v.from+1, v.from+fits, plural(len(list), "line"))
		lines = append(lines[:fixed:fixed], list[v.from:v.from+fits]...)
	} else {
		v.from = 0
	}
	return drawn(lines[:min(len(lines), max(room, 1))], keys, width)
}

// shortBytes is a number of bytes in at most five columns: 0, 512, 4.0K, 112M, 1.2G.
func shortBytes(n float64) string { return short(n, 1024, "", "K", "M", "G", "T", "P", "E") }

// shortCount is a count in at most five columns: 0, 12, 1.2k, 120k.
func shortCount(n float64) string { return short(n, 1000, "", "k", "M", "G", "T", "P", "E") }

// shortTime is a time in at most five columns: 88us, 1.2ms, 3.4s; "-" for zero.
func shortTime(seconds float64) string {
	if seconds <= 0 {
		return "-"
	}
	return short(max(seconds*1e6, 1), 1000, "us", "ms", "s", "ks", "Ms")
}

// short scales n down by base until it is below it, and gives it the unit.
func short(n, base float64, units ...string) string {
	i := 0
	for n >= base-0.5 && i < len(units)-1 {
		n /= base
		i++
	}
	if i == 0 || n >= 9.95 {
		return fmt.Sprintf("%.0f%s", n, units[i])
	}
	return fmt.Sprintf("%.1f%s", n, units[i])
}
