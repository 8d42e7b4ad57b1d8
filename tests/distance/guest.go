package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// guestCommand is the first argument of this program inside a machine.
const guestCommand = "guest"

// guestMain is what a machine runs: its name and the shared directory are its arguments.
func guestMain(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("%s: %d arguments: it is started by the bench itself", guestCommand, len(args))
	}
	name := args[0]
	var p plan
	if err := readJSON(filepath.Join(args[1], planFile), &p); err != nil {
		return err
	}
	if err := os.MkdirAll(guestDir, 0o755); err != nil {
		return err
	}
	if name == "beta" {
		return p.beta(ctx)
	}
	return p.alpha(ctx)
}

// start brings all columns up in this machine.
func (p *plan) start(name string, number int) error {
	if err := layLink(number); err != nil {
		return err
	}
	for _, k := range p.agents() {
		if err := p.startAgent(k, name); err != nil {
			return err
		}
	}
	if !p.DRBD {
		return nil
	}
	// The tools keep locks and notes there: the host's stay as they are.
	if err := runAll([]string{"mkdir", "-p", "/run/lock"}, []string{"mount", "-t", "tmpfs", "tmpfs", "/var/lib/drbd"}); err != nil {
		return err
	}
	for _, k := range p.kinds() {
		if k.drbd {
			if err := p.startDRBD(k); err != nil {
				return err
			}
		}
	}
	return nil
}

// beta follows: it makes its end of every condition, in order, when alpha says so.
func (p *plan) beta(ctx context.Context) error {
	if err := p.start("beta", 2); err != nil {
		return err
	}
	for i := 0; ; i++ {
		if err := p.await(ctx, fmt.Sprintf("condition-%d", i)); err != nil {
			return err
		}
		var c condition
		if err := readJSON(filepath.Join(p.Shared, fmt.Sprintf("condition-%d", i)), &c); err != nil {
			return err
		}
		if c.RTTms < 0 { // the end
			return nil
		}
		if err := setLink(c); err != nil {
			return err
		}
		if err := p.tell(fmt.Sprintf("condition-%d-set", i)); err != nil {
			return err
		}
	}
}

// driver is alpha's part: who has the next condition made, and measures under it.
type driver struct {
	*plan
	made  int // conditions
	cells []cell
}

// alpha measures.
func (p *plan) alpha(ctx context.Context) error {
	d := &driver{plan: p}
	if err := p.start("alpha", 1); err != nil {
		return err
	}
	for _, k := range p.kinds() {
		up := p.promote
		switch {
		case k.drbd:
			up = p.promoteDRBD
		case k.nbdkit:
			up = startNbdkit
		}
		if err := up(ctx, k); err != nil {
			return err
		}
		if err := d.fill(ctx, k); err != nil {
			return err
		}
	}
	fmt.Println("all columns are up and filled")
	var err error
	for round := 1; round <= p.Rounds && err == nil; round++ {
		for i, c := range p.Conditions {
			if p.Pause && err == nil {
				fmt.Println("waiting for a line before", c)
				err = p.await(ctx, fmt.Sprintf("line-%d", (round-1)*len(p.Conditions)+i))
			}
			if err == nil {
				err = d.make(ctx, c)
			}
			if err != nil {
				break
			}
			d.all(ctx, c, round)
			err = writeJSON(filepath.Join(p.Shared, cellsFile), d.cells) // what there is, should something fail later
		}
	}
	return errors.Join(err, d.condition(condition{RTTms: -1}))
}

const nbdkitSocket = "/run/nbdkit.sock"

// startNbdkit starts nbdkit on a file like the agents'. It ends with the machine.
func startNbdkit(ctx context.Context, _ columnKind) error {
	file := filepath.Join(guestDir, "nbdkit.img")
	if err := runAll([]string{"truncate", "-s", fmt.Sprint(volumeBytes), file}, []string{"nbdkit", "--unix", nbdkitSocket, "file", file}); err != nil {
		return err
	}
	return untilDone(ctx, func() error {
		_, err := os.Stat(nbdkitSocket)
		return err
	})
}

// fill writes a column's volume once, so that no cell pays for the first touch of memory.
func (d *driver) fill(ctx context.Context, k columnKind) error {
	var c cell
	jobs := []work{{name: "fill", bs: "1m", rw: "write", depth: 8}}
	return c.measure(ctx, k.target(), jobs, 1200*time.Millisecond)
}

// target is fio's way to a column.
func (k columnKind) target() []string {
	switch {
	case k.drbd:
		return []string{"--ioengine=libaio", "--direct=1", "--filename=" + k.device()}
	case k.nbdkit:
		return []string{"--ioengine=nbd", "--uri=nbd+unix:///?socket=" + nbdkitSocket}
	}
	return []string{"--ioengine=nbd", "--uri=nbd+unix:///" + k.volume() + "?socket=" + k.socket()}
}

// condition tells beta the next one.
func (d *driver) condition(c condition) error {
	err := writeJSON(filepath.Join(d.Shared, fmt.Sprintf("condition-%d", d.made)), c)
	d.made++
	return err
}

// make makes a condition on both ends.
func (d *driver) make(ctx context.Context, c condition) error {
	if err := errors.Join(setLink(c), d.condition(c)); err != nil {
		return err
	}
	return d.await(ctx, fmt.Sprintf("condition-%d-set", d.made-1))
}

// all measures every column under a condition.
func (d *driver) all(ctx context.Context, at condition, round int) {
	for _, k := range d.kinds() {
		if !k.tells(at, d.longest()) {
			continue
		}
		c := cell{condition: at, Column: k.name, Round: round}
		if err := d.one(ctx, k, &c); err != nil {
			c.Failed = err.Error()
		}
		d.cells = append(d.cells, c)
		fmt.Printf("%-14s %-12s %8.2f ms %8.0f /s %8.1f MB/s %s\n", at, k.name, c.Depth1ms, c.Depth32, c.BulkMBs, c.Failed)
	}
}

// tells reports whether a column says anything new under a condition. Protocol A is about what a client waits for, which is none of the
// link's; BBR is about loss.
func (k columnKind) tells(at condition, longest float64) bool {
	switch {
	case k.nbdkit:
		return at == condition{}
	case k.async:
		return at.LossPct == 0 && at.RTTms == longest
	case k.drbd && k.bbr:
		return at.LossPct > 0
	}
	return true
}

// longest is the longest round trip of the plan.
func (p *plan) longest() float64 {
	var longest float64
	for _, c := range p.Conditions {
		longest = max(longest, c.RTTms)
	}
	return longest
}

// one measures a column.
func (d *driver) one(ctx context.Context, k columnKind, c *cell) error {
	ready := func() error { return d.replicating(k) }
	switch {
	case k.drbd:
		ready = k.drbdReplicating
	case k.nbdkit:
		ready = func() error { return nil }
	}
	if err := untilDone(ctx, ready); err != nil {
		return err
	}
	jobs := works
	if k.async {
		jobs = works[:2]
	}
	return c.measure(ctx, k.target(), jobs, d.Runtime)
}
