package replica

import (
	"testing"

	"github.com/qrbd/qrbd/protocol"
)

// BenchmarkWrite is what both machines decide about one replicated write under C, from the client's request to its completion: five events. The
// extent is warm. Every 1024 writes a flush, as the primary sends one itself: what it has to remember is bounded.
func BenchmarkWrite(b *testing.B) {
	w := newWorld(protocol.ModeC, []string{"alpha", "beta"})
	w.link("alpha", "beta") // ends with the promotion: there is a new generation
	alpha, beta := w.nodes["alpha"], w.nodes["beta"]
	alpha.m.Promote(w.now, PromoteOptions{Force: true}, func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	})
	w.run()
	w.link("alpha", "beta")
	w.run()
	to, from := alpha.peer("beta"), beta.peer("alpha")
	var r Request
	var data protocol.Data
	write := func(off int64) {
		w.now += 1000
		r = Request{Op: Write, Off: off, Len: 4096}
		alpha.m.Submit(w.now, &r)
		sent := false
		for _, e := range alpha.m.Effects() {
			if e.Kind == DoSend && e.Msg == nil {
				data, sent = e.Data, true
			}
		}
		if !sent {
			b.Fatalf("nothing is sent of the write at %d: a sync runs, or the extent is cold", off)
		}
		if _, err := beta.m.PeerData(w.now, from, &data); err != nil {
			b.Fatal(err)
		}
		beta.m.Effects()
		beta.m.PeerTaken(from, data.Seq)
		beta.m.PeerApplied(w.now, from, data.Seq, nil)
		alpha.m.LocalDone(w.now, &r, nil, false)
		alpha.m.Effects()
		alpha.m.Acked(w.now, to, beta.m.AckFor(from))
		for _, e := range alpha.m.Effects() {
			if e.Kind == DoComplete && e.Req == &r {
				return
			}
		}
		b.Fatal("a write is not complete though all have it")
	}
	blocks := w.size / 4096
	for i := range blocks {
		alpha.m.Submit(w.now, &Request{Op: Write, Off: i * 4096, Len: 4096})
		w.collect(alpha)
		w.run() // warms the extents
	}
	b.ReportAllocs()
	i := int64(0)
	for b.Loop() {
		write(i % blocks * 4096)
		if i++; i%1024 == 0 {
			alpha.m.Submit(w.now, &Request{Op: Flush})
			w.collect(alpha)
			w.run()
		}
	}
}
