package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/session"
	"github.com/qrbd/qrbd/volume"
)

func runStatus(c call) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	switch {
	case c.Bool("watch"):
		return watch(c, client)
	case c.Bool("shell"):
		return runStatusShell(c, client)
	}
	st, err := fetchStatus(c.Context.Context, client, c.volumeName())
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.t.out, st)
	}
	width, _ := c.t.size()
	writeLines(c.t.out, statusLines(st, palette{c.t.colour}, width))
	return nil
}

// fetchStatus returns the state of the node, narrowed to one volume unless name
// is "".
func fetchStatus(ctx context.Context, client *control.Client, name string) (control.NodeStatus, error) {
	st, err := client.Status(ctx)
	if err != nil || name == "" {
		return st, err
	}
	names := []string{}
	for _, v := range st.Volumes {
		if v.Name == name {
			st.Volumes = []volume.Status{v}
			return st, nil
		}
		names = append(names, v.Name)
	}
	if len(names) == 0 {
		names = append(names, "none")
	}
	return st, &volume.Error{Code: protocol.CodeUnknownVolume,
		Text: fmt.Sprintf("volume %q is not configured on %s; there is: %s", name, st.Node, strings.Join(names, ", "))}
}

// statusLines lays a node's state out in width columns.
func statusLines(st control.NodeStatus, p palette, width int) []string {
	lines := []string{p.paint(bold, clean(st.Node)) + p.paint(dim, "  qrbd "+clean(st.Version)+", "+plural(len(st.Volumes), "volume"))}
	if names := namesOf(st.Links, overTCP); names != "" {
		lines = append(lines, "  "+p.paint(dim, "sessions over TCP: ")+names)
	}
	if names := namesOf(st.Links, compressed); names != "" {
		lines = append(lines, "  "+p.paint(dim, "sent compressed: ")+names)
	}
	for _, v := range st.Volumes {
		lines = append(lines, "")
		lines = append(lines, volumeLines(v, p, width)...)
	}
	return lines
}

// namesOf names the peers whose links are of a kind.
func namesOf(links []control.LinkStatus, is func(control.LinkStatus) bool) string {
	var names []string
	for _, l := range links {
		if is(l) {
			names = append(names, clean(l.Peer))
		}
	}
	return strings.Join(names, ", ")
}

// overTCP: the peer has not the default transport.
func overTCP(l control.LinkStatus) bool { return l.Transport == session.TCP.String() }

// compressed: the peer is sent payloads compressed.
func compressed(l control.LinkStatus) bool { return l.Compression == session.Zstd.String() }

// savedNote is what compression has made of the traffic with a peer since the agent started.
func savedNote(s volume.PeerStatus) string {
	var parts []string
	add := func(what string, wire, saved uint64) {
		if saved > 0 {
			parts = append(parts, fmt.Sprintf("%s %s compressed to %s", what, bytesText(int64(wire+saved)), bytesText(int64(wire))))
		}
	}
	add("sent", s.Sent, s.SentSaved)
	add("received", s.Received, s.ReceivedSaved)
	return strings.Join(parts, ", ")
}

// volumeLines is one volume:
//
//	crm  primary  up-to-date  10 GiB  2 clients
//	  export unix:/run/qrbd/crm.sock
//	  PEER  CONNECTION  REPLICATION  ROLE       DISK        PROTO  OUT OF SYNC
//	  beta  connected   established  secondary  up-to-date  C      0 B
func volumeLines(v volume.Status, p palette, width int) []string {
	head := []string{p.paint(bold, clean(v.Name)), p.state(v.Role), p.state(v.Disk), bytesText(v.Size), plural(v.Clients, "client")}
	lines := []string{strings.Join(head, "  ")}
	if v.Reason != "" {
		lines = append(lines, notice(p, "", v.Reason, width)...)
	}
	if q := v.Quorum; q != nil && v.Role == protocol.Primary.String() && !q.Serving {
		lines = append(lines, notice(p, "", "no quorum ("+q.Rule+"): requests are not answered; "+q.Missing, width)...)
	}
	if v.Frozen != "" {
		lines = append(lines, notice(p, "", "requests are not answered: "+v.Frozen, width)...)
	}
	if brandNew(v) {
		lines = append(lines, notice(p, "", "brand new, without data: once its peers have it too, start it on one node with: qrbd promote "+v.Name+" --force", width)...)
	}
	where := "  " + p.paint(dim, "export ") + clean(v.Export)
	generation := p.paint(dim, "generation ") + v.Generation
	if v.Generation == noGeneration {
		generation = p.paint(dim, "no generation yet")
	}
	if columns(where)+2+columns(generation) <= width {
		lines = append(lines, where+"  "+generation)
	} else {
		lines = append(lines, where, "  "+generation)
	}
	if len(v.Peers) == 0 {
		return append(lines, "  "+p.paint(dim, "no peers: the only copy is here"))
	}
	return append(lines, peerLines(v.Peers, p, width)...)
}

// noGeneration is the generation of a replica that never held data.
var noGeneration = protocol.Generation(0).String()

// brandNew says that no node that this one knows of has data: nothing will
// happen before an operator starts the volume.
func brandNew(v volume.Status) bool {
	data := func(s volume.PeerStatus) bool {
		return s.Role == protocol.Primary.String() || s.Disk == protocol.UpToDate.String()
	}
	return v.Generation == noGeneration && v.Disk == protocol.Inconsistent.String() && !slices.ContainsFunc(v.Peers, data)
}

// column is a column of the table of peers.
type column struct {
	title string
	cell  func(peer volume.PeerStatus) string
	state bool // the cell is a state and has its colour
}

var peerColumns = []column{
	{"PEER", func(s volume.PeerStatus) string { return clean(s.Name) }, false},
	{"CONNECTION", func(s volume.PeerStatus) string { return s.Connection }, true},
	{"REPLICATION", func(s volume.PeerStatus) string { return s.Replication }, true},
	{"ROLE", func(s volume.PeerStatus) string { return s.Role }, true},
	{"DISK", func(s volume.PeerStatus) string { return s.Disk }, true},
	{"P", func(s volume.PeerStatus) string { return s.Protocol }, false},
	{"OUT OF SYNC", func(s volume.PeerStatus) string { return bytesText(s.OutOfSync) }, false},
}

// peerLines is the table of peers, each row followed by its progress and its
// reason if it has them.
func peerLines(peers []volume.PeerStatus, p palette, width int) []string {
	widths := make([]int, len(peerColumns))
	for i, c := range peerColumns {
		widths[i] = columns(c.title)
		for _, s := range peers {
			widths[i] = max(widths[i], columns(c.cell(s)))
		}
	}
	row := func(text func(c column) string) string {
		var b strings.Builder
		for i, c := range peerColumns {
			b.WriteString("  ")
			b.WriteString(pad(text(c), widths[i]))
		}
		return strings.TrimRight(b.String(), " ")
	}
	lines := []string{row(func(c column) string { return p.paint(dim, c.title) })}
	for _, s := range peers {
		lines = append(lines, row(func(c column) string {
			text := c.cell(s)
			switch {
			case c.state:
				text = p.state(text)
			case c.title == "OUT OF SYNC" && s.OutOfSync > 0:
				text = p.paint(yellow, text)
			}
			return text
		}))
		lines = append(lines, progressLines(s, p, width)...)
		if text := verifyNote(s.Verify); text != "" && !syncing(s) && 4+columns(text) <= width {
			lines = append(lines, "    "+p.paint(dim, text))
		}
		if text := savedNote(s); text != "" && 4+columns(text) <= width {
			lines = append(lines, "    "+p.paint(dim, text))
		}
		if s.Reason != "" {
			lines = append(lines, notice(p, s.Name, s.Reason, width)...)
		}
		switch {
		case s.Fenced:
			lines = append(lines, notice(p, s.Name, "fenced: it cannot take over before it is in sync again", width)...)
		case s.Fencing != "":
			lines = append(lines, notice(p, s.Name, s.Fencing, width)...)
		}
	}
	return lines
}

// syncing says whether a peer is being synced or verified.
func syncing(s volume.PeerStatus) bool {
	switch s.Replication {
	case protocol.SyncSource.String(), protocol.SyncTarget.String(),
		protocol.VerifySource.String(), protocol.VerifyTarget.String():
		return true
	}
	return false
}

// A bar is as wide as the figures beside it leave room, within these bounds.
const (
	barColumns    = 24
	barColumnsMin = 8
)

// progressLines is the bar of a sync or verify under way:
//
//	[##########--------------]  42.0%  4.2 GiB of 10 GiB  112 MiB/s  53s left
func progressLines(s volume.PeerStatus, p palette, width int) []string {
	if !syncing(s) {
		return nil
	}
	percent := s.SyncPercent
	if s.SyncTotal > 0 {
		percent = 100 * float64(s.SyncDone) / float64(s.SyncTotal)
	}
	parts := []string{fmt.Sprintf("%4.1f%%", floorTenth(percent))}
	if s.SyncTotal > 0 {
		parts = append(parts, bytesText(s.SyncDone)+" of "+bytesText(s.SyncTotal))
	}
	switch {
	case s.SyncRate > 0 && s.SyncETA > 0:
		parts = append(parts, bytesText(s.SyncRate)+"/s", durationText(time.Duration(s.SyncETA*float64(time.Second)))+" left")
	case s.SyncRate > 0:
		parts = append(parts, bytesText(s.SyncRate)+"/s")
	}
	figures := strings.Join(parts, "  ")
	room := width - columns(figures) - len("    [] ") - 1
	if room < barColumnsMin {
		return []string{"    " + figures}
	}
	return []string{"    " + bar(p, percent, min(room, barColumns)) + "  " + figures}
}

// floorTenth keeps 99.97 from being shown as 100.0 before it is done.
func floorTenth(percent float64) float64 {
	return float64(int64(min(max(percent, 0), 100)*10)) / 10
}

// notice is a line, wrapped, that says what is wrong and what to do.
func notice(p palette, who, text string, width int) []string {
	if who != "" && !strings.HasPrefix(text, who+" ") {
		text = who + ": " + text
	}
	lines := wrap("  ! ", clean(text), width)
	for i := range lines {
		lines[i] = p.paint(yellow, lines[i])
	}
	return lines
}
