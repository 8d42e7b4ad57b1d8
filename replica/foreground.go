package replica

// foreground measures how busy clients keep the volume, for the pace of syncs:
// the time in which at least one of their requests was under way. What the machine
// does of its own (flushes, metadata) does not count.
type foreground struct {
	requests int  // under way
	since    Time // of the first of them
	spent    Time // with at least one under way, since the last take
	taken    Time // when take was last called
}

func (f *foreground) begin(now Time) {
	if f.requests == 0 {
		f.since = now
	}
	f.requests++
}

func (f *foreground) end(now Time) {
	f.requests--
	if f.requests == 0 {
		f.spent += max(0, now-f.since)
	}
}

// take returns the share of the time since the last take, 0 to 1, in which there
// was a request.
func (f *foreground) take(now Time) float64 {
	if f.requests > 0 {
		f.spent += max(0, now-f.since)
		f.since = now
	}
	took, spent := now-f.taken, f.spent
	f.taken, f.spent = now, 0
	if took <= 0 {
		return 0
	}
	return min(1, float64(spent)/float64(took))
}

// paceSoon is after how long the pace may fall between two ticks.
const paceSoon = Time(20e6)

// PaceNow is called before a plan is asked for its next step: when clients begin to
// work, it does not wait for the next tick.
func (m *Machine) PaceNow(now Time) {
	f := &m.foreground
	spent := f.spent
	if f.requests > 0 {
		spent += max(0, now-f.since)
	}
	if took := now - f.taken; took >= paceSoon && 2*spent >= took {
		m.now = now
		m.tickPlans()
	}
}

// tickPlans tells every plan how busy clients are.
func (m *Machine) tickPlans() {
	busy := m.foreground.take(m.now)
	for _, p := range m.peers {
		if p.plan != nil {
			p.plan.Tick(m.now, busy)
		}
	}
}
