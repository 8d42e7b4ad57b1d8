package main

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/volume"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares with testdata/name.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update writes it anew):\n%s", path, got)
	}
}

// show is a node with one volume of each kind.
func showcase() control.NodeStatus {
	return control.NodeStatus{Node: "alpha", Version: "1.0.0", Volumes: []volume.Status{
		{Name: "crm", Size: 10 << 30, Role: "primary", Disk: "up-to-date", Clients: 2, Export: "unix:/run/qrbd/crm.sock", Generation: "9f3c2a7b1d0e4f55",
			Peers: []volume.PeerStatus{{Name: "beta", Connection: "connected", Replication: "established", Role: "secondary", Disk: "up-to-date", Protocol: "C", SyncPercent: 100}}},
		{Name: "documents", Size: 1 << 40, Role: "primary", Disk: "up-to-date", Clients: 1, Export: "tcp:127.0.0.1:10809", Generation: "00aa11bb22cc33dd",
			Peers: []volume.PeerStatus{
				{Name: "beta", Connection: "connected", Replication: "sync-source", Role: "secondary", Disk: "inconsistent", Protocol: "C", OutOfSync: 6441451520,
					SyncPercent: 41.9, SyncTotal: 10 << 30, SyncDone: 4509715661, SyncRate: 117440512, SyncETA: 53},
				{Name: "gamma", Connection: "connecting", Replication: "off", Role: "unknown", Disk: "unknown", Protocol: "A", OutOfSync: 4096, SyncPercent: 99.9,
					Reason: "unreachable: no answer from 10.0.3.3:7790 for 12 s; check the link and that the agent runs there"},
			}},
		{Name: "mail", Size: 512 << 20, Role: "primary", Disk: "up-to-date", Export: "unix:/srv/storage/exports/a-rather-long-directory-name/mail.sock", Generation: "1122334455667788",
			Peers: []volume.PeerStatus{{Name: "beta", Connection: "standalone", Replication: "off", Role: "unknown", Disk: "unknown", Protocol: "C", OutOfSync: 81920, SyncPercent: 99.9,
				Reason: "split brain: both sides wrote since 2026-11-21 23:10:04; what to do: decide whose writes to keep, then run qrbd connect mail --discard-my-data on the other side"}}},
		{Name: "new", Size: 1000 * 512, Role: "secondary", Disk: "diskless", Export: "unix:/run/qrbd/new.sock", Generation: "0000000000000000",
			Reason: "not created: run qrbd create new", Peers: []volume.PeerStatus{}},
		{Name: "first", Size: 1 << 30, Role: "secondary", Disk: "inconsistent", Export: "unix:/run/qrbd/first.sock", Generation: "0000000000000000",
			Peers: []volume.PeerStatus{{Name: "beta", Connection: "connecting", Replication: "off", Role: "unknown", Disk: "unknown", Protocol: "C",
				Reason: "beta at 10.0.0.2:7790: unreachable: no answer"}}},
	}}
}

func text(lines []string) string { return strings.Join(lines, "\n") + "\n" }

func TestStatusGolden(t *testing.T) {
	golden(t, "status.plain", text(statusLines(showcase(), palette{}, 80)))
	golden(t, "status.colour", text(statusLines(showcase(), palette{true}, 80)))
	golden(t, "status.empty", text(statusLines(control.NodeStatus{Node: "alpha", Version: "1"}, palette{}, 80)))
}

func TestWatchGolden(t *testing.T) {
	at := time.Date(2026, 11, 22, 14, 3, 1, 0, time.UTC)
	golden(t, "watch.frame", frame(watchLines(showcase(), nil, at, palette{true}, 80), 80, 40)+"\n")
	golden(t, "watch.small", frame(watchLines(showcase(), nil, at, palette{}, 40), 40, 12)+"\n")
	golden(t, "watch.away", text(watchLines(control.NodeStatus{}, control.ErrNotRunning, at, palette{}, 80)))
}

func TestExplainGolden(t *testing.T) {
	e := volume.Explanation{Volume: "crm", Promote: "would be refused: beta is connected and primary; hand the role over with qrbd switchover crm --to alpha on beta",
		Peers: []volume.ExplainPeer{
			{Name: "beta", Heard: true, Rule: "history-contains-peer", Strategy: "target-bitmap",
				Text: "beta has everything this side has and went on writing: this side would be brought up to date, 16 MiB copied",
				IDs:  []string{"current=9f3c2a7b1d0e4f55", "peer-current=00aa11bb22cc33dd", "peer-bitmap=9f3c2a7b1d0e4f55"}},
			{Name: "gamma", Text: "nothing can be said before it is connected"},
		}}
	golden(t, "explain.plain", text(explainLines(e, palette{}, 80)))
	golden(t, "explain.colour", text(explainLines(e, palette{true}, 80)))

	at := time.Date(2026, 11, 22, 14, 3, 1, 0, time.UTC)
	alpha := volume.ExplainSide{Node: "alpha", Role: "primary", Disk: "up-to-date", Generation: "9f3c2a7b1d0e4f55", Since: "00aa11bb22cc33dd", Bytes: 3 << 20,
		First: at.Add(-time.Hour), Last: at.Add(-time.Minute), Ranges: []volume.ExplainRange{{Off: 2 << 20, Len: 1 << 20}, {Off: 7 << 30, Len: 4096}}}
	beta := volume.ExplainSide{Node: "beta", Role: "secondary", Disk: "consistent", Since: "00aa11bb22cc33dd", Bytes: 4 << 20, AtMost: true}
	e = volume.Explanation{Volume: "crm", Promote: "alpha is primary already", Peers: []volume.ExplainPeer{{Name: "beta", Heard: true, HeardAt: at, Rule: "split-brain",
		Strategy: "split-brain", SplitBrain: true, Text: "split brain: alpha and beta both took writes after they parted", IDs: []string{"alpha.current=9f"},
		Policy: "after-sb-0pri disconnect, after-sb-1pri disconnect, after-sb-2pri disconnect",
		Sides:  []volume.ExplainSide{alpha, beta},
		Choices: []volume.ExplainChoice{
			{GivesUp: "alpha", Keeps: "beta", Bytes: 3 << 20, Commands: []volume.ExplainCommand{{Node: "alpha", Command: "qrbd demote crm"},
				{Node: "alpha", Command: "qrbd connect crm beta --discard-my-data"}, {Node: "beta", Command: "qrbd connect crm alpha"}}},
			{GivesUp: "beta", Keeps: "alpha", Bytes: 4 << 20, AtMost: true, Full: true}}}}}
	golden(t, "explain.split", text(explainLines(e, palette{}, 80)))
}

// What is shown must fit: 80 columns, whatever the colours.
func TestEightyColumns(t *testing.T) {
	for _, p := range []palette{{false}, {true}} {
		for _, l := range statusLines(showcase(), p, 80) {
			if n := columns(l); n > 80 {
				t.Errorf("%d columns: %q", n, l)
			}
		}
	}
}

func TestColoursDoNotChangeTheText(t *testing.T) {
	plain, coloured := statusLines(showcase(), palette{}, 80), statusLines(showcase(), palette{true}, 80)
	if len(plain) != len(coloured) {
		t.Fatalf("%d lines plain, %d coloured", len(plain), len(coloured))
	}
	for i := range plain {
		if strings.Contains(plain[i], "\x1b") {
			t.Errorf("a colour in plain output: %q", plain[i])
		}
		if !strings.Contains(plain[i], "[#") && strip(coloured[i]) != plain[i] {
			t.Errorf("coloured %q, plain %q", strip(coloured[i]), plain[i])
		}
	}
}

func strip(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		if l := escape(s[i:]); l > 0 {
			i += l
			continue
		}
		b.WriteByte(s[i])
		i++
	}
	return b.String()
}

// Text that a peer chose must not reach the terminal's control sequences.
func TestHostileText(t *testing.T) {
	st := control.NodeStatus{Node: "a\x1b[2J", Volumes: []volume.Status{{Name: "v\x07", Export: "e\r", Reason: "x\x1b]0;t\x07\ny",
		Peers: []volume.PeerStatus{{Name: "p\x9b1m", Reason: "\x1b[31mred"}}}}}
	out := text(statusLines(st, palette{}, 80)) + text(explainLines(volume.Explanation{Volume: "\x1b[1m", Promote: "\x1b", Peers: []volume.ExplainPeer{{Name: "\x1b", Text: "\x1b", Rule: "\x1b", IDs: []string{"\x1b"}}}}, palette{}, 80)) +
		eventLine(control.EventLine{Event: &volume.Event{Volume: "\x1b", Peer: "\x1b", Field: "\x1b", Old: "\x1b", New: "\x1b", Reason: "\x1b"}}, palette{})
	if strings.ContainsAny(out, "\x1b\x07\r\u009b") {
		t.Errorf("a control character got through: %q", out)
	}
}

func TestBytesText(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1: "1 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 10 << 30: "10 GiB", 1<<20 - 1: "1 MiB",
		1 << 40: "1 TiB", 1<<63 - 1: "8 EiB", 1100: "1.1 KiB"} {
		if got := bytesText(n); strings.TrimSuffix(got, ".0") != want && strings.Replace(got, ".0", "", 1) != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

func TestDurationText(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "0s", time.Millisecond: "1s", 59 * time.Second: "59s", 60 * time.Second: "1m00s", 200 * time.Second: "3m20s",
		2*time.Hour + 5*time.Minute: "2h05m", 76 * time.Hour: "3d04h", 1<<63 - 1: "years"} {
		if got := durationText(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

func TestClip(t *testing.T) {
	for _, c := range []struct {
		in    string
		width int
		want  string
	}{
		{"abc", 3, "abc"}, {"abcd", 3, "ab…"}, {"\x1b[1mabcd\x1b[0m", 3, "\x1b[1mab…\x1b[0m"}, {"äöüß", 3, "äö…"}, {"", 3, ""}, {"ab", 1, "…"},
	} {
		if got := clip(c.in, c.width); got != c.want || columns(got) > c.width {
			t.Errorf("clip(%q, %d) = %q, want %q", c.in, c.width, got, c.want)
		}
	}
}

func TestProgress(t *testing.T) {
	s := volume.PeerStatus{Replication: "sync-target", SyncTotal: 1000, SyncDone: 999, SyncPercent: 12}
	if l := progressLines(s, palette{}, 80); len(l) != 1 || !strings.Contains(l[0], " 99.9%") {
		t.Errorf("not done is shown as %q", l)
	}
	s.Replication = "established"
	if l := progressLines(s, palette{}, 80); l != nil {
		t.Errorf("established shows %q", l)
	}
	if b := bar(palette{}, 250, 10); b != "[##########]" {
		t.Errorf("more than all: %s", b)
	}
	if b := bar(palette{}, -3, 10); b != "[----------]" {
		t.Errorf("less than nothing: %s", b)
	}
}

func TestNoColour(t *testing.T) {
	env := map[string]string{"TERM": "xterm"}
	term := &terminal{}
	term.detect(-1, func(k string) string { return env[k] })
	if term.live || term.colour {
		t.Error("a pipe is taken for a terminal")
	}
}

// TestStatusTransport: who is reached over TCP is named, the others are not.
func TestStatusTransport(t *testing.T) {
	st := control.NodeStatus{Node: "alpha", Version: "1.0.0", Links: []control.LinkStatus{
		{Peer: "beta", Transport: "quic"}, {Peer: "gamma", Transport: "tcp"}, {Peer: "delta", Transport: "tcp"}}}
	if got := strings.Join(statusLines(st, palette{}, 80), "\n"); !strings.Contains(got, "sessions over TCP: gamma, delta") {
		t.Errorf("%s", got)
	}
	st.Links = st.Links[:1]
	if got := strings.Join(statusLines(st, palette{}, 80), "\n"); strings.Contains(got, "sessions") {
		t.Errorf("%s", got)
	}
}

// TestStatusCompression: who is sent payloads compressed is named, and what it has brought.
func TestStatusCompression(t *testing.T) {
	st := control.NodeStatus{Node: "alpha", Version: "1.0.0", Links: []control.LinkStatus{{Peer: "beta", Compression: "zstd"}, {Peer: "gamma", Compression: "none"}},
		Volumes: []volume.Status{{Name: "crm", Peers: []volume.PeerStatus{{Name: "beta", Sent: 1 << 30, SentSaved: 2 << 30, Received: 1 << 20}, {Name: "gamma", Sent: 1 << 30}}}}}
	got := strings.Join(statusLines(st, palette{}, 80), "\n")
	if !strings.Contains(got, "sent compressed: beta\n") || strings.Count(got, "sent 3 GiB compressed to 1 GiB\n") != 1 || strings.Contains(got, "received") {
		t.Errorf("%s", got)
	}
	st.Links, st.Volumes[0].Peers[0] = st.Links[1:], volume.PeerStatus{Name: "beta", Received: 1 << 20, ReceivedSaved: 1 << 20}
	if got := strings.Join(statusLines(st, palette{}, 80), "\n"); strings.Contains(got, "sent") || !strings.Contains(got, "received 2 MiB compressed to 1 MiB") {
		t.Errorf("%s", got)
	}
}

// TestStatusOfFencing: why a primary is frozen, and how it stands with its peers.
func TestStatusOfFencing(t *testing.T) {
	v := volume.Status{Name: "crm", Role: "primary", Disk: "up-to-date", Fencing: "resource-and-stonith", Frozen: "beta is lost, and may take over",
		Peers: []volume.PeerStatus{{Name: "beta", Connection: "connecting", Fencing: "is lost, and may take over: exit status 1"}, {Name: "gamma", Connection: "connecting", Fenced: true}}}
	got := text(volumeLines(v, palette{}, 120))
	for _, want := range []string{"requests are not answered: beta is lost, and may take over", "exit status 1", "fenced: it cannot take over before it is in sync again"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}
