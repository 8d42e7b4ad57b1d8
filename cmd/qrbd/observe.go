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
	since, err := eventsFrom(c)
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	p := palette{c.t.colour}
	each := func(e control.EventLine) error {
		if c.Bool("json") {
			return printJSON(c.t.out, e)
		}
		_, err := fmt.Fprintln(c.t.out, eventLine(e, p))
		return err
	}
	if c.Bool("once") {
		return client.Events(c.Context.Context, since, each)
	}
	err = client.Follow(c.Context.Context, since, each)
	if c.Context.Context.Err() != nil {
		return nil // Ctrl-C ends it as meant
	}
	return err
}

// eventsFrom is the place after which events are shown; nil: from now on.
func eventsFrom(c call) (*control.Position, error) {
	switch text := c.String("since"); {
	case text != "":
		at, err := control.ParsePosition(text)
		if err != nil {
			return nil, usage("events: --since %v", err)
		}
		return &at, nil
	case c.Bool("once"):
		return &control.Position{}, nil
	}
	return nil, nil
}

// eventLine is one event for people:
//
//	2026-11-22 14:03:01.000  crm/beta  connection  connecting -> connected
func eventLine(e control.EventLine, p palette) string {
	at := p.paint(dim, e.Time.Local().Format("2006-01-02 15:04:05.000"))
	if e.Event == nil {
		return at + "  " + p.paint(yellow, "… "+clean(streamText(e)))
	}
	who := clean(e.Volume)
	if e.Peer != "" {
		who += "/" + clean(e.Peer)
	}
	if who == "" {
		who = "agent"
	}
	change := p.state(clean(e.New))
	if e.Old != "" {
		change = p.state(clean(e.Old)) + p.paint(dim, " -> ") + change
	}
	line := fmt.Sprintf("%s  %s  %s  %s", at, pad(p.paint(bold, who), 12), pad(clean(e.Field), 11), change)
	if e.Reason != "" {
		line += "  " + p.paint(dim, "("+clean(e.Reason)+")")
	}
	return line
}

// streamText is a word on the stream itself.
func streamText(e control.EventLine) string {
	switch {
	case e.Kind == control.KindAway:
		return "nothing is known until the agent is back: " + e.Reason
	case e.Kind == control.KindBack:
		return "the agent is back, and nothing was missed"
	case e.From != nil && e.To != nil && e.Missed > 0:
		return fmt.Sprintf("%s are missing, %d to %d: %s", plural(int(e.Missed), "event"), e.From.Seq, e.To.Seq, e.Reason)
	case e.From != nil:
		return fmt.Sprintf("the events from %d on are missing: %s", e.From.Seq, e.Reason)
	}
	return "events are missing"
}
