package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/volume"
)

// runTop shows all volumes with what they do, again and again: redrawn on a terminal,
// as blocks in a pipe, as one JSON object a line with --json. Like watch, it needs an
// agent to begin with and waits for one that is away later.
func runTop(c call) error {
	interval := c.Duration("interval")
	if interval < 100*time.Millisecond {
		return usage("top: --interval %s is too short: at least 100ms", interval)
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(c.Context.Context)
	defer cancel()
	st, err := client.StatusIO(ctx)
	if err != nil {
		return err
	}
	v := &topView{colour: palette{c.t.colour && !c.Bool("no-colour")}}
	v.look(st, nil, time.Now())
	keys := make(chan key, 8)
	live := c.t.live && !c.Bool("json") && !c.Bool("once")
	if live {
		restore := startScreen(c.t, func(k key) {
			select {
			case keys <- k:
			case <-ctx.Done():
			}
		})
		defer restore()
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if live {
			width, height := c.t.size()
			if _, err := fmt.Fprint(c.t.out, v.frame(width, height)); err != nil {
				return fmt.Errorf("printing: %w", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil // Ctrl-C: what was wanted
		case k := <-keys:
			if k == keyQuit {
				return nil
			}
			v.press(k)
			continue
		case <-tick.C:
		}
		st, err := client.StatusIO(ctx)
		v.look(st, err, time.Now())
		if live {
			continue
		}
		if err := v.print(c); err != nil || c.Bool("once") {
			return err
		}
	}
}

// print writes a look for a pipe or a file.
func (v *topView) print(c call) error {
	if c.Bool("json") {
		if v.failed != nil {
			return v.failed
		}
		return printJSON(c.t.out, topReport{v.at, v.st.Node, v.rates()})
	}
	if c.Bool("once") && v.failed != nil {
		return v.failed
	}
	width, _ := c.t.size()
	_, err := fmt.Fprintln(c.t.out, strings.Join(v.lines(width), "\n")+"\n")
	return err
}

// topReport is a line of qrbd top --json.
type topReport struct {
	Time    time.Time   `json:"time"`
	Node    string      `json:"node"`
	Volumes []topVolume `json:"volumes"`
}

// topVolume is what a volume did between the last two looks. Latencies are zero where
// nothing was done.
type topVolume struct {
	Name        string  `json:"name"`
	Role        string  `json:"role"`
	Disk        string  `json:"disk"`
	Known       bool    `json:"known"`            // false: there were no two looks at counters yet
	ReadRate    float64 `json:"read_rate"`        // bytes/s
	WriteRate   float64 `json:"write_rate"`       // bytes/s, of peers on a secondary
	IOPS        float64 `json:"iops"`             // requests of clients, or a peer's operations, a second
	Write       float64 `json:"write_seconds"`    // mean
	Write99     float64 `json:"write_99_seconds"` // an upper bound of 99 in 100
	Flush       float64 `json:"flush_seconds"`    // mean
	Read        float64 `json:"read_seconds"`     // mean
	Unanswered  uint64  `json:"unanswered"`
	BehindBytes int64   `json:"behind_bytes"` // the most of any peer

	status *volume.Status
}

// topView is what qrbd top knows. Owner: runTop.
type topView struct {
	colour palette
	sort   topSort
	from   int // first line of the list that is shown

	st, old  control.NodeStatus
	at, then time.Time // of st and old
	failed   error
}

// look takes a new status; an error keeps the last one.
func (v *topView) look(st control.NodeStatus, err error, now time.Time) {
	v.failed = err
	if err != nil {
		v.at = now
		v.old = control.NodeStatus{} // rates begin anew
		return
	}
	v.old, v.then = v.st, v.at
	v.st, v.at = st, now
}

// press does what a key is for, but quitting.
func (v *topView) press(k key) {
	switch k {
	case keySort:
		v.sort = (v.sort + 1) % topSorts
		v.from = 0
	case keyUp:
		v.from = max(0, v.from-1)
	case keyDown:
		v.from++ // frame bounds it
	case keyQuit, keyNone:
	}
}

// rates returns what the volumes did between the last two looks, sorted.
func (v *topView) rates() []topVolume {
	old := map[string]*volume.Status{}
	for i := range v.old.Volumes {
		old[v.old.Volumes[i].Name] = &v.old.Volumes[i]
	}
	seconds := v.at.Sub(v.then).Seconds()
	out := make([]topVolume, 0, len(v.st.Volumes))
	for i := range v.st.Volumes {
		out = append(out, rateOf(old[v.st.Volumes[i].Name], &v.st.Volumes[i], seconds))
	}
	v.sort.apply(out)
	return out
}

// rateOf compares two looks at a volume; old is nil when there was none before.
func rateOf(old, now *volume.Status, seconds float64) topVolume {
	r := topVolume{Name: now.Name, Role: now.Role, Disk: now.Disk, status: now}
	for _, p := range now.Peers {
		r.BehindBytes = max(r.BehindBytes, p.BehindBytes)
	}
	if now.IO == nil || old == nil || old.IO == nil || seconds <= 0 {
		return r
	}
	r.Known = true
	rate := func(a, b uint64) float64 {
		if b < a {
			a = 0 // it counts anew
		}
		return float64(b-a) / seconds
	}
	for kind, o := range now.IO.Ops {
		was := old.IO.Ops[kind]
		whole := o.Whole.Since(was.Whole)
		r.IOPS += float64(whole.Count) / seconds
		r.Unanswered += o.Begun - min(o.Begun, o.Whole.Count)
		switch kind {
		case volume.OpKindRead.String():
			r.ReadRate, r.Read = rate(was.Bytes, o.Bytes), whole.Mean().Seconds()
		case volume.OpKindWrite.String():
			r.WriteRate, r.Write, r.Write99 = rate(was.Bytes, o.Bytes), whole.Mean().Seconds(), whole.Quantile(0.99).Seconds()
		case volume.OpKindFlush.String():
			r.Flush = whole.Mean().Seconds()
		}
	}
	if now.Role != "primary" {
		r.addApplied(old.IO, now.IO, seconds, rate)
	}
	return r
}

// addApplied counts what a secondary does for its primary.
func (r *topVolume) addApplied(old, now *volume.IO, seconds float64, rate func(a, b uint64) float64) {
	for peer, p := range now.Peers {
		was := old.Peers[peer]
		r.WriteRate += rate(was.Applied, p.Applied)
		for kind, h := range p.Apply {
			d := h.Since(was.Apply[kind])
			r.IOPS += float64(d.Count) / seconds
			switch kind {
			case volume.OpKindWrite.String():
				r.Write, r.Write99 = max(r.Write, d.Mean().Seconds()), max(r.Write99, d.Quantile(0.99).Seconds())
			case volume.OpKindFlush.String():
				r.Flush = max(r.Flush, d.Mean().Seconds())
			}
		}
	}
}
