package ledger

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Reader is the disk to judge.
type Reader interface {
	// ReadAt fills p from off, all of it or an error.
	ReadAt(p []byte, off int64) error
}

// Fault is a sector that the rule does not allow.
type Fault struct {
	Off  int64 // on the disk, bytes
	Text string
}

// Verdict is the outcome of Judge.
type Verdict struct {
	Rule    Rule
	Sectors int     // looked at
	Written int     // of them with a write of the ledger
	Bad     int     // that the rule does not allow
	Faults  []Fault // the first of them
}

// faultsMax bounds the faults that are described: more say nothing new.
const faultsMax = 8

// Err returns nil, or an error with the first faults.
func (v Verdict) Err() error {
	if v.Bad == 0 {
		return nil
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d of %d sectors break rule %q:", v.Bad, v.Sectors, v.Rule)
	for _, f := range v.Faults {
		fmt.Fprintf(&b, "\n  byte %d: %s", f.Off, f.Text)
	}
	return fmt.Errorf("%s", b.String())
}

// found is what one sector of a disk holds.
type found struct {
	content content
	stamp   Stamp
}

// Judge reads the region and decides whether a disk may hold that by the rule.
// No write may be under way.
func (l *Ledger) Judge(r Reader, rule Rule) (Verdict, error) {
	state, err := l.read(r)
	if err != nil {
		return Verdict{}, err
	}
	return l.judge(state, rule), nil
}

// Rebase reads the region and takes what it holds as the acknowledged and
// durable past: what was not found will not come back, and what was found must
// stay. It is called after Judge, before the disk is written again.
func (l *Ledger) Rebase(r Reader) error {
	state, err := l.read(r)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clock++
	settled := Stamp(len(l.ops)) // one op for all sectors that read as zeroes
	l.ops = append(l.ops, op{zeroes: true, issue: l.clock, ack: l.clock, durable: l.clock})
	l.volatile = nil
	for i, f := range state {
		s := settled
		if f.content == written {
			s = f.stamp
			if o := &l.ops[s]; o.ack == 0 {
				o.ack = l.clock
			}
			l.ops[s].durable = l.clock
		}
		l.sectors[i] = []Stamp{s}
	}
	return nil
}

func (l *Ledger) read(r Reader) ([]found, error) {
	state := make([]found, 0, l.size/sectorSize)
	buf := make([]byte, 1<<20)
	for off := l.off; off < l.off+l.size; {
		p := buf[:min(int64(len(buf)), l.off+l.size-off)]
		if err := r.ReadAt(p, off); err != nil {
			return nil, fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
		}
		for i := 0; i < len(p); i += sectorSize {
			c, s := identify(p[i:i+sectorSize], l.id, uint64(off)/sectorSize+uint64(i/sectorSize))
			state = append(state, found{c, Stamp(s)})
		}
		off += int64(len(p))
	}
	return state, nil
}

func (l *Ledger) judge(state []found, rule Rule) Verdict {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := uint64(math.MaxUint64)
	if rule == Ordered {
		before = l.momentOf(state)
	}
	v := Verdict{Rule: rule, Sectors: len(state)}
	for i, f := range state {
		if f.content == written {
			v.Written++
		}
		text := l.complaint(int64(i), f, rule, before)
		if text == "" {
			continue
		}
		v.Bad++
		if len(v.Faults) < faultsMax {
			v.Faults = append(v.Faults, Fault{l.off + int64(i)*sectorSize, text})
		}
	}
	return v
}

// momentOf returns the time of issue of the newest write found: the earliest
// moment at which the disk can have had this state. REQUIRES l.mu.
func (l *Ledger) momentOf(state []found) uint64 {
	var at uint64
	for _, f := range state {
		if f.content == written && int(f.stamp) < len(l.ops) {
			at = max(at, l.ops[f.stamp].issue)
		}
	}
	return at
}

// complaint says what is wrong with a sector of the region; "": nothing.
// REQUIRES l.mu.
func (l *Ledger) complaint(sector int64, f found, rule Rule, before uint64) string {
	switch f.content {
	case zero:
		var t Stamp
		for _, s := range l.sectors[sector] {
			if !l.ops[s].zeroes {
				continue
			}
			if t = l.staleBy(sector, s, rule, before); t == 0 {
				return ""
			}
		}
		return fmt.Sprintf("zeroes, but %s must be there or a later one", l.describe(t))
	case written:
		if !slices.Contains(l.sectors[sector], f.stamp) {
			return fmt.Sprintf("write %d, which was never issued here since the last rebase", f.stamp)
		}
		if t := l.staleBy(sector, f.stamp, rule, before); t != 0 {
			return fmt.Sprintf("%s, but %s must be there or a later one", l.describe(f.stamp), l.describe(t))
		}
		return ""
	case torn, misplaced, foreign:
		return fmt.Sprintf("%v sector, stamp %d", f.content, f.stamp)
	}
	return fmt.Sprintf("content %d", f.content)
}

func (l *Ledger) describe(s Stamp) string {
	o := l.ops[s]
	return fmt.Sprintf("write %d (issued %d, acked %d, durable %d)", s, o.issue, o.ack, o.durable)
}

// check judges sectors read while the disk was in use, by a read that began at
// time began: rule Acked, as of then.
func (l *Ledger) check(p []byte, off int64, began uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := 0; i < len(p); i += sectorSize {
		sector := uint64(off)/sectorSize + uint64(i/sectorSize)
		c, s := identify(p[i:i+sectorSize], l.id, sector)
		local := (off-l.off)/sectorSize + int64(i/sectorSize)
		if text := l.complaint(local, found{c, Stamp(s)}, Acked, began); text != "" {
			return fmt.Errorf("read at %d found, at byte %d: %s", off, off+int64(i), text)
		}
	}
	return nil
}
