package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/qrbd/qrbd/volume"
)

// explainLines lays an explanation out in width columns:
//
//	crm
//	  promote  would be refused: …
//	  beta     nothing to copy (rule equal-generations, no-sync)
//	           current=9f…  peer-current=9f…
func explainLines(e volume.Explanation, p palette, width int) []string {
	label := columns("promote")
	for _, peer := range e.Peers {
		label = max(label, columns(clean(peer.Name)))
	}
	lead := func(s string) string { return "  " + pad(p.paint(bold, clean(s)), label) + "  " }
	indent := strings.Repeat(" ", label+4)
	lines := []string{p.paint(bold, clean(e.Volume)), ""}
	lines = append(lines, wrap(lead("promote"), clean(e.Promote), width)...)
	if e.Frozen != "" {
		lines = append(lines, wrap(lead("frozen"), clean(e.Frozen), width)...)
	}
	for _, peer := range e.Peers {
		lines = append(lines, "")
		lines = append(lines, wrap(lead(peer.Name), clean(peer.Text), width)...)
		if !peer.Heard {
			lines = append(lines, indent+p.paint(dim, "it has said nothing since this agent started"))
		}
		if peer.Strategy != "" {
			lines = append(lines, indent+p.paint(dim, "outcome  ")+peer.Strategy)
		}
		if peer.Rule != "" {
			lines = append(lines, indent+p.paint(dim, "rule     ")+clean(peer.Rule))
		}
		for i, id := range peer.IDs {
			title := "         "
			if i == 0 {
				title = "ids      "
			}
			lines = append(lines, indent+p.paint(dim, title)+clean(id))
		}
		if peer.Policy != "" {
			lines = append(lines, wrap(indent+p.paint(dim, "policy   "), clean(peer.Policy), width)...)
		}
		lines = append(lines, sidesLines(peer, p, indent, width)...)
	}
	return lines
}

// sidesLines says which side wrote what since the two parted, and what each way to
// settle a split brain loses.
func sidesLines(peer volume.ExplainPeer, p palette, indent string, width int) []string {
	var lines []string
	for i, s := range peer.Sides {
		name := clean(s.Node)
		text := wroteText(s)
		if i == 1 && !peer.HeardAt.IsZero() {
			text += ", as it said at " + timeText(peer.HeardAt)
		}
		lines = append(lines, "")
		lines = append(lines, wrap(indent, name+" "+text, width)...)
		for j, r := range s.Ranges {
			title := "         "
			if j == 0 {
				title = "within   "
			}
			lines = append(lines, indent+p.paint(dim, title)+fmt.Sprintf("%s from %s on", bytesText(r.Len), bytesText(r.Off)))
		}
	}
	for _, c := range peer.Choices {
		lines = append(lines, "")
		lines = append(lines, wrap(indent, "to keep "+clean(c.Keeps)+" "+losesText(c), width)...)
		for _, x := range c.Commands {
			lines = append(lines, indent+p.paint(dim, "on "+clean(x.Node)+"  ")+clean(x.Command))
		}
	}
	return lines
}

func timeText(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// wroteText is what a side wrote, in words.
func wroteText(s volume.ExplainSide) string {
	since := "since the two parted"
	if strings.Trim(s.Since, "0") != "" {
		since += " at generation " + clean(s.Since)
	}
	if s.Bytes == 0 {
		return "(" + clean(s.Role) + ", " + clean(s.Disk) + ") wrote nothing " + since
	}
	amount := bytesText(s.Bytes)
	if s.AtMost {
		amount = "at most " + amount
	}
	text := fmt.Sprintf("(%s, %s) changed %s %s", clean(s.Role), clean(s.Disk), amount, since)
	if !s.First.IsZero() {
		text += fmt.Sprintf(": first write %s, last %s, by its own clock", timeText(s.First), timeText(s.Last))
	}
	return text
}

// losesText is what a choice loses, in words.
func losesText(c volume.ExplainChoice) string {
	amount := bytesText(c.Bytes)
	if c.AtMost || c.Full {
		amount = "at most " + amount
	}
	text := fmt.Sprintf("and give up %s: what it changed (%s) is overwritten with what %s has", clean(c.GivesUp), amount, clean(c.Keeps))
	if c.Full {
		text = fmt.Sprintf("and give up %s: everything that it wrote since they parted is overwritten with what %s has. The last common generation is too long ago to say which "+
			"blocks those are; all of the volume is compared", clean(c.GivesUp), clean(c.Keeps))
	}
	return text
}
