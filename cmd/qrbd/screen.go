package main

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// palette colours words, or leaves them plain.
type palette struct{ on bool }

// The colours in use, as SGR parameters.
const (
	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
	strong = "1;32" // bold green
)

func (p palette) paint(code, s string) string {
	if !p.on || s == "" || code == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// stateColours gives each state of DESIGN's vocabulary its colour; a state that
// is not listed is plain.
var stateColours = map[string]string{
	"primary":       strong,
	"up-to-date":    green,
	"consistent":    yellow,
	"outdated":      yellow,
	"inconsistent":  yellow,
	"failed":        red,
	"diskless":      red,
	"connected":     green,
	"connecting":    yellow,
	"standalone":    red,
	"sync-source":   cyan,
	"sync-target":   cyan,
	"verify-source": cyan,
	"verify-target": cyan,
	"ahead":         yellow,
	"behind":        yellow,
	"unknown":       dim,
	"off":           dim,
}

// state is the word in its colour.
func (p palette) state(word string) string { return p.paint(stateColours[word], word) }

// pad fills s with spaces up to width columns, counting what is seen.
func pad(s string, width int) string {
	if n := width - columns(s); n > 0 {
		return s + strings.Repeat(" ", n)
	}
	return s
}

// columns counts the columns of s without its colour sequences.
func columns(s string) int {
	n := 0
	for i := 0; i < len(s); {
		if l := escape(s[i:]); l > 0 {
			i += l
			continue
		}
		_, l := utf8.DecodeRuneInString(s[i:])
		i += l
		n++
	}
	return n
}

// escape returns the length of the colour sequence that s begins with, or 0.
func escape(s string) int {
	if !strings.HasPrefix(s, "\x1b[") {
		return 0
	}
	if end := strings.IndexByte(s, 'm'); end > 0 {
		return end + 1
	}
	return 0
}

// clip cuts s to width columns, keeping colour sequences.
func clip(s string, width int) string {
	if columns(s) <= width {
		return s
	}
	var b strings.Builder
	n := 0
	coloured := false
	for i := 0; i < len(s); {
		if l := escape(s[i:]); l > 0 {
			b.WriteString(s[i : i+l])
			coloured = true
			i += l
			continue
		}
		if n == width-1 {
			break
		}
		_, l := utf8.DecodeRuneInString(s[i:])
		b.WriteString(s[i : i+l])
		i += l
		n++
	}
	b.WriteString("…")
	if coloured {
		b.WriteString("\x1b[0m")
	}
	return b.String()
}

// wrap breaks text into lines of at most width columns; the first is preceded
// by first, the others by as many spaces. A word longer than that stays whole.
func wrap(first, text string, width int) []string {
	indent := strings.Repeat(" ", columns(first))
	lines := []string{}
	line, used := first, columns(first)
	fresh := true
	for _, word := range strings.Fields(text) {
		n := utf8.RuneCountInString(word)
		if !fresh && used+1+n > width {
			lines = append(lines, line)
			line, used, fresh = indent, columns(indent), true
		}
		if !fresh {
			line += " "
			used++
		}
		line += word
		used += n
		fresh = false
	}
	return append(lines, line)
}

// clean makes text from elsewhere safe to show: control characters, which could
// move the cursor or change colours, become spaces.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
}

func writeLines(w io.Writer, lines []string) {
	for _, l := range lines {
		fmt.Fprintln(w, l)
	}
}

// bytesText is n in the largest unit that leaves at least 1, with a decimal below
// 100 if it is not whole: "10 GiB", "1.2 MiB", "126 MiB", "512 B".
func bytesText(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	v, i := float64(n), 0
	for v >= 1023.5 && i < len(units)-1 {
		v /= 1024
		i++
	}
	if i == 0 || v == float64(int64(v)) || v >= 99.95 {
		return fmt.Sprintf("%.0f %s", v, units[i])
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}

// durationText is d in its two largest units: "11s", "3m20s", "2h05m", "3d04h".
func durationText(d time.Duration) string {
	s := int64(d / time.Second)
	if d%time.Second > 0 {
		s++
	}
	switch {
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return fmt.Sprintf("%dm%02ds", s/60, s%60)
	case s < 86400:
		return fmt.Sprintf("%dh%02dm", s/3600, s%3600/60)
	case s < 1000*86400:
		return fmt.Sprintf("%dd%02dh", s/86400, s%86400/3600)
	}
	return "years"
}

// bar is a progress bar of width columns: blocks on a coloured terminal, ASCII
// elsewhere.
func bar(p palette, percent float64, width int) string {
	full := int(percent / 100 * float64(width))
	full = min(max(full, 0), width)
	if !p.on {
		return "[" + strings.Repeat("#", full) + strings.Repeat("-", width-full) + "]"
	}
	return p.paint(cyan, strings.Repeat("█", full)) + p.paint(dim, strings.Repeat("░", width-full))
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
