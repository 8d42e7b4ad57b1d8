package agent

import (
	"errors"
	"strings"
	"testing"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
)

func open(kind protocol.StreamKind, name string, attempt uint64) protocol.StreamOpen {
	return protocol.StreamOpen{Kind: kind, Volume: name, Attempt: attempt}
}

// The dialler opens write then bulk stream, with one attempt number, for each
// volume that it has in common with the peer.
func TestDialerConnectsCommonVolumes(t *testing.T) {
	a, vols := start(t, nil)
	s := newFakeSession("gamma", true)
	a.links.sessionUp(s)
	vols["crm"].saw(t, "attach gamma")
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.opened) != 2 {
		t.Fatalf("%d streams, want two (web has no gamma)", len(s.opened))
	}
	w, b := s.opened[0].open, s.opened[1].open
	if w.Kind != protocol.StreamWrite || b.Kind != protocol.StreamBulk || w.Volume != "crm" || b.Volume != "crm" || w.Attempt != b.Attempt || w.Attempt == 0 {
		t.Errorf("streams %+v and %+v", w, b)
	}
	c := vols["crm"].attached["gamma"][0]
	if c.Write != volume.Stream(s.opened[0]) || c.Bulk != volume.Stream(s.opened[1]) || c.RTT() == 0 {
		t.Error("the streams were not handed over as they are")
	}
}

func TestListenerWaits(t *testing.T) {
	a, vols := start(t, nil)
	s := newFakeSession("beta", false)
	a.links.sessionUp(s)
	a.links.ask(a.slot("crm"), "beta")
	<-s.news
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.opened) != 0 {
		t.Error("the listening side opened a stream")
	}
	if m, ok := s.sent[0].(*protocol.ConnectAsk); !ok || m.Volume != "crm" {
		t.Errorf("sent %+v, want ConnectAsk for crm", s.sent[0])
	}
	if vols["crm"].count("attach") != 0 {
		t.Error("attached without streams")
	}
}

func TestAskWithoutSessionIsDropped(t *testing.T) {
	a, _ := start(t, nil)
	a.links.ask(a.slot("crm"), "beta")
}

// The dialler answers ConnectAsk, but not while a link lives: a second would end
// the first.
func TestConnectAsk(t *testing.T) {
	for _, linked := range []bool{false, true} {
		a, vols := start(t, nil)
		s := newFakeSession("beta", true)
		vols["crm"].linked["beta"] = linked
		a.links.message(s, &protocol.ConnectAsk{Volume: "crm"})
		stop(t, a) // what was begun has ended
		if n := vols["crm"].count("attach"); (n == 0) != linked {
			t.Errorf("a link lives: %v, and %d more were made", linked, n)
		}
	}
}

// The side that does not open streams is not asked to.
func TestConnectAskToTheListener(t *testing.T) {
	a, vols := start(t, nil)
	s := newFakeSession("beta", false)
	a.links.message(s, &protocol.ConnectAsk{Volume: "crm"})
	stop(t, a)
	if len(s.opened) != 0 || vols["crm"].count("attach") != 0 {
		t.Error("it opened streams")
	}
}

// One pair at a time is opened for a volume and peer.
func TestConnectIsNotDoubled(t *testing.T) {
	a, vols := start(t, nil)
	s := newFakeSession("beta", true)
	s.hold = make(chan struct{})
	for range 5 {
		a.links.connect(s, a.slot("crm"))
	}
	close(s.hold)
	vols["crm"].saw(t, "attach beta")
	stop(t, a)
	if n := vols["crm"].count("attach"); n != 1 {
		t.Errorf("%d pairs", n)
	}
}

func TestHalfOpenedPairIsAborted(t *testing.T) {
	a, vols := start(t, nil)
	s := newFakeSession("beta", true)
	s.fail = errors.New("no more streams")
	a.links.connect(s, a.slot("crm"))
	<-s.news
	stop(t, a)
	if !s.opened[0].aborted() || vols["crm"].count("attach") != 0 {
		t.Error("the write stream is left over")
	}
}

func TestPairing(t *testing.T) {
	for _, order := range [][2]protocol.StreamKind{{protocol.StreamWrite, protocol.StreamBulk}, {protocol.StreamBulk, protocol.StreamWrite}} {
		a, vols := start(t, nil)
		s := newFakeSession("beta", false)
		other := newFakeStream(open(order[0], "crm", 8)) // of another attempt
		a.links.streamOpened(s, other.open, other)
		byKind := map[protocol.StreamKind]*fakeStream{}
		for _, k := range order {
			st := newFakeStream(open(k, "crm", 7))
			byKind[k] = st
			a.links.streamOpened(s, st.open, st)
		}
		if vols["crm"].count("attach") != 1 {
			t.Fatalf("%v: not attached once", order)
		}
		c := vols["crm"].attached["beta"][0]
		if c.Write != volume.Stream(byKind[protocol.StreamWrite]) || c.Bulk != volume.Stream(byKind[protocol.StreamBulk]) {
			t.Errorf("%v: streams mixed up", order)
		}
		a.links.sessionDown(s)
		if !other.aborted() {
			t.Error("a stream without its twin survives its session")
		}
		if len(a.links.waiting) != 0 {
			t.Errorf("%d streams wait", len(a.links.waiting))
		}
	}
}

// Streams of two sessions are never one link, whatever their attempt.
func TestPairingKeepsSessionsApart(t *testing.T) {
	a, vols := start(t, nil)
	old, now := newFakeSession("beta", false), newFakeSession("beta", false)
	w, b := newFakeStream(open(protocol.StreamWrite, "crm", 7)), newFakeStream(open(protocol.StreamBulk, "crm", 7))
	a.links.streamOpened(old, w.open, w)
	a.links.streamOpened(now, b.open, b)
	if vols["crm"].count("attach") != 0 {
		t.Error("streams of two sessions were paired")
	}
}

func TestBadStreams(t *testing.T) {
	a, vols := start(t, nil)
	s := newFakeSession("beta", false)
	first, twice := newFakeStream(open(protocol.StreamWrite, "crm", 1)), newFakeStream(open(protocol.StreamWrite, "crm", 1))
	odd := newFakeStream(open(9, "crm", 2))
	for _, st := range []*fakeStream{first, twice, odd} {
		a.links.streamOpened(s, st.open, st)
	}
	if first.aborted() || !twice.aborted() || !odd.aborted() {
		t.Errorf("aborted: first %v, twice %v, odd %v", first.aborted(), twice.aborted(), odd.aborted())
	}
	for i := range uint64(pairsMax + 5) {
		st := newFakeStream(open(protocol.StreamWrite, "crm", 100+i))
		a.links.streamOpened(s, st.open, st)
	}
	if n := len(a.links.waiting); n != pairsMax {
		t.Errorf("%d streams wait, at most %d may", n, pairsMax)
	}
	if vols["crm"].count("attach") != 0 {
		t.Error("attached")
	}
}

// A stream whose twin does not come is dropped by its timer.
func TestLonelyStream(t *testing.T) {
	a, _ := start(t, nil)
	s := newFakeSession("beta", false)
	st := newFakeStream(open(protocol.StreamWrite, "crm", 1))
	a.links.streamOpened(s, st.open, st)
	key := pairKey{s, "crm", 1}
	h := a.links.waiting[key]
	a.links.lonely(key, h) // what the timer calls
	if !st.aborted() || len(a.links.waiting) != 0 {
		t.Error("the stream stays")
	}
	a.links.lonely(key, h) // late: nothing to do
}

func TestRefusals(t *testing.T) {
	cases := []struct {
		name, volume, peer string
		without            map[string]error
		code               protocol.Code
		text               string
	}{
		{"unknown", "db", "beta", nil, protocol.CodeUnknownVolume, "db is not configured on alpha"},
		{"not a peer", "web", "gamma", nil, protocol.CodeUnknownVolume, "does not have gamma among its peers"},
		{"not created", "crm", "beta", map[string]error{"crm": errNotCreated}, protocol.CodeNotCreated, "on alpha volume crm is not running here: not created"},
		{"disk", "crm", "beta", map[string]error{"crm": errors.New("no such device")}, protocol.CodeDiskFailed, "no such device"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			a, _ := start(t, c.without)
			// The peer opened the streams.
			s := newFakeSession(c.peer, false)
			w, b := newFakeStream(open(protocol.StreamWrite, c.volume, 1)), newFakeStream(open(protocol.StreamBulk, c.volume, 1))
			a.links.streamOpened(s, b.open, b)
			a.links.streamOpened(s, w.open, w)
			r := w.refusal(t)
			if r.Code != c.code || !strings.Contains(r.Text, c.text) {
				t.Errorf("refused with %v %q, want %v …%s…", r.Code, r.Text, c.code, c.text)
			}
			<-b.gone // ended too, but not before the refusal was sent
			// The peer asked for streams.
			s = newFakeSession(c.peer, true)
			a.links.message(s, &protocol.ConnectAsk{Volume: c.volume})
			<-s.news
			<-s.news
			if r := s.opened[0].refusal(t); r.Code != c.code || s.opened[0].open.Kind != protocol.StreamWrite {
				t.Errorf("asked: refused with %v %q", r.Code, r.Text)
			}
		})
	}
}

func TestUnreachableReachesVolumes(t *testing.T) {
	a, vols := start(t, nil)
	a.links.unreachable("gamma", errors.New("wrong key"))
	if got := vols["crm"].saw(t, "unreachable"); got != "unreachable gamma: wrong key" {
		t.Error(got)
	}
	if vols["web"].count("unreachable") != 0 {
		t.Error("web has no gamma")
	}
}
