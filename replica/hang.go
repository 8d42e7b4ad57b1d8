package replica

import "fmt"

// localRead hands a read to the local store, and remembers it until it is done.
func (m *Machine) localRead(r *Request) {
	r.at = m.now
	if m.cfg.DiskTimeout != 0 {
		r.span = len(m.reading)
		m.reading = append(m.reading, r)
	}
	m.foreground.begin(m.now)
	m.emit(Effect{Kind: DoLocal, Req: r})
}

func (m *Machine) localReadDone(r *Request) {
	if r.span < 0 {
		return
	}
	last := len(m.reading) - 1
	m.reading[r.span] = m.reading[last]
	m.reading[r.span].span = r.span
	m.reading[last] = nil
	m.reading = m.reading[:last]
	r.span = -1
}

// tickDisk fails a disk, or metadata, that do not answer: every wait has an end
// (P8). What is done elsewhere on the disk shows that it lives; a single operation
// gets four times as long all the same. What is still with a disk that has failed for
// another reason is given up the same way.
func (m *Machine) tickDisk() {
	limit := m.cfg.DiskTimeout
	if limit == 0 || m.stopping {
		return
	}
	if m.usable() && m.metaBusy && m.now-m.metaAt > limit {
		m.metaLost("its metadata have not been written for " + seconds(limit))
		m.abandonLocal()
		return
	}
	check := func(r *Request) bool {
		hung := m.now-max(r.at, m.localMoved) > limit || m.now-r.at > 4*limit
		if hung {
			m.failDisk(fmt.Sprintf("%s at %d has not ended for %s", r.Op, r.Off, seconds(m.now-r.at)))
			m.abandonLocal()
		}
		return hung
	}
	for _, s := range m.spans {
		if s.req.local && check(s.req) {
			return
		}
	}
	for _, r := range m.reading {
		if check(r) {
			return
		}
	}
}

// StoreHangs reports that the store has not ended, within the disk timeout, what a
// peer sent; why says it for people.
func (m *Machine) StoreHangs(now Time, why string) {
	m.now = now
	if m.usable() {
		m.failDisk(why)
		m.abandonLocal()
	}
}

// abandonLocal goes on without what the store still has. It is not used again, so
// that what lands there late harms nobody.
func (m *Machine) abandonLocal() {
	var list []*Request
	for _, s := range m.spans {
		if s.req.local {
			list = append(list, s.req)
		}
	}
	if len(list) > 0 || len(m.reading) > 0 {
		m.event("", "clients", "served", "stuck", fmt.Sprintf("%d requests are stuck in the disk: their clients have to connect again", len(list)+len(m.reading)))
	}
	for _, r := range list {
		r.local, r.late = false, true
		if r.Op == Pull {
			m.pullEnded(r)
			continue
		}
		m.settle(r)
	}
	reads := m.reading
	m.reading = nil
	for _, r := range reads {
		r.span, r.late = -1, true
		m.foreground.end(m.now)
		m.readmit(r)
	}
}
