package main

import (
	"fmt"

	"github.com/qrbd/qrbd/agent/control"
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
