package fault

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/qrbd/qrbd/blockdev"
)

// Action is what a rule does to an operation.
type Action uint8

const (
	// Error: EIO. Nothing reaches the inner store.
	Error Action = iota
	// NoSpace: ENOSPC. Nothing reaches the inner store.
	NoSpace
	// Short: the first half of the range, in whole sectors, is done, then EIO.
	Short
	// Delay: the operation starts Rule.Delay later.
	Delay
	// Hang: the operation starts when the rule is gone.
	Hang
)

var actionNames = [...]string{Error: "error", NoSpace: "nospace", Short: "short", Delay: "delay", Hang: "hang"}

// String returns the action's word in a script.
func (a Action) String() string {
	if int(a) < len(actionNames) {
		return actionNames[a]
	}
	return fmt.Sprintf("action(%d)", uint8(a))
}

// Rule says which operations get which fault. The zero value fails every read.
type Rule struct {
	// Any: every operation, not only Op.
	Any bool
	Op  blockdev.Op

	Action Action
	// Delay: how much later, for the action Delay.
	Delay time.Duration

	// Off, Len: only operations that touch [Off, Off+Len). Len 0: everywhere.
	// A flush touches everything.
	Off, Len int64
	// Nth: only the nth operation that matches so far, from 1. 0: every one.
	Nth int
	// Count: at most so many times. 0: no limit.
	Count int
	// Probability that a match gets the fault. 0 and 1: always.
	Probability float64
}

// String returns the rule as a line of a script.
func (r Rule) String() string {
	var b strings.Builder
	op := r.Op.String()
	if r.Any {
		op = "any"
	}
	fmt.Fprintf(&b, "%s %v", op, r.Action)
	if r.Action == Delay {
		fmt.Fprintf(&b, " %v", r.Delay)
	}
	if r.Len > 0 {
		fmt.Fprintf(&b, " range=%d+%d", r.Off, r.Len)
	}
	if r.Nth > 0 {
		fmt.Fprintf(&b, " nth=%d", r.Nth)
	}
	if r.Count > 0 {
		fmt.Fprintf(&b, " count=%d", r.Count)
	}
	if r.Probability > 0 {
		fmt.Fprintf(&b, " p=%v", r.Probability)
	}
	return b.String()
}

// matches tells whether the rule is about an operation on [off, off+n).
func (r *Rule) matches(op blockdev.Op, off, n int64) bool {
	if !r.Any && r.Op != op {
		return false
	}
	return r.Len == 0 || op == blockdev.OpFlush || off < r.Off+r.Len && r.Off < off+n
}

// Parse reads a script, one rule a line; # begins a comment. The error names the
// line.
func Parse(script io.Reader) ([]Rule, error) {
	var rules []Rule
	lines := bufio.NewScanner(script)
	for number := 1; lines.Scan(); number++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		words := strings.Fields(text)
		if len(words) == 0 {
			continue
		}
		r, err := parseRule(words)
		if err != nil {
			return nil, fmt.Errorf("fault script, line %d: %w", number, err)
		}
		rules = append(rules, r)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("fault script: %w", err)
	}
	return rules, nil
}

func parseRule(words []string) (Rule, error) {
	var r Rule
	if len(words) < 2 {
		return r, fmt.Errorf("%q: want an operation and an action", words[0])
	}
	op, action, rest := words[0], words[1], words[2:]
	if err := r.parseOp(op); err != nil {
		return r, err
	}
	known := false
	for a, name := range actionNames {
		if name == action {
			r.Action, known = Action(a), true
		}
	}
	if !known {
		return r, fmt.Errorf("unknown action %q", action)
	}
	if r.Action == Delay {
		if len(rest) == 0 {
			return r, fmt.Errorf("delay needs a duration")
		}
		d, err := time.ParseDuration(rest[0])
		if err != nil || d < 0 {
			return r, fmt.Errorf("bad duration %q", rest[0])
		}
		r.Delay, rest = d, rest[1:]
	}
	for _, word := range rest {
		if err := r.parseOption(word); err != nil {
			return r, err
		}
	}
	return r, nil
}

func (r *Rule) parseOp(word string) error {
	if word == "any" {
		r.Any = true
		return nil
	}
	for op := blockdev.OpRead; op <= blockdev.OpFlush; op++ {
		if op.String() == word {
			r.Op = op
			return nil
		}
	}
	return fmt.Errorf("unknown operation %q", word)
}

func (r *Rule) parseOption(word string) error {
	key, value, _ := strings.Cut(word, "=")
	var err error
	switch key {
	case "nth":
		r.Nth, err = parsePositive(value)
	case "count":
		r.Count, err = parsePositive(value)
	case "p":
		r.Probability, err = strconv.ParseFloat(value, 64)
		if err == nil && !(r.Probability > 0 && r.Probability <= 1) {
			err = fmt.Errorf("not in (0, 1]")
		}
	case "range":
		off, n, _ := strings.Cut(value, "+")
		if r.Off, err = strconv.ParseInt(off, 10, 64); err == nil {
			r.Len, err = strconv.ParseInt(n, 10, 64)
		}
		if err == nil {
			if r.Off < 0 || r.Len <= 0 || r.Off+r.Len < 0 {
				err = fmt.Errorf("want OFFSET+LENGTH")
			}
		}
	default:
		return fmt.Errorf("unknown option %q", word)
	}
	if err != nil {
		return fmt.Errorf("option %q: %w", word, err)
	}
	return nil
}

func parsePositive(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err == nil && n <= 0 {
		err = fmt.Errorf("not positive")
	}
	return n, err
}
