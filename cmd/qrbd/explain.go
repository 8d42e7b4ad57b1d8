package main

import (
	"strings"

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
	}
	return lines
}
