package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/qrbd/qrbd/volume"
)

// word is a line of the stream as tests write it.
func word(e EventLine) string {
	switch e.Kind {
	case KindChange, KindState:
		return fmt.Sprintf("%d:%s", e.Seq, e.New)
	case KindGap:
		return fmt.Sprintf("gap(%s-%s)", place(*e.From), place(*e.To))
	case KindAway, KindBack:
	}
	return string(e.Kind)
}

// place is a Position without the random part.
func place(p Position) string {
	if p.Boot == "00000000000000aa" {
		return fmt.Sprintf("a:%d", p.Seq)
	}
	return fmt.Sprint(p.Seq)
}

func words(list []EventLine) string {
	var out []string
	for _, e := range list {
		out = append(out, word(e))
	}
	return strings.Join(out, " ")
}

// counting adds events with the numbers from to to.
func counting(r *Ring, from, to int) {
	for n := from; n <= to; n++ {
		r.Add(volume.Event{Volume: "crm", Field: "role", New: fmt.Sprint(n)})
	}
}

func TestRing(t *testing.T) {
	filled := func(n int) *Ring {
		r := NewRing(8)
		counting(r, 1, n)
		return r
	}
	old := "00000000000000aa"
	tests := []struct {
		name string
		n    int
		boot string // "": of the ring
		seq  uint64
		want string
	}{
		{"empty", 0, "", 0, ""},
		{"all", 3, "", 0, "1:1 2:2 3:3"},
		{"the rest", 3, "", 2, "3:3"},
		{"nothing new", 3, "", 3, ""},
		{"just kept", 8, "", 0, "1:1 2:2 3:3 4:4 5:5 6:6 7:7 8:8"},
		{"one dropped", 9, "", 0, "gap(1-1) 2:2 3:3 4:4 5:5 6:6 7:7 8:8 9:9"},
		{"dropped, seen", 9, "", 1, "2:2 3:3 4:4 5:5 6:6 7:7 8:8 9:9"},
		{"many dropped", 20, "", 2, "gap(3-12) 13:13 14:14 15:15 16:16 17:17 18:18 19:19 20:20"},
		{"restarted", 2, old, 7, "gap(a:8-0) 1:1 2:2"},
		{"restarted, nothing yet", 0, old, 7, "gap(a:8-0)"},
		{"restarted, some dropped", 10, old, 7, "gap(a:8-0) gap(1-2) 3:3 4:4 5:5 6:6 7:7 8:8 9:9 10:10"},
		{"a number of the future", 2, "", 1000, "gap(1001-0) 1:1 2:2"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := filled(tt.n)
			got, next, _ := r.After(Position{tt.boot, tt.seq})
			if words(got) != tt.want {
				t.Errorf("%s, want %s", words(got), tt.want)
			}
			if again, _, _ := r.After(next); next != r.Last() || len(again) != 0 {
				t.Errorf("goes on at %v of %v with %s", next, r.Last(), words(again))
			}
			for _, e := range got {
				if e.Boot != r.boot || e.Kind == KindGap && (e.Reason == "" || e.Time.IsZero()) {
					t.Errorf("%+v", e)
				}
			}
		})
	}
	if a, b := NewRing(1), NewRing(1); a.boot == b.boot {
		t.Error("two agents with one boot")
	}
	long := NewRing(0) // batches
	counting(long, 1, 1000)
	seen, at := 0, Position{}
	for {
		lines, next, _ := long.After(at)
		if len(lines) == 0 {
			break
		}
		for _, e := range lines {
			if seen++; e.Seq != uint64(seen) {
				t.Fatalf("%d after %d", e.Seq, seen-1)
			}
		}
		at = next
	}
	if seen != 1000 {
		t.Errorf("%d events", seen)
	}
}

func TestPosition(t *testing.T) {
	for text, want := range map[string]Position{"0": {}, "17": {"", 17}, "00000000000000aa:3": {"00000000000000aa", 3}} {
		if got, err := ParsePosition(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "x", "-1", ":3", "aa:3", "00000000000000aa:", "00000000000000ag:1", "1:2:3"} {
		if got, err := ParsePosition(text); err == nil {
			t.Errorf("%q is %+v", text, got)
		}
	}
	if p := (Position{"00000000000000aa", 3}); p.String() != "00000000000000aa:3" {
		t.Error(p)
	}
}

func TestEvents(t *testing.T) {
	_, ring, c := serve(t)
	counting(ring, 1, 3)
	var got []EventLine
	collect := func(e EventLine) error { got = append(got, e); return nil }
	if err := c.Events(t.Context(), &Position{Seq: 1}, collect); err != nil || words(got) != "2:2 3:3" {
		t.Errorf("%s, %v", words(got), err)
	}
	if e := got[0]; e.Volume != "crm" || e.Field != "role" || e.Kind != KindChange {
		t.Errorf("%+v", e)
	}
	got = nil
	if err := c.Events(t.Context(), &Position{"00000000000000aa", 9}, collect); err != nil || words(got) != "gap(a:10-0) 1:1 2:2 3:3" {
		t.Errorf("%s, %v", words(got), err)
	}
	got = nil
	if err := c.Events(t.Context(), nil, collect); err != nil || len(got) != 0 {
		t.Errorf("%s, %v", words(got), err)
	}
}

// agents runs one agent after another on the same socket.
type agents struct {
	t    *testing.T
	path string
	ring *Ring
	s    *Server
}

func (a *agents) start() {
	a.t.Helper()
	a.ring = NewRing(8)
	a.resume()
}

// resume serves the same events again: only the connections were cut.
func (a *agents) resume() {
	a.t.Helper()
	s, err := Listen(a.path, Access{}, &fakeNode{}, a.ring, slog.New(slog.DiscardHandler))
	if err != nil {
		a.t.Fatal(err)
	}
	a.s = s
}

func (a *agents) stop() {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := a.s.Close(ctx); err != nil {
		a.t.Error(err)
	}
}

// TestFollow: restarts, cut connections and rings that run over, as a watcher sees
// them.
func TestFollow(t *testing.T) {
	a := &agents{t: t, path: filepath.Join(t.TempDir(), "c.sock")}
	a.start()
	counting(a.ring, 1, 2)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	lines := make(chan EventLine, 100)
	end := make(chan error, 1)
	go func() {
		end <- NewClient(a.path).Follow(ctx, &Position{}, func(e EventLine) error { lines <- e; return nil })
	}()
	var all []EventLine
	expect := func(want string) {
		t.Helper()
		var got []EventLine
		for range strings.Fields(want) {
			select {
			case e := <-lines:
				got = append(got, e)
			case <-time.After(15 * time.Second):
				t.Fatalf("got %s, want %s", words(got), want)
			}
		}
		if words(got) != want {
			t.Fatalf("got %s, want %s", words(got), want)
		}
		all = append(all, got...)
	}
	expect("1:1 2:2")
	counting(a.ring, 3, 3)
	expect("3:3")

	a.stop() // the connection is cut; nothing is missed
	expect("away")
	counting(a.ring, 4, 4)
	a.resume()
	expect("back 4:4")
	a.stop()
	expect("away")
	a.resume() // and nothing happened at all
	expect("back")

	a.stop() // more happens than is kept
	expect("away")
	counting(a.ring, 5, 20)
	a.resume()
	expect("gap(5-12) 13:13 14:14 15:15 16:16 17:17 18:18 19:19 20:20")

	first := a.ring.boot
	counting(a.ring, 21, 21)
	expect("21:21")
	a.stop() // another life
	expect("away")
	a.start()
	expect("gap(22-0)")
	gap := all[len(all)-1]
	if gap.From.Boot != first || gap.To.Boot != a.ring.boot || gap.Missed != 0 || gap.Reason == "" {
		t.Errorf("gap %+v from %v to %v", gap, gap.From, gap.To)
	}
	counting(a.ring, 1, 1)
	expect("1:1")
	a.stop()
	expect("away")
	cancel()
	if err := <-end; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
}

// TestFollowFromNow: a watcher from now on that was told nothing yet learns of a
// restart all the same.
func TestFollowFromNow(t *testing.T) {
	a := &agents{t: t, path: filepath.Join(t.TempDir(), "c.sock")}
	a.start()
	counting(a.ring, 1, 5)
	lines := make(chan EventLine, 100)
	ctx, cancel := context.WithCancel(t.Context())
	end := make(chan error, 1)
	connected := make(chan struct{}, 10)
	go func() {
		end <- NewClient(a.path).Follow(ctx, nil, func(e EventLine) error {
			lines <- e
			connected <- struct{}{}
			return nil
		})
	}()
	for len(lines) == 0 { // until it is connected: what it is told from then on
		counting(a.ring, 6, 6)
		select {
		case <-connected:
		case <-time.After(20 * time.Millisecond):
		}
	}
	if e := <-lines; e.Seq < 6 {
		t.Errorf("from now on begins with %d", e.Seq)
	}
	a.stop()
	for e := range lines {
		if e.Kind == KindAway {
			break
		}
	}
	a.start()
	if e := <-lines; e.Kind != KindGap {
		t.Errorf("after the restart: %s", word(e))
	}
	cancel()
	<-end
	a.stop()
}

func TestFollowErrors(t *testing.T) {
	if err := NewClient(filepath.Join(t.TempDir(), "c.sock")).Follow(t.Context(), &Position{}, nil); !errors.Is(err, ErrNotRunning) {
		t.Errorf("no agent at first: %v", err)
	}
	_, ring, c := serve(t)
	counting(ring, 1, 1)
	enough := errors.New("enough")
	if err := c.Follow(t.Context(), &Position{}, func(EventLine) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("the watcher's own error: %v", err)
	}
}

// TestEventsOfAnOldAgent: an agent that does not say where the stream begins is of
// another version.
func TestEventsOfAnOldAgent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		c.Read(make([]byte, 4096))
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	}()
	if err := NewClient(path).Follow(t.Context(), nil, nil); err == nil || !strings.Contains(err.Error(), "another version") {
		t.Errorf("%v", err)
	}
}

// TestLastWords: what happens while the server is being closed is told before the
// stream ends.
func TestLastWords(t *testing.T) {
	for range 20 {
		a := &agents{t: t, path: filepath.Join(t.TempDir(), "c.sock")}
		a.start()
		counting(a.ring, 1, 1)
		lines := make(chan EventLine, 100)
		ctx, cancel := context.WithCancel(t.Context())
		end := make(chan error, 1)
		go func() {
			end <- NewClient(a.path).Follow(ctx, &Position{}, func(e EventLine) error { lines <- e; return nil })
		}()
		<-lines
		counting(a.ring, 2, 4)
		a.stop()
		var got []EventLine
		for e := range lines {
			if e.Kind == KindAway {
				break
			}
			got = append(got, e)
		}
		if words(got) != "2:2 3:3 4:4" {
			t.Fatalf("got %s", words(got))
		}
		cancel()
		<-end
	}
}

// TestFollowAnAgentThatHangs: one that accepts and says nothing more is noticed.
func TestFollowAnAgentThatHangs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	hung := make(chan net.Conn, 100)
	go func() {
		defer close(hung)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Read(make([]byte, 4096))
			if len(hung) == 0 {
				fmt.Fprint(c, "HTTP/1.1 200 OK\r\nQrbd-Boot: 00000000000000aa\r\nQrbd-Seq: 3\r\nQrbd-Oldest: 1\r\n\r\n")
			}
			hung <- c
		}
	}()
	c := NewClient(path)
	c.patience = 100 * time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var got []EventLine
	err = c.Follow(ctx, nil, func(e EventLine) error {
		got = append(got, e)
		if len(got) == 1 {
			time.AfterFunc(500*time.Millisecond, cancel) // it asks again, in vain, and does not say so again
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || words(got) != "away" || !strings.Contains(got[0].Reason, "hangs") || got[0].Seq != 3 {
		t.Errorf("%+v, %v", got, err)
	}
	l.Close()
	for c := range hung {
		c.Close()
	}
}

// TestWatcherThatDoesNotRead: its connection is ended; nobody waits for it.
func TestWatcherThatDoesNotRead(t *testing.T) {
	a := &agents{t: t, path: filepath.Join(t.TempDir(), "c.sock")}
	a.ring = NewRing(0)
	var err error
	if a.s, err = listen(a.path, Access{}, &fakeNode{}, a.ring, slog.New(slog.DiscardHandler), 100*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", a.path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "GET /v1/events?since=0&follow=1 HTTP/1.1\r\nHost: x\r\n\r\n")
	for range 4000 {
		a.ring.Add(volume.Event{Volume: "crm", Reason: strings.Repeat("x", 1000)})
	}
	a.stop() // fails if a handler is still writing after 5 s
}
