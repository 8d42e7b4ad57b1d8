package sim

import "errors"

// late is volume.late.
func (p *process) late() *link {
	for i, l := range p.applying {
		if l != nil && l.storing > 0 && p.links[i] != l {
			return l
		}
	}
	return nil
}

// enter is link.enter.
func (l *link) enter(seq uint64, then func(error)) {
	switch {
	case !l.current(), l.dead:
		then(errClosed)
	case l.p.late() != nil:
		l.w.count("waited for what is late")
		l.p.after(milli, func() { l.enter(seq, then) })
	default:
		l.storing++
		l.p.m.PeerTaken(l.id, seq)
		if !l.w.calm && l.w.p(0.0002) {
			l.w.count("hung in the store")
			l.p.after(l.w.between(0, 8*second), func() { then(nil) })
			return
		}
		then(nil)
	}
}

func (l *link) leave() { l.storing-- }

// settle is volume's DoSettle.
func (p *process) settle() {
	if p.late() != nil {
		p.w.count("waited for what is late")
		p.after(milli, p.settle)
		return
	}
	p.m.StoreSettled(p.now())
	p.run()
}

// awaitSettled is volume.awaitSettled.
func (p *process) awaitSettled(limit int64, then func(error)) {
	switch {
	case p.late() == nil:
		then(nil)
	case p.w.now > limit:
		then(errors.New("the disk is stuck"))
	default:
		p.after(milli, func() { p.awaitSettled(limit, then) })
	}
}
