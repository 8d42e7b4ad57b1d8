package protocol

import (
	"cmp"
	"fmt"
	"strings"
)

// AfterSB is what is done about a split brain without an operator's word. The
// names and their meaning are DRBD's.
type AfterSB uint8

// The policies. The zero value does nothing.
const (
	AfterSBDisconnect     AfterSB = iota // refuse, until an operator acts
	DiscardYoungerPrimary                // the side that was promoted after the parting is given up
	DiscardOlderPrimary                  // the side that was primary at the parting is given up
	DiscardZeroChanges                   // a side without a changed block is given up
	DiscardLeastChanges                  // the side with fewer changed blocks is given up
	DiscardNode                          // the named node is given up
	Consensus                            // as without a primary, if that gives up the secondary
	DiscardSecondary                     // the secondary is given up
	CallPriLost                          // as Consensus; where a primary would be given up, its hook is called
)

// String returns the policy's name; DiscardNode's lacks the node.
func (a AfterSB) String() string {
	return word(uint8(a), "disconnect", "discard-younger-primary", "discard-older-primary", "discard-zero-changes", "discard-least-changes",
		"discard-node", "consensus", "discard-secondary", "call-pri-lost-after-sb")
}

// afterSB lists what is possible with none, one and two primaries. DRBD's
// violently-as0p is not there: it overwrites a primary under its clients.
var afterSB = [3][]AfterSB{
	{AfterSBDisconnect, DiscardYoungerPrimary, DiscardOlderPrimary, DiscardZeroChanges, DiscardLeastChanges, DiscardNode},
	{AfterSBDisconnect, Consensus, DiscardSecondary, CallPriLost},
	{AfterSBDisconnect, CallPriLost},
}

// SplitPolicy is what is done about a split brain, by the number of primaries.
type SplitPolicy struct {
	Pri0, Pri1, Pri2 AfterSB
	Node             string // of DiscardNode in Pri0; else ""
}

// String returns the policy as the texts for people have it.
func (p SplitPolicy) String() string {
	zero := p.Pri0.String()
	if p.Pri0 == DiscardNode {
		zero += "-" + p.Node
	}
	return fmt.Sprintf("after-sb-0pri %s, after-sb-1pri %s, after-sb-2pri %s", zero, p.Pri1, p.Pri2)
}

// ParseAfterSB reads the policy for 0, 1 or 2 primaries; node is set for
// discard-node-NAME. The error lists what is possible.
func ParseAfterSB(primaries int, text string) (a AfterSB, node string, err error) {
	var names []string
	for _, a := range afterSB[primaries] {
		if a == DiscardNode {
			if name, ok := strings.CutPrefix(text, "discard-node-"); ok && name != "" && len(name) <= NameMax {
				return a, name, nil
			}
			names = append(names, "discard-node-NAME")
			continue
		}
		if a.String() == text {
			return a, "", nil
		}
		names = append(names, a.String())
	}
	return 0, "", fmt.Errorf("%q is not a policy for %d primaries: possible are %s", text, primaries, strings.Join(names, ", "))
}

func (p *SplitPolicy) encode(b []byte) []byte {
	return putName(append(b, byte(p.Pri0), byte(p.Pri1), byte(p.Pri2)), p.Node)
}

func (p *SplitPolicy) decode(r *reader) {
	p.Pri0, p.Pri1, p.Pri2 = AfterSB(r.u8()), AfterSB(r.u8()), AfterSB(r.u8())
	p.Node = r.name(p.Node)
}

// check takes any known policy in any place: a wrong one decides nothing.
func (p *SplitPolicy) check() error {
	limit := uint8(CallPriLost)
	return cmp.Or(checkEnum("after-sb-0pri", uint8(p.Pri0), 0, limit), checkEnum("after-sb-1pri", uint8(p.Pri1), 0, limit),
		checkEnum("after-sb-2pri", uint8(p.Pri2), 0, limit), checkNameOrNone(p.Node))
}

// Range is a range of bytes.
type Range struct{ Off, Len int64 }

// Changes is what a replica has written since it parted from the receiver, as far
// as the receiver may lack it.
type Changes struct {
	First, Last int64   // when, by its own clock, ns since 1970; 0: never
	Ranges      []Range // coarse: every changed block is in one; at most ChangesMax
}

func (c *Changes) encode(b []byte) []byte {
	b = putI64(putI64(b, c.First), c.Last)
	b = putU16(b, uint16(len(c.Ranges)))
	for _, r := range c.Ranges {
		b = putI64(putI64(b, r.Off), r.Len)
	}
	return b
}

func (c *Changes) decode(r *reader) {
	c.First, c.Last = r.i64(), r.i64()
	c.Ranges = resize(c.Ranges, r.count("ranges", ChangesMax))
	for i := range c.Ranges {
		c.Ranges[i].Off, c.Ranges[i].Len = r.i64(), r.i64()
	}
}

func (c *Changes) check() error {
	if err := checkCount("ranges", len(c.Ranges), ChangesMax); err != nil {
		return err
	}
	for _, r := range c.Ranges {
		if r.Off < 0 || r.Len < 0 || r.Off+r.Len < 0 {
			return fmt.Errorf("range %d+%d: %w", r.Off, r.Len, ErrMalformed)
		}
	}
	return nil
}
