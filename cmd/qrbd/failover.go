package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/volume"
)

// failoverVerbs are what comes after qrbd failover.
var failoverVerbs = []string{"status", "pause", "resume", "test"}

func runFailover(c call) error {
	verb, name := c.Args().Get(0), c.Args().Get(1)
	if verb != "status" && name == "" {
		return usage("failover: name the volume: qrbd failover %s VOLUME", verb)
	}
	if verb != "test" && c.String("to") != "" {
		return usage("failover: --to is for qrbd failover test")
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	switch verb {
	case "status":
		return failoverStatus(c, client, name)
	case "pause", "resume":
		return failoverPause(c, client, name, verb == "pause")
	case "test":
		return failoverTest(c, client, name)
	}
	return usage("failover: there is no %q; say one of: %s", verb, strings.Join(failoverVerbs, ", "))
}

// failoverState is what `qrbd failover status --json` prints, one for each volume with a
// [volume.failover] section.
type failoverState struct {
	Node    string `json:"node"`
	Volume  string `json:"volume"`
	Role    string `json:"role"`
	Primary string `json:"primary,omitempty"`
	volume.FailoverStatus
}

func failoverStates(ctx context.Context, client *control.Client, name string) ([]failoverState, error) {
	st, err := fetchStatus(ctx, client, name)
	if err != nil {
		return nil, err
	}
	list := []failoverState{}
	for _, v := range st.Volumes {
		if v.Failover != nil {
			list = append(list, failoverState{Node: st.Node, Volume: v.Name, Role: v.Role, Primary: v.Primary, FailoverStatus: *v.Failover})
		}
	}
	if len(list) == 0 && name != "" {
		return nil, fmt.Errorf("volume %s has no failover on %s: write a [volume.failover] section", name, st.Node)
	}
	return list, nil
}

func failoverStatus(c call, client *control.Client, name string) error {
	list, err := failoverStates(c.Context.Context, client, name)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.t.out, list)
	}
	if len(list) == 0 {
		fmt.Fprintln(c.t.out, "no volume has a [volume.failover] section")
	}
	for _, f := range list {
		writeLines(c.t.out, failoverLines(f))
	}
	return nil
}

// failoverLines is one volume's failover for people.
func failoverLines(f failoverState) []string {
	head := fmt.Sprintf("%s on %s: %s", clean(f.Volume), clean(f.Node), f.Standing)
	if f.Paused {
		head += fmt.Sprintf(", PAUSED by %s since %s", clean(f.PausedBy), f.PausedSince.Local().Format(time.DateTime))
	}
	primary := f.Primary
	if primary == "" {
		primary = "nobody"
	}
	lines := []string{head, fmt.Sprintf("  %s is primary; arbiter: %s; on top here: %s", clean(primary), f.Arbiter, f.Top)}
	if f.Reason != "" {
		lines = append(lines, "  "+clean(f.Reason))
	}
	for _, p := range f.Peers {
		line := fmt.Sprintf("  %s: %s", clean(p.Name), p.Standing)
		if p.Reason != "" {
			line += " (" + clean(p.Reason) + ")"
		}
		lines = append(lines, line)
	}
	return lines
}

func failoverPause(c call, client *control.Client, name string, pause bool) error {
	if err := client.FailoverPause(c.Context.Context, name, control.FailoverPauseRequest{Paused: pause}); err != nil {
		return err
	}
	if c.Bool("json") {
		return failoverStatus(c, client, name)
	}
	done := "failover of volume %s goes on\n"
	if pause {
		done = "failover of volume %s is paused on every node that is connected, and on the others once they are; until qrbd failover resume nothing is promoted, started or stopped\n"
	}
	fmt.Fprintf(c.t.out, done, name)
	return nil
}

func failoverTest(c call, client *control.Client, name string) error {
	report, err := client.FailoverTest(c.Context.Context, name, control.FailoverTestRequest{To: c.String("to")}, func(what string) {
		if c.t.live && !c.Bool("json") {
			fmt.Fprintln(c.t.err, clean(what))
		}
	})
	if c.Bool("json") && len(report.Steps) > 0 {
		if err := printJSON(c.t.out, report); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	if !c.Bool("json") {
		fmt.Fprintln(c.t.out, report.String())
	}
	return nil
}
