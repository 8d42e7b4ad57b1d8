package quicnet

import (
	"strings"
	"testing"
	"time"
)

// TestRefusals: each kind of misfit is refused on both sides, with its cause
// named, and a session with another peer goes on.
func TestRefusals(t *testing.T) {
	type side struct {
		reason Reason
		text   string // part of the message
	}
	for _, c := range []struct {
		name         string
		alpha, beta  func(*Options)
		wrongAtAlpha bool   // alpha has another key for beta
		wrongAtBeta  bool   // beta has another key for alpha
		alphaAs      string // beta's name for alpha
		betaAs       string
		atAlpha      side
		atBeta       side
	}{
		{name: "dialing side has a wrong key", wrongAtAlpha: true,
			atAlpha: side{WrongKey, "configured is qk1"}, atBeta: side{KeyRefused, "does not accept this node's key"}},
		{name: "accepting side has a wrong key", wrongAtBeta: true,
			atAlpha: side{KeyRefused, "does not accept this node's key"}, atBeta: side{WrongKey, "which no [[peer]] here has"}},
		{name: "version", beta: func(o *Options) { o.Major, o.Minor = 2, 3 },
			atAlpha: side{VersionDiffers, "beta speaks protocol 2.3, alpha speaks 1.0"},
			atBeta:  side{VersionDiffers, "beta speaks protocol 2.3, alpha speaks 1.0"}},
		{name: "name", alphaAs: "alfa",
			atAlpha: side{NameDiffers, `beta has this key configured as "alfa", but the node calls itself "alpha"`},
			atBeta:  side{NameDiffers, `beta has this key configured as "alfa", but the node calls itself "alpha"`}},
		{name: "name of the accepting side", betaAs: "bravo",
			atAlpha: side{NameDiffers, `alpha has this key configured as "bravo", but the node calls itself "beta"`},
			atBeta:  side{NameDiffers, `alpha has this key configured as "bravo", but the node calls itself "beta"`}},
		{name: "dialing side's certificate", alpha: expired,
			atAlpha: side{Expired, "the certificate of alpha expired on 2020-02-02T02:02:02Z"},
			atBeta:  side{Expired, "the certificate of alpha expired on 2020-02-02T02:02:02Z"}},
		{name: "accepting side's certificate", beta: expired,
			atAlpha: side{Expired, "the certificate of beta expired on 2020-02-02T02:02:02Z"},
			atBeta:  side{Expired, "the certificate of beta expired on 2020-02-02T02:02:02Z"}},
		{name: "no client certificate", alpha: func(o *Options) { o.withoutCertificate = true },
			atAlpha: side{NoCertificate, "it demands a certificate of this node"},
			atBeta:  side{NoCertificate, "it presents no certificate"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ida, idb := identities(t)
			alpha, beta := startNode(t, "alpha", ida, c.alpha), startNode(t, "beta", idb, c.beta)
			if c.atBeta.reason != Expired || c.beta == nil { // else beta is nobody's peer
				other := startNode(t, "gamma", newIdentity(t), c.beta)
				beta.knows(other)
				other.knows(beta)
				next(t, beta.ups, "session with gamma")
			}

			knownA, knownB, nameA, nameB := ida, idb, "alpha", "beta"
			if c.wrongAtAlpha { // a key that still makes alpha dial
				for knownB = newIdentity(t); string(knownB.Public()) < string(ida.Public()); {
					knownB = newIdentity(t)
				}
			}
			if c.wrongAtBeta {
				for knownA = newIdentity(t); string(knownA.Public()) > string(idb.Public()); {
					knownA = newIdentity(t)
				}
			}
			if c.alphaAs != "" {
				nameA = c.alphaAs
			}
			if c.betaAs != "" {
				nameB = c.betaAs
			}
			beta.knowsAs(nameA, alpha.Addr().String(), knownA)
			alpha.knowsAs(nameB, beta.Addr().String(), knownB)

			for _, s := range []struct {
				node *testNode
				want side
			}{{alpha, c.atAlpha}, {beta, c.atBeta}} {
				e := next(t, s.node.fails, "failure at "+s.node.recorder.name)
				if e.Reason != s.want.reason || !strings.Contains(e.Error(), s.want.text) {
					t.Errorf("%s: %v: %v\nwant %v: ...%s...", s.node.recorder.name, e.Reason, e, s.want.reason, s.want.text)
				}
			}
			if len(alpha.ups)+len(beta.ups)+len(beta.downs) != 0 {
				t.Error("a session began or ended")
			}
		})
	}
}

func expired(o *Options) {
	id := *o.Identity
	id.notAfter = time.Date(2020, 2, 2, 2, 2, 2, 0, time.UTC)
	o.Identity = &id
}

// TestWrongKeyThatMakesBothWait: when a wrong key makes each side wait for the other, the
// waiting side tries too and the cause comes out.
func TestWrongKeyThatMakesBothWait(t *testing.T) {
	ida, idb := identities(t)
	fast := func(o *Options) {
		o.PeerTimeout, o.Heartbeat, o.BackoffMax = 200*time.Millisecond, 50*time.Millisecond, 200*time.Millisecond
	}
	alpha, beta := startNode(t, "alpha", ida, fast), startNode(t, "beta", idb, fast)
	low := newIdentity(t)
	for string(low.Public()) > string(ida.Public()) {
		low = newIdentity(t)
	}
	beta.knows(alpha)
	alpha.knowsAs("beta", beta.Addr().String(), low) // alpha believes that beta dials
	if e := next(t, alpha.fails, "failure at alpha"); e.Reason != WrongKey || e.Peer != "beta" {
		t.Errorf("alpha: %v", e)
	}
	if e := next(t, beta.fails, "failure at beta"); e.Reason != KeyRefused || e.Peer != "alpha" {
		t.Errorf("beta: %v", e)
	}
}

func TestUnreachable(t *testing.T) {
	alpha := startNode(t, "alpha", newIdentity(t), func(o *Options) {
		o.DialTimeout, o.PeerTimeout, o.Heartbeat = 300*time.Millisecond, 200*time.Millisecond, 50*time.Millisecond
	})
	silent, err := listenUDP("127.0.0.1:0") // takes packets and does not answer
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	alpha.knowsAs("beta", silent.LocalAddr().String(), newIdentity(t))
	alpha.knowsAs("gamma", "127.0.0.1:port", newIdentity(t))
	seen := map[string]string{}
	for range 2 {
		e := next(t, alpha.fails, "failure")
		if e.Reason != Unreachable {
			t.Errorf("%v", e)
		}
		seen[e.Peer] = e.Error()
	}
	if !strings.HasSuffix(seen["beta"], "unreachable: no answer") || !strings.Contains(seen["gamma"], "port") {
		t.Errorf("%v", seen)
	}
}

func TestReportsAreLimited(t *testing.T) {
	var r reporter
	t0 := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	unreachable, wrong := reportKey{"beta", Unreachable, true}, reportKey{"beta", WrongKey, true}
	for _, c := range []struct {
		after time.Duration
		key   reportKey
		want  bool
	}{
		{0, unreachable, true},
		{time.Second, unreachable, false},
		{2 * time.Second, wrong, true},        // changed
		{3 * time.Second, unreachable, false}, // back, but too soon
		{6 * time.Second, unreachable, true},  // changed
		{30 * time.Second, unreachable, false},
		{67 * time.Second, unreachable, true}, // a minute has passed
	} {
		if got := r.news(c.key, t0.Add(c.after)); got != c.want {
			t.Errorf("%v after %v: %v", c.key, c.after, got)
		}
	}
	r.clear("beta")
	if len(r.seen)+len(r.last) != 0 || !r.news(unreachable, t0.Add(68*time.Second)) {
		t.Error("not cleared")
	}
	for i := range 1000 {
		r.news(reportKey{who: strings.Repeat("x", i)}, t0.Add(69*time.Second))
	}
	if len(r.seen) > reportsMax || len(r.last) > reportsMax {
		t.Errorf("%d and %d reports remembered", len(r.seen), len(r.last))
	}
	if !r.news(reportKey{who: "later"}, t0.Add(200*time.Second)) {
		t.Error("expired reports still take room")
	}
}
