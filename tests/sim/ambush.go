package sim

import (
	"github.com/qrbd/qrbd/protocol"
)

// Faults at random times seldom meet the few microseconds in which a decision is on
// its way or becomes durable. An ambush waits for such a moment, and strikes then.

// moment is what an ambush waits for: a message that is sent, or a commit.
type moment uint8

// commits is the moment at which a node begins to commit metadata; the others are
// message types.
const commits moment = 255

// moments are those that an ambush may wait for.
var moments = []moment{
	commits, commits,
	moment(protocol.TypeHello), moment(protocol.TypeVerdict), moment(protocol.TypeRefuse), moment(protocol.TypeBye), moment(protocol.TypeState),
	moment(protocol.TypePromoteAsk), moment(protocol.TypePromoteAnswer), moment(protocol.TypeHandover), moment(protocol.TypeHandoverAnswer),
	moment(protocol.TypeNewGeneration), moment(protocol.TypeNewGeneration), moment(protocol.TypeGenerationAck), moment(protocol.TypeGenerationAck),
	moment(protocol.TypeStable), moment(protocol.TypeBitmapPart), moment(protocol.TypeBitmapDone),
	moment(protocol.TypeSyncStart), moment(protocol.TypeSyncReady), moment(protocol.TypeSyncDone), moment(protocol.TypeSyncDoneAck),
	moment(protocol.TypeSyncDone), moment(protocol.TypeSyncDoneAck), moment(protocol.TypeSyncFlush), moment(protocol.TypeSyncFlushed),
	moment(protocol.TypeSyncWrite), moment(protocol.TypeSyncAck), moment(protocol.TypeSyncDigests), moment(protocol.TypeSyncDiffers),
}

// ambush is one that waits.
type ambush struct {
	at    moment
	skip  int // so many such moments pass first
	until int64
}

// ambushesMax bounds those that wait.
const ambushesMax = 4

// lay lays an ambush.
func (w *World) lay() {
	if len(w.ambushes) < ambushesMax {
		w.ambushes = append(w.ambushes, ambush{moments[w.n(len(moments))], w.n(3) * w.n(3), w.now + 10*second})
	}
}

// pass tells what happens now between from and to (commits: from only).
func (w *World) pass(m moment, from, to *node) {
	if w.said != nil {
		w.said(m, from, to)
	}
	for i := 0; i < len(w.ambushes); i++ {
		a := &w.ambushes[i]
		switch {
		case a.at == m && a.skip == 0:
			w.spring(m, from, to)
		case a.at == m:
			a.skip--
			continue
		case w.now < a.until:
			continue
		}
		w.ambushes = append(w.ambushes[:i], w.ambushes[i+1:]...)
		i--
	}
}

// spring strikes a moment later, most often at one of the two that are concerned.
func (w *World) spring(m moment, from, to *node) {
	victim := from
	if to != nil && w.p(0.5) {
		victim = to
	}
	if w.p(0.1) {
		victim = w.any()
	}
	delay := []int64{0, w.between(0, 200*micro), w.between(0, 5*milli), w.between(0, 100*milli)}[w.n(4)]
	w.at(delay, func() {
		if w.calm {
			return
		}
		w.count("ambush")
		if m == commits {
			w.log("AMBUSH of a commit of %s", from.name)
		} else {
			w.log("AMBUSH of %v from %s to %s", protocol.Type(m), from.name, to.name)
		}
		w.strike(victim)
	})
}
