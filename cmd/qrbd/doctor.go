package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/agent/doctor"
)

// doctorTimeout bounds all checks together.
const doctorTimeout = 30 * time.Second

// runDoctor says what to change on this host. It needs neither an agent nor a valid
// configuration: it says so and looks at the rest.
func runDoctor(c call) error {
	ctx, cancel := context.WithTimeout(c.Context.Context, doctorTimeout)
	defer cancel()
	o := doctor.Options{Host: doctor.ThisHost(), Version: versionText()}
	o.Config, o.Fault = config.Load(c.String("config"))
	socket := c.String("control")
	if socket == "" && o.Config != nil {
		socket = o.Config.Node.Control
	}
	client := control.NewClient(socket)
	if socket == "" {
		o.StatusFault = errors.New("where the agent's control socket is, is not known without a valid configuration: name it with --control")
	} else if st, err := client.Status(ctx); err != nil {
		o.StatusFault = err
	} else {
		o.Status = &st
		o.Reach, _ = client.Reach(ctx) // without it, what peers see of this node is not said
	}
	r := doctor.Examine(ctx, o)
	if c.Bool("json") {
		if err := printJSON(c.t.out, r); err != nil {
			return err
		}
	} else {
		width, _ := c.t.size()
		writeLines(c.t.out, doctorLines(r, palette{c.t.colour}, width))
	}
	if n := r.Changes(); n > 0 {
		return fmt.Errorf("%s must be changed on this host", plural(n, "thing"))
	}
	return nil
}

// doctorColours gives each level its colour.
var doctorColours = map[doctor.Level]string{doctor.OK: green, doctor.Note: yellow, doctor.Change: red, doctor.Unknown: dim}

// doctorLines lays a report out in width columns:
//
//	ok       clock            it is synchronised
//	change   UDP buffers      the kernel grants 208 KiB …
//	                          > sysctl -w …
func doctorLines(r doctor.Report, p palette, width int) []string {
	longest := 0
	for _, f := range r.Findings {
		longest = max(longest, columns(clean(f.Check)))
	}
	var lines []string
	for _, f := range r.Findings {
		level := pad(p.paint(doctorColours[f.Level], string(f.Level)), 8)
		text := strings.ReplaceAll(f.Text, "\n", "; ")
		lines = append(lines, wrap(level+" "+pad(clean(f.Check), longest)+"  ", clean(text), width)...)
		if f.Fix != "" && f.Level != doctor.OK {
			lines = append(lines, wrap(strings.Repeat(" ", 8+1+longest+2)+p.paint(bold, "> "), clean(f.Fix), width)...)
		}
	}
	return lines
}
