package control

import (
	"fmt"
	"strings"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
)

// Cause is one thing that is not as it should be.
type Cause struct {
	Volume string `json:"volume"`
	Peer   string `json:"peer,omitempty"` // "": the volume's own disk
	Text   string `json:"cause"`
}

// String is the cause on one line: "crm/beta: connecting (no answer)".
func (c Cause) String() string {
	who := c.Volume
	if c.Peer != "" {
		who += "/" + c.Peer
	}
	return oneLine(who + ": " + c.Text)
}

// oneLine keeps what comes from elsewhere from looking like another line.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// Health is whether every volume of a node is as it should be.
type Health struct {
	Node    string  `json:"node"`
	Healthy bool    `json:"healthy"`
	Causes  []Cause `json:"causes"`
}

// Health returns what is not as it should be on the node, nothing when every copy
// of every volume is connected, up-to-date and without differences. Which node is
// primary does not matter, nor whether one is.
func (s NodeStatus) Health() Health {
	h := Health{Node: s.Node, Causes: []Cause{}}
	for i := range s.Volumes {
		h.Causes = append(h.Causes, causes(&s.Volumes[i])...)
	}
	h.Healthy = len(h.Causes) == 0
	return h
}

// causes returns why a volume is not up-to-date on every node.
func causes(v *volume.Status) []Cause {
	var out []Cause
	add := func(peer, text, reason string) { out = append(out, Cause{v.Name, peer, withReason(text, reason)}) }
	if v.Disk != protocol.UpToDate.String() && !v.Witness {
		add("", "the disk is "+v.Disk, v.Reason)
	}
	if v.Frozen != "" {
		add("", "requests are not answered", v.Frozen)
	}
	for i := range v.Peers {
		switch p := &v.Peers[i]; {
		case p.Connection != protocol.Connected.String():
			add(p.Name, fmt.Sprintf("%s is %s", p.Name, p.Connection), p.Reason)
		case p.Witness: // it holds no data
		case p.Disk != protocol.UpToDate.String():
			add(p.Name, fmt.Sprintf("the disk of %s is %s", p.Name, p.Disk), p.Reason)
		case p.OutOfSync > 0:
			add(p.Name, fmt.Sprintf("%d bytes are out of sync with %s", p.OutOfSync, p.Name), "")
		}
	}
	return out
}
