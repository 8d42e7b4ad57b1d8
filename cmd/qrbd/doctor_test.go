package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/agent/doctor"
)

func TestDoctorGolden(t *testing.T) {
	r := doctor.Report{Node: "alpha", Findings: []doctor.Finding{
		{Level: doctor.OK, Check: "configuration", Text: "/etc/qrbd/qrbd.toml is valid: node alpha, peers 1, volumes 2"},
		{Level: doctor.Change, Check: "UDP buffers", Text: "the kernel grants 208 KiB to receive and 208 KiB to send, QUIC asks for 7168: bursts are dropped and sent again",
			Fix: "sysctl -w net.core.rmem_max=7500000 net.core.wmem_max=7500000, and the same two settings in /etc/sysctl.d/60-qrbd.conf; then restart the agent"},
		{Level: doctor.Note, Check: "clock", Text: "nothing keeps it right", Fix: "run chrony or systemd-timesyncd"},
		{Level: doctor.Unknown, Check: "peer beta", Text: "no\x1b[2J answer\nat all"},
	}}
	for name, p := range map[string]palette{"doctor.plain": {}, "doctor.colour": {true}} {
		golden(t, name, text(doctorLines(r, p, 80)))
	}
	for width := 40; width < 100; width += 7 {
		for _, l := range doctorLines(r, palette{}, width) {
			if strings.ContainsAny(l, "\x1b\n") {
				t.Errorf("%q", l)
			}
		}
	}
}

func TestDoctorCommand(t *testing.T) {
	b := newBench(t)
	b.agent(&fakeNode{status: control.NodeStatus{Node: "alpha", Version: "0.0.1-other"}})
	code, out, errs := b.run("doctor --json --config {config}")
	var r doctor.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil || r.Node != "alpha" || r.Healthy {
		t.Errorf("%v\n%s", err, out)
	}
	if code != exitFailed || !strings.Contains(errs, "must be changed on this host") {
		t.Errorf("%d %s", code, errs)
	}
	found := func(check, part string) bool {
		for _, f := range r.Findings {
			if f.Check == check && strings.Contains(f.Text, part) {
				return true
			}
		}
		return false
	}
	if !found("agent", "0.0.1-other") || !found("configuration", "is valid") || !found("backing of web", "does not exist") {
		t.Errorf("%s", out)
	}
	b.write(b.dir+"/bad.toml", "[node]\nnam = \"a\"\n") // faults do not hide the rest
	code, out, _ = b.run("doctor --config {dir}/bad.toml")
	if code != exitFailed || !strings.Contains(out, "bad.toml:2") || !strings.Contains(out, "UDP buffers") {
		t.Errorf("%d\n%s", code, out)
	}
}
