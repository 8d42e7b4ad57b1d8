package sim

import (
	"errors"

	"github.com/qrbd/qrbd/replica"
)

var errArchive = errors.New("no space for the archive")

// archive is volume's DoArchive: it takes a while, and may not be possible.
func (p *process) archive(id replica.PeerID, d *replica.Discard) {
	p.w.log("%s archives: %s", p.n.name, d)
	p.w.count("archived")
	delay := p.w.between(50*micro, 50*milli)
	var err error
	if !p.w.calm && p.w.p(0.05) {
		err = errArchive
		p.w.count("archive failed")
	}
	if !p.w.calm && p.w.p(0.02) {
		delay = p.w.between(0, 30*second)
	}
	p.after(delay, func() {
		p.m.Archived(p.now(), id, d, err)
		p.run()
	})
}

var errHook = errors.New("the hook refuses")

// askTarget is volume.askTarget: a command that takes a while, refuses, or hangs.
func (p *process) askTarget(id replica.PeerID, token uint64) {
	p.w.count("hook asked")
	delay := p.w.between(milli, 500*milli)
	var err error
	if !p.w.calm {
		if p.w.p(0.05) {
			err = errHook
			p.w.count("hook refused")
		}
		if p.w.p(0.05) {
			delay = p.w.between(0, 40*second)
		}
	}
	p.after(delay, func() {
		p.m.TargetAllowed(p.now(), id, token, err)
		p.run()
	})
}
