package volume

import (
	"time"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
)

// Explanation is what `qrbd explain` says of a volume.
type Explanation struct {
	Volume  string        `json:"volume"`
	Promote string        `json:"promote"`          // what promote would do now, and why
	Frozen  string        `json:"frozen,omitempty"` // why this primary answers nothing until a peer is fenced
	Peers   []ExplainPeer `json:"peers"`
}

// ExplainPeer is what would happen on connecting to one peer, judged by what it
// said last.
type ExplainPeer struct {
	Name     string    `json:"name"`
	Heard    bool      `json:"heard"` // false: it never said anything since this agent started
	HeardAt  time.Time `json:"heard_at,omitzero"`
	Rule     string    `json:"rule,omitempty"`
	Strategy string    `json:"strategy,omitempty"`
	Text     string    `json:"text"`
	IDs      []string  `json:"ids,omitempty"` // the generation ids that the rule looked at, "name=value"

	SplitBrain bool            `json:"split_brain"`
	Policy     string          `json:"policy,omitempty"`  // of this node, for a split brain
	Sides      []ExplainSide   `json:"sides,omitempty"`   // this node's and the peer's; none when neither lacks anything
	Choices    []ExplainChoice `json:"choices,omitempty"` // how a split brain can be settled
}

// ExplainSide is what one side wrote since the two parted, as far as the other
// may lack it.
type ExplainSide struct {
	Node       string         `json:"node"`
	Role       string         `json:"role"`
	Disk       string         `json:"disk"`
	Generation string         `json:"generation"`
	Since      string         `json:"since"`            // generation at which the other was last in sync; zeroes: not known
	Bytes      int64          `json:"bytes"`            // in blocks that may differ
	AtMost     bool           `json:"at_most"`          // whole extents are counted since it stopped without notice
	First      time.Time      `json:"first,omitzero"`   // write, by this side's clock
	Last       time.Time      `json:"last,omitzero"`    // write
	Ranges     []ExplainRange `json:"ranges,omitempty"` // coarse: at most 16 that hold all of it
}

// ExplainRange is a range of bytes.
type ExplainRange struct {
	Off int64 `json:"off"`
	Len int64 `json:"len"`
}

// ExplainChoice is one way to settle a split brain.
type ExplainChoice struct {
	GivesUp  string           `json:"gives_up"` // node whose writes since the parting are lost
	Keeps    string           `json:"keeps"`
	Bytes    int64            `json:"bytes"` // that are lost
	AtMost   bool             `json:"at_most"`
	Full     bool             `json:"full"` // everything is compared: nothing says which blocks differ
	Commands []ExplainCommand `json:"commands"`
}

// ExplainCommand is a command and where to run it.
type ExplainCommand struct {
	Node    string `json:"node"`
	Command string `json:"command"`
}

// Explain implements Control.
func (v *Volume) Explain() Explanation {
	v.mu.Lock()
	defer v.mu.Unlock()
	e := Explanation{Volume: v.opt.Name}
	switch err := v.m.MayPromote(v.now(), replica.PromoteOptions{}); {
	case v.m.View().Role == protocol.Primary:
		e.Promote = v.opt.Self + " is primary already"
	case err != nil:
		e.Promote = "refused: " + err.Error()
	default:
		e.Promote = v.opt.Self + " would become primary; every connected peer is asked first"
	}
	e.Frozen = v.m.View().Frozen
	for i := range v.peers() {
		e.Peers = append(e.Peers, v.explainPeer(replica.PeerID(i)))
	}
	return e
}

// explainPeer REQUIRES v.mu.
func (v *Volume) explainPeer(id replica.PeerID) ExplainPeer {
	name := v.peers()[id].Name
	x := v.m.Explain(id)
	out := ExplainPeer{Name: name, Heard: x.Peer != nil}
	if x.Peer == nil {
		out.Text = name + " has not been heard since this agent started: what a connection would do is decided by both sides' generations"
		if side := v.side(v.opt.Self, x.Me, name); side.Bytes > 0 || !side.First.IsZero() {
			out.Sides = []ExplainSide{side}
		}
		return out
	}
	out.HeardAt = when(x.HeardAt)
	out.Rule, out.Strategy = string(x.Decision.Rule), x.Decision.Strategy.String()
	out.Text = x.Decision.Text(v.opt.Self, name, v.opt.Name)
	for _, id := range x.Decision.IDs {
		out.IDs = append(out.IDs, id.Name+"="+id.ID.String())
	}
	me, peer := v.side(v.opt.Self, x.Me, name), v.side(name, x.Peer, v.opt.Self)
	if out.SplitBrain = x.Decision.Split; out.SplitBrain {
		out.Policy = x.Me.Policy.String()
		full := me.Since != peer.Since || me.Since == protocol.Generation(0).String()
		out.Choices = []ExplainChoice{v.choice(me, peer, full), v.choice(peer, me, full)}
	}
	if out.SplitBrain || me.Bytes > 0 || peer.Bytes > 0 {
		out.Sides = []ExplainSide{me, peer}
	}
	return out
}

// side says what the node of h wrote that other lacks.
func (v *Volume) side(node string, h *protocol.Hello, other string) ExplainSide {
	s := ExplainSide{Node: node, Role: h.Role.String(), Disk: h.Disk.String(), Generation: h.Current.String(), Since: protocol.Generation(0).String(),
		First: when(h.Changes.First), Last: when(h.Changes.Last), AtMost: h.Flags&protocol.HelloReplayed != 0}
	for _, p := range h.Slots {
		if p.Name == other {
			s.Since = p.Bitmap.String()
			s.Bytes = int64(min(p.Dirty, uint64(bitmap.Blocks(v.size)))) * bitmap.BlockSize
			s.Bytes = min(s.Bytes, v.size)
		}
	}
	for _, r := range h.Changes.Ranges {
		s.Ranges = append(s.Ranges, ExplainRange{r.Off, r.Len})
	}
	return s
}

func when(t int64) time.Time {
	if t == 0 {
		return time.Time{}
	}
	return time.Unix(0, t).UTC()
}

// choice says how to give up a side, and what that loses.
func (v *Volume) choice(lose, keep ExplainSide, full bool) ExplainChoice {
	c := ExplainChoice{GivesUp: lose.Node, Keeps: keep.Node, Bytes: lose.Bytes, AtMost: lose.AtMost, Full: full}
	run := func(node, command string) { c.Commands = append(c.Commands, ExplainCommand{node, command}) }
	if lose.Role == protocol.Primary.String() {
		run(lose.Node, "qrbd demote "+v.opt.Name)
	}
	run(lose.Node, "qrbd connect "+v.opt.Name+" "+keep.Node+" --discard-my-data")
	run(keep.Node, "qrbd connect "+v.opt.Name+" "+lose.Node)
	return c
}
