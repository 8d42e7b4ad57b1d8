package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/volume"
)

func runWait(c call) error {
	what := control.WaitFor(c.String("for"))
	if !what.Valid() {
		return usage("wait: --for takes %s, %s or %s", control.WaitConnected, control.WaitUpToDate, control.WaitPrimary)
	}
	timeout := c.Duration("timeout")
	if timeout < 0 || c.IsSet("timeout") && timeout == 0 {
		return usage("wait: --timeout %s is not more than zero", timeout)
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	r := control.WaitRequest{For: what, TimeoutSeconds: timeout.Seconds()}
	err = client.Wait(c.Context.Context, c.volumeName(), r, func(p control.Progress) {
		if c.t.live {
			fmt.Fprintf(c.t.err, "waiting: %s\n", clean(p.Waiting))
		}
	})
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.t.out, struct {
			Volume  string          `json:"volume"`
			For     control.WaitFor `json:"for"`
			Reached bool            `json:"reached"`
		}{c.volumeName(), what, true})
	}
	return nil
}

func runEvents(c call) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	follow := !c.Bool("once")
	var since *uint64
	if n := c.Uint64("since"); c.IsSet("since") || !follow {
		since = &n
	}
	p := palette{c.t.colour}
	err = client.Events(c.Context.Context, since, follow, func(e control.EventLine) error {
		if c.Bool("json") {
			return printJSON(c.t.out, e)
		}
		_, err := fmt.Fprintln(c.t.out, eventLine(e, p))
		return err
	})
	if c.Context.Context.Err() != nil {
		return nil // Ctrl-C ends it as meant
	}
	return err
}

// eventLine is one event for people:
//
//	2026-11-22 14:03:01  crm/beta  connection  connecting -> connected
func eventLine(e control.EventLine, p palette) string {
	if e.Event == nil {
		return p.paint(yellow, fmt.Sprintf("… %d events were lost before this one", e.Missed))
	}
	who := clean(e.Volume)
	if e.Peer != "" {
		who += "/" + clean(e.Peer)
	}
	change := p.state(clean(e.New))
	if e.Old != "" {
		change = p.state(clean(e.Old)) + p.paint(dim, " -> ") + change
	}
	line := fmt.Sprintf("%s  %s  %s  %s", p.paint(dim, e.Time.Local().Format("2006-01-02 15:04:05.000")),
		pad(p.paint(bold, who), 12), pad(clean(e.Field), 11), change)
	if e.Reason != "" {
		line += "  " + p.paint(dim, "("+clean(e.Reason)+")")
	}
	return line
}

// errDiffers is a verify that found differences: not a success for a script.
var errDiffers = errors.New("the replicas differ; the blocks are marked out of sync, and disconnect then connect copies them")

func runVerify(c call) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	start := time.Now()
	drawn := false
	reports, err := client.Verify(c.Context.Context, c.volumeName(), control.VerifyRequest{Peer: c.Args().Get(1)}, func(p control.Progress) {
		if c.t.live && !c.Bool("json") && p.TotalBytes > 0 {
			fmt.Fprintf(c.t.err, "\r%s\x1b[K", verifyProgress(p, time.Since(start), palette{c.t.colour}))
			drawn = true
		}
	})
	if drawn {
		fmt.Fprint(c.t.err, "\r\x1b[K")
	}
	if err != nil {
		return err
	}
	if c.Bool("json") {
		if reports == nil {
			reports = []volume.VerifyReport{}
		}
		err = printJSON(c.t.out, reports)
	} else {
		for _, r := range reports {
			writeLines(c.t.out, verifyLines(r))
		}
	}
	for _, r := range reports {
		if r.Bad > 0 {
			return errors.Join(err, fmt.Errorf("volume %s: %w", c.volumeName(), errDiffers))
		}
	}
	return err
}

// verifyProgress is the bar of a verify.
func verifyProgress(p control.Progress, took time.Duration, pal palette) string {
	percent := 100 * float64(p.DoneBytes) / float64(p.TotalBytes)
	line := fmt.Sprintf("%s %5.1f%%  %s of %s", bar(pal, percent, barColumns), floorTenth(percent), bytesText(p.DoneBytes), bytesText(p.TotalBytes))
	if s := took.Seconds(); s >= 1 && p.DoneBytes > 0 {
		rate := float64(p.DoneBytes) / s
		left := time.Duration(float64(p.TotalBytes-p.DoneBytes) / rate * float64(time.Second))
		line += fmt.Sprintf("  %s/s  %s left", bytesText(int64(rate)), durationText(left))
	}
	return line
}

// rangesShown bounds the ranges printed for people; --json has up to 1000.
const rangesShown = 20

func verifyLines(r volume.VerifyReport) []string {
	if r.Bad == 0 {
		return []string{fmt.Sprintf("%s: %s compared, no difference", clean(r.Peer), bytesText(r.Checked))}
	}
	lines := []string{fmt.Sprintf("%s: %s compared, %s differ, in:", clean(r.Peer), bytesText(r.Checked), bytesText(r.Bad))}
	for i, x := range r.Ranges {
		if i == rangesShown {
			lines = append(lines, fmt.Sprintf("  … and %d more ranges (see --json)", len(r.Ranges)-i))
			break
		}
		lines = append(lines, fmt.Sprintf("  %d bytes at %d", x.Len, x.Off))
	}
	return lines
}
