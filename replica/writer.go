package replica

import "github.com/qrbd/qrbd/protocol"

// The writer of a replica is the node whose writes its newest are, as far as it knows. Two
// that name the same one of them know which has its own copy of what clients were
// promised, and which may lack some of it. Who names another may have missed a later
// primary, and says nothing.
//
// Invariant: a replica has applied no write of a primary before that one is durably its
// writer. A primary is its own with its first write, durably when it steps down: until
// then the metadata say "primary".

// wroteHere notes a write of this primary. Without its own disk nobody has all of them.
func (m *Machine) wroteHere() {
	if !m.usable() {
		m.writer = ""
		return
	}
	m.writer = m.cfg.Self
}

// writerIs makes p's writes the newest, and reports whether that has to become durable.
func (m *Machine) writerIs(p *peer) bool {
	if m.writer == p.name {
		return false
	}
	m.writer = p.name
	m.persist()
	return true
}

// ownClaim reports whether the metadata's "primary", or else the newest writes, are this
// node's own. The other way a crashed primary's claim comes by a sync from it.
func (m *Machine) ownClaim() bool {
	if m.role == protocol.Primary || m.crashed {
		return !m.heir
	}
	return m.writer == m.cfg.Self
}

// recallWriter takes the writer from the metadata. Of a primary that stopped without
// notice it is not known whether it had written.
func (m *Machine) recallWriter(st *Stored) {
	m.heir = st.Primary && !st.Own
	if st.Primary {
		return
	}
	if st.Own {
		m.writer = m.cfg.Self
	}
	for i, s := range st.Peers {
		if s.Writer {
			m.writer = m.cfg.Peers[i].Name
		}
	}
}
