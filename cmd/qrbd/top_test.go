package main

import (
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/volume"
)

// counted is the showcase with counters: n is how often all has happened.
func counted(n int) control.NodeStatus {
	st := showcase()
	behind := 754.0
	st.Volumes[1].Peers[1].BehindBytes, st.Volumes[1].Peers[1].BehindSeconds = 4096, &behind
	moment := 0.004
	st.Volumes[0].Peers[0].BehindBytes, st.Volumes[0].Peers[0].BehindSeconds = 8192, &moment
	st.Volumes[0].Peers[0].RTTMicros = 250
	times := func(d time.Duration, count int) volume.Histogram {
		var l volume.Latency
		for range count {
			l.Add(d)
		}
		return l.Snapshot()
	}
	for i := range st.Volumes[:3] {
		io := volume.NewMeter().Snapshot()
		ops := n * 10 * (i + 1) * (i + 1)
		io.Ops["read"] = volume.OpIO{Begun: uint64(ops), Bytes: uint64(ops) * 65536, Whole: times(21*time.Microsecond, ops)}
		io.Ops["write"] = volume.OpIO{Begun: uint64(ops) + 2, Bytes: uint64(ops) * 4096, Whole: times(time.Duration(300-100*i)*time.Microsecond, ops)}
		io.Ops["flush"] = volume.OpIO{Begun: uint64(n), Whole: times(1700*time.Microsecond, n)}
		st.Volumes[i].IO = &io
	}
	return st
}

var topTime = time.Date(2026, 11, 22, 14, 3, 1, 0, time.UTC)

// twoLooks is a view after two looks, a second apart.
func twoLooks() *topView {
	v := &topView{}
	v.look(counted(1), nil, topTime)
	v.look(counted(3), nil, topTime.Add(time.Second))
	return v
}

// screen is a frame as it stands on a terminal: its rows.
func screen(frame string) []string {
	frame = strings.NewReplacer(home, "", clearLine, "", clearBelow, "").Replace(frame)
	return strings.Split(frame, "\r\n")
}

func TestTopGolden(t *testing.T) {
	v := twoLooks()
	golden(t, "top.80x24", text(screen(v.frame(80, 24))))
	golden(t, "top.60x16", text(screen(v.frame(60, 16))))
	golden(t, "top.40x12", text(screen(v.frame(40, 12))))
	golden(t, "top.120x40", text(screen(v.frame(120, 40))))
	v.colour = palette{true}
	golden(t, "top.colour", text(screen(v.frame(80, 24))))
	first := &topView{}
	first.look(counted(1), nil, topTime)
	golden(t, "top.first", text(first.lines(80)))
	first.look(control.NodeStatus{}, control.ErrNotRunning, topTime)
	golden(t, "top.away", text(first.lines(80)))
}

// TestTopFits: no row is wider than the screen and no screen has more rows than the
// terminal, whatever its size, and without colours there is no colour.
func TestTopFits(t *testing.T) {
	v := twoLooks()
	for _, colour := range []bool{false, true} {
		v.colour = palette{colour}
		for width := 1; width <= 140; width++ {
			for _, height := range []int{3, 5, 6, 10, 24, 50} {
				frame := v.frame(width, height)
				rows := screen(frame)
				if len(rows) > height {
					t.Fatalf("%d rows on a screen of %dx%d", len(rows), width, height)
				}
				for _, row := range rows {
					if n := columns(row); n > width {
						t.Fatalf("%d columns on a screen of %dx%d: %q", n, width, height, row)
					}
					if !colour && strings.Contains(row, "\x1b") {
						t.Fatalf("a colour: %q", row)
					}
				}
			}
		}
	}
}

func TestTopRates(t *testing.T) {
	r := twoLooks().rates()
	i := slices.IndexFunc(r, func(v topVolume) bool { return v.Name == "crm" })
	crm := r[i]
	if crm.ReadRate != 20*65536 || crm.WriteRate != 20*4096 || crm.IOPS != 42 || crm.Unanswered != 2 {
		t.Errorf("%+v", crm)
	}
	if crm.Write < 299e-6 || crm.Write > 301e-6 || crm.Write99 != 400e-6 || crm.Flush < 1.69e-3 || crm.Flush > 1.71e-3 {
		t.Errorf("latencies %+v", crm)
	}
	if last := r[slices.IndexFunc(r, func(v topVolume) bool { return v.Name == "new" })]; last.Known {
		t.Errorf("a volume that is not counted: %+v", last)
	}
	v := twoLooks() // the agent was restarted: its counters are lower
	v.look(counted(1), nil, topTime.Add(2*time.Second))
	if r := v.rates(); r[i].ReadRate != 10*65536 || r[i].IOPS != 21 {
		t.Errorf("after a restart: %+v", r[i])
	}
	v.look(control.NodeStatus{}, errors.New("away"), topTime.Add(3*time.Second))
	v.look(counted(9), nil, topTime.Add(4*time.Second))
	if v.rates()[i].ReadRate < 0 {
		t.Errorf("after it was away: %+v", v.rates()[i])
	}
}

// TestTopSecondary: a secondary shows what it does for its primary.
func TestTopSecondary(t *testing.T) {
	at := func(n uint64) *volume.Status {
		var l volume.Latency
		for range n {
			l.Add(2 * time.Millisecond)
		}
		io := volume.NewMeter().Snapshot()
		io.Peers["alpha"] = volume.PeerIO{Applied: n * 4096, Apply: map[string]volume.Histogram{"write": l.Snapshot()}}
		return &volume.Status{Name: "crm", Role: "secondary", IO: &io}
	}
	r := rateOf(at(1), at(5), 2)
	if r.WriteRate != 8192 || r.IOPS != 2 || r.Write < 1.9e-3 || r.Write > 2.1e-3 {
		t.Errorf("%+v", r)
	}
}

func TestTopSort(t *testing.T) {
	v := twoLooks()
	names := func() string {
		var s []string
		for _, r := range v.rates() {
			s = append(s, r.Name)
		}
		return strings.Join(s, " ")
	}
	for _, want := range []string{"crm documents first mail new", "documents first mail new crm", "mail documents crm first new", "crm documents mail first new", "crm documents first mail new"} {
		if got := names(); got != want {
			t.Errorf("by %s: %s, want %s", v.sort, got, want)
		}
		v.press(keySort)
	}
}

func TestTopScroll(t *testing.T) {
	v := twoLooks()
	v.press(keyUp)
	top := v.frame(80, 10)
	v.press(keyDown)
	if down := v.frame(80, 10); down == top || screen(down)[3] != screen(top)[4] || screen(down)[0] != screen(top)[0] {
		t.Errorf("one line down:\n%s", text(screen(down)))
	}
	for range 100 {
		v.press(keyDown)
	}
	end := v.frame(80, 10)
	if rows := screen(end); !strings.Contains(rows[len(rows)-3], "new") && !strings.Contains(end, "not created") {
		t.Errorf("at the end:\n%s", text(rows))
	}
	v.press(keyUp)
	if up := v.frame(80, 10); up == end {
		t.Error("one line up from the end changes nothing")
	}
	if tall := v.frame(80, 60); strings.Contains(tall, "up/down") {
		t.Errorf("a screen with room for all can be scrolled:\n%s", tall)
	}
}

func TestKeys(t *testing.T) {
	var got []key
	readKeys(io.MultiReader(strings.NewReader("s\x1b[A\x1b[B\x1bOAkjx\x1b[5~q")), func(k key) { got = append(got, k) })
	want := []key{keySort, keyUp, keyDown, keyUp, keyUp, keyDown, keyQuit, keyQuit} // the last: the end of input
	if !slices.Equal(got, want) {
		t.Errorf("keys %v, want %v", got, want)
	}
}

func TestShort(t *testing.T) {
	for _, tt := range []struct{ got, want string }{
		{shortBytes(0), "0"}, {shortBytes(512), "512"}, {shortBytes(4096), "4.0K"}, {shortBytes(1023.6), "1.0K"}, {shortBytes(112 << 20), "112M"}, {shortBytes(1.25 * (1 << 30)), "1.2G"},
		{shortCount(999.4), "999"}, {shortCount(1234), "1.2k"}, {shortCount(123456), "123k"},
		{shortTime(0), "-"}, {shortTime(88e-6), "88us"}, {shortTime(999.9e-6), "1.0ms"}, {shortTime(0.0123), "12ms"}, {shortTime(3.4), "3.4s"}, {shortTime(1e-9), "1us"},
	} {
		if tt.got != tt.want {
			t.Errorf("%q, want %q", tt.got, tt.want)
		}
	}
	for _, n := range []float64{0, 9.96, 99.6, 999.6, 1023.4, 1e6, 1e9, 1e15, 1e18} {
		for _, s := range []string{shortBytes(n), shortCount(n), shortTime(n / 1e12)} {
			if len(s) > 5 {
				t.Errorf("%v is %q", n, s)
			}
		}
	}
}

func TestTopCommand(t *testing.T) {
	b := newBench(t)
	b.agent(&fakeNode{status: counted(1)})
	code, out, _ := b.run("--config {config} top --once --interval 100ms")
	if code != exitDone || !strings.Contains(out, "VOLUME") || !strings.Contains(out, "crm") || strings.Contains(out, "\x1b") {
		t.Errorf("%d\n%s", code, out)
	}
	code, out, _ = b.run("--config {config} top --json --once --interval 100ms")
	var r struct {
		Node    string
		Volumes []struct {
			Name string
			IOPS *float64
		}
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != exitDone || r.Node != "alpha" || len(r.Volumes) != 5 || r.Volumes[0].IOPS == nil {
		t.Errorf("%d %v\n%s", code, err, out)
	}
	if code, _, errText := b.run("--config {config} top --interval 1ms"); code != exitUsage || !strings.Contains(errText, "too short") {
		t.Errorf("%d %s", code, errText)
	}
}
