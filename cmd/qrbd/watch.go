package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/qrbd/qrbd/agent/control"
)

// defaultInterval is how often --watch looks.
const defaultInterval = time.Second

// Terminal sequences: the alternate screen leaves what was there before alone.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	home        = "\x1b[H"
	clearLine   = "\x1b[K"
	clearBelow  = "\x1b[J"
)

// watch shows the status again and again: redrawn on a terminal, as blocks in a
// pipe, as one JSON object a line with --json. The first look must succeed;
// later an agent that is away is shown as such, since it may come back.
func watch(c call, client *control.Client) error {
	interval := c.Duration("interval")
	if interval < 100*time.Millisecond {
		return usage("status: --interval %s is too short: at least 100ms", interval)
	}
	ctx, cancel := context.WithCancel(c.Context.Context)
	defer cancel()
	st, err := fetchStatus(ctx, client, c.volumeName())
	if err != nil {
		return err
	}
	live := c.t.live && !c.Bool("json")
	if live {
		restore := startScreen(c.t, func(k key) {
			if k == keyQuit {
				cancel()
			}
		})
		defer restore()
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if err := show(c, st, err, live); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil // q or Ctrl-C: what was wanted
		case <-tick.C:
		}
		st, err = fetchStatus(ctx, client, c.volumeName())
	}
}

// show writes one look at the state.
func show(c call, st control.NodeStatus, failed error, live bool) error {
	now := time.Now()
	switch {
	case c.Bool("json"):
		if failed != nil {
			return failed
		}
		return printJSON(c.t.out, st)
	case live:
		width, height := c.t.size()
		_, err := fmt.Fprint(c.t.out, frame(watchLines(st, failed, now, palette{c.t.colour}, width), width, height))
		return err
	}
	lines := append(watchLines(st, failed, now, palette{c.t.colour}, 80), "")
	_, err := fmt.Fprintln(c.t.out, strings.Join(lines, "\n"))
	return err
}

// watchLines is a look with its time, or with why there is nothing to see.
func watchLines(st control.NodeStatus, failed error, now time.Time, p palette, width int) []string {
	lines := []string{p.paint(dim, now.Format("2006-01-02 15:04:05"))}
	if failed != nil {
		return append(append(lines, ""), notice(p, "", failed.Error(), width)...)
	}
	return append(lines, statusLines(st, p, width)...)
}

// frame is what redraws a screen of width by height with lines: each is cut to
// the width and clears the rest of its row, and the last row is for the keys. In
// raw mode a line ends with a carriage return too.
func frame(lines []string, width, height int) string {
	if room := height - 2; len(lines) > room && room > 0 {
		hidden := len(lines) - room + 1
		lines = append(lines[:room-1:room-1], fmt.Sprintf("… %s below: make the window taller, or name a volume", plural(hidden, "line")))
	}
	return drawn(lines, "q quits", width)
}

// drawn redraws the screen with lines and, below them, what keys do.
func drawn(lines []string, keys string, width int) string {
	var b strings.Builder
	b.WriteString(home)
	for _, l := range lines {
		b.WriteString(clip(l, width))
		b.WriteString(clearLine + "\r\n")
	}
	b.WriteString(clearLine + "\r\n" + clip(keys, width) + clearLine + clearBelow)
	return b.String()
}

// key is something that a person asked for with one.
type key uint8

// The keys.
const (
	keyNone key = iota
	keyQuit     // q, Ctrl-C, Ctrl-D, or the end of the terminal
	keySort     // s
	keyUp       // arrow, k
	keyDown     // arrow, j
)

// startScreen enters the alternate screen, and raw mode when keys can be read; press
// is called for each, from another goroutine. The returned function undoes it.
func startScreen(t *terminal, press func(key)) (restore func()) {
	fmt.Fprint(t.out, enterScreen)
	undo := func() {}
	if t.in != nil && term.IsTerminal(int(t.in.Fd())) {
		if old, err := term.MakeRaw(int(t.in.Fd())); err == nil {
			undo = func() { _ = term.Restore(int(t.in.Fd()), old) }
			go readKeys(t.in, press)
		}
	}
	return func() {
		fmt.Fprint(t.out, leaveScreen)
		undo()
	}
}

// readKeys ends with the process or the terminal.
func readKeys(in io.Reader, press func(key)) {
	b := make([]byte, 64)
	for {
		n, err := in.Read(b)
		if err != nil {
			press(keyQuit)
			return
		}
		for rest := b[:n]; len(rest) > 0; {
			k, used := nextKey(rest)
			rest = rest[used:]
			if k != keyNone {
				press(k)
			}
		}
	}
}

// nextKey returns the key that b begins with, and how many bytes it has. b is not
// empty.
func nextKey(b []byte) (k key, used int) {
	if len(b) >= 3 && b[0] == 0x1b && (b[1] == '[' || b[1] == 'O') { // an arrow is one read
		switch b[2] {
		case 'A':
			return keyUp, 3
		case 'B':
			return keyDown, 3
		}
		return keyNone, 3
	}
	switch b[0] {
	case 'q', 'Q', 3, 4: // 3, 4: Ctrl-C and Ctrl-D arrive as bytes in raw mode
		return keyQuit, 1
	case 's', 'S':
		return keySort, 1
	case 'k', 'K':
		return keyUp, 1
	case 'j', 'J':
		return keyDown, 1
	}
	return keyNone, 1
}
