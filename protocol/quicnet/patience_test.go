package quicnet

import (
	"net"
	"testing"
	"time"
)

// patient is one on a clock of its own, over a socket that is never looked at, whose trial is won.
func patient(t *testing.T) (p *patience, clock *time.Duration, calm *bool) {
	udp, err := listenUDP("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { udp.Close() })
	clock, calm = new(time.Duration), new(bool)
	*calm = true
	p = newPatience(udp, func() bool { return *calm })
	p.several = true
	p.now = func() time.Duration { *clock++; return *clock }
	return p, clock, calm
}

// after makes one wait that ends after d with n bytes, and reports whether it was begun awake.
func after(p *patience, clock *time.Duration, d time.Duration, n int) bool {
	begun := p.now()
	looked := false
	p.ready = func(uintptr) bool {
		looked = true
		*clock += 5 * time.Microsecond
		return *clock-begun >= d
	}
	p.await()
	if d := d - (*clock - begun); d > 0 {
		*clock += d // asleep
	}
	p.came(n)
	return looked
}

func writes(p *patience, clock *time.Duration, d time.Duration, n, times int) {
	for range times {
		after(p, clock, d, n)
	}
}

func TestPatience(t *testing.T) {
	const short = 60 * time.Microsecond
	tests := []struct {
		name string
		do   func(p *patience, clock *time.Duration, calm *bool)
		want bool
	}{
		{"a new one", func(*patience, *time.Duration, *bool) {}, false},
		{"after many writes, one at a time", func(p *patience, c *time.Duration, _ *bool) { writes(p, c, short, 4096, 60) }, true},
		{"after a few", func(p *patience, c *time.Duration, _ *bool) { writes(p, c, short, 4096, 5) }, false},
		{"after acknowledgements", func(p *patience, c *time.Duration, _ *bool) { writes(p, c, short, writeMin-1, 100) }, false},
		{"after writes that come many at once", func(p *patience, c *time.Duration, _ *bool) { writes(p, c, short, writeMax+1, 100) }, false},
		{"after several such among single ones", func(p *patience, c *time.Duration, _ *bool) {
			writes(p, c, short, 4096, 60)
			writes(p, c, short, writeMax+1, 3)
		}, false},
		{"after one that took long", func(p *patience, c *time.Duration, _ *bool) {
			writes(p, c, short, 4096, 60)
			after(p, c, 2*waitLong, 4096)
		}, true},
		{"after a pause", func(p *patience, c *time.Duration, _ *bool) {
			writes(p, c, short, 4096, 60)
			after(p, c, pauseMin, 4096)
		}, false},
		{"after slow writes", func(p *patience, c *time.Duration, _ *bool) { writes(p, c, 2*patienceMax, 4096, 200) }, false},
		{"with something else to wait for", func(p *patience, c *time.Duration, calm *bool) {
			writes(p, c, short, 4096, 60)
			*calm = false
		}, false},
		{"on a single CPU", func(p *patience, c *time.Duration, _ *bool) {
			p.several = false
			writes(p, c, short, 4096, 60)
		}, false},
	}
	for _, test := range tests {
		p, clock, calm := patient(t)
		test.do(p, clock, calm)
		p.trial.awake = true
		if got := after(p, clock, short, 4096); got != test.want {
			t.Errorf("%s: waits awake %v, want %v", test.name, got, test.want)
		}
		p.trial.awake = false
		if after(p, clock, short, 4096) {
			t.Errorf("%s: waits awake though writes come no faster for it", test.name)
		}
	}
}

// TestPatienceEnds: a wait is at most patienceMax awake.
func TestPatienceEnds(t *testing.T) {
	p, clock, _ := patient(t)
	p.usual, p.trial.awake = 0, true
	begun := *clock
	p.ready = func(uintptr) bool { *clock += time.Microsecond; return false }
	if p.await(); *clock-begun < patienceMax || *clock-begun > patienceMax+10*time.Microsecond {
		t.Errorf("it waited awake for %v, want %v", *clock-begun, patienceMax)
	}
}

// TestPatienceReads: what comes during an awake wait is read, on a real socket, without an allocation; so is its end.
func TestPatienceReads(t *testing.T) {
	udp, err := listenUDP("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := newPatience(udp, func() bool { return true })
	p.several = true
	sender, err := net.DialUDP("udp", nil, udp.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	in, out := make([]byte, 2000), make([]byte, 1000)
	for range 20 {
		p.usual, p.trial.awake = 0, true
		sent := make(chan error, 1)
		go func() {
			_, err := sender.Write(out)
			sent <- err
		}()
		p.await()
		n, err := udp.Read(in)
		if err != nil || n != len(out) {
			t.Fatalf("%d, %v", n, err)
		}
		p.came(n)
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
	}
	allocs := testing.AllocsPerRun(20, func() {
		p.usual, p.trial.awake = 0, true
		p.await() // to its end
		p.came(writeMin)
	})
	if allocs != 0 {
		t.Errorf("a wait costs %v allocations", allocs)
	}
	udp.Close()
	p.usual, p.trial.awake = 0, true
	p.await() // returns
}
