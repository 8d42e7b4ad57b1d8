package sessiontest

import (
	"crypto/ed25519"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/qrbd/qrbd/protocol/session"
)

// testRefusals: each kind of misfit is refused on both sides, with its cause
// named, and a session with another peer goes on.
func (w With) testRefusals(t *testing.T) {
	type side struct {
		reason session.Reason
		text   string // part of the message
	}
	for _, c := range []struct {
		name         string
		alpha, beta  func(*session.Options)
		wrongAtAlpha bool   // alpha has another key for beta
		wrongAtBeta  bool   // beta has another key for alpha
		alphaAs      string // beta's name for alpha
		betaAs       string
		atAlpha      side
		atBeta       side
	}{
		{name: "dialing side has a wrong key", wrongAtAlpha: true,
			atAlpha: side{session.WrongKey, "configured is qk1"}, atBeta: side{session.KeyRefused, "does not accept this node's key"}},
		{name: "accepting side has a wrong key", wrongAtBeta: true,
			atAlpha: side{session.KeyRefused, "does not accept this node's key"}, atBeta: side{session.WrongKey, "which no [[peer]] here has"}},
		{name: "version", beta: func(o *session.Options) { o.Major, o.Minor = 2, 3 },
			atAlpha: side{session.VersionDiffers, "beta speaks protocol 2.3, alpha speaks 1.0"},
			atBeta:  side{session.VersionDiffers, "beta speaks protocol 2.3, alpha speaks 1.0"}},
		{name: "name", alphaAs: "alfa",
			atAlpha: side{session.NameDiffers, `beta has this key configured as "alfa", but the node calls itself "alpha"`},
			atBeta:  side{session.NameDiffers, `beta has this key configured as "alfa", but the node calls itself "alpha"`}},
		{name: "name of the accepting side", betaAs: "bravo",
			atAlpha: side{session.NameDiffers, `alpha has this key configured as "bravo", but the node calls itself "beta"`},
			atBeta:  side{session.NameDiffers, `alpha has this key configured as "bravo", but the node calls itself "beta"`}},
		{name: "dialing side's certificate", alpha: expired,
			atAlpha: side{session.Expired, "the certificate of alpha expired on 2020-02-02T02:02:02Z"},
			atBeta:  side{session.Expired, "the certificate of alpha expired on 2020-02-02T02:02:02Z"}},
		{name: "accepting side's certificate", beta: expired,
			atAlpha: side{session.Expired, "the certificate of beta expired on 2020-02-02T02:02:02Z"},
			atBeta:  side{session.Expired, "the certificate of beta expired on 2020-02-02T02:02:02Z"}},
		{name: "no client certificate", alpha: func(o *session.Options) { o.WithoutCertificate = true },
			atAlpha: side{session.NoCertificate, "it demands a certificate of this node"},
			atBeta:  side{session.NoCertificate, "it presents no certificate"}},
		{name: "no certificate of the accepting side", beta: func(o *session.Options) { o.WithoutCertificate = true },
			atAlpha: side{session.NoCertificate, "it presents no certificate"}}, // beta is no node of ours
	} {
		t.Run(c.name, func(t *testing.T) {
			ida, idb := identities(t)
			waits := func(o *session.Options) { // it must not dial after all when this host is slow: who is refused by whom would change
				o.BackoffMax = time.Hour
				if c.beta != nil {
					c.beta(o)
				}
			}
			alpha, beta := w.startNode(t, "alpha", ida, c.alpha), w.startNode(t, "beta", idb, waits)
			if c.beta == nil || c.atBeta.reason == session.VersionDiffers { // else beta is nobody's peer
				other := w.startNode(t, "gamma", newIdentity(t), c.beta)
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
				if s.want == (side{}) {
					continue
				}
				e := next(t, s.node.fails, "failure at "+s.node.recorder.name)
				// Who dialed gamma did so before it listened. And when this host is slow an
				// attempt may run out of time; the next one tells the cause.
				for e.Peer == "gamma" || e.Reason == session.Unreachable {
					e = next(t, s.node.fails, "failure at "+s.node.recorder.name)
				}
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

func expired(o *session.Options) {
	o.Identity = o.Identity.Expiring(time.Date(2020, 2, 2, 2, 2, 2, 0, time.UTC))
}

// testWrongKeyThatMakesBothWait: when a wrong key makes each side wait for the other, the
// waiting side tries too and the cause comes out.
func (w With) testWrongKeyThatMakesBothWait(t *testing.T) {
	ida, idb := identities(t)
	fast := func(o *session.Options) {
		o.PeerTimeout, o.Heartbeat, o.BackoffMax = 200*time.Millisecond, 50*time.Millisecond, 200*time.Millisecond
	}
	alpha, beta := w.startNode(t, "alpha", ida, fast), w.startNode(t, "beta", idb, fast)
	low := newIdentity(t)
	for string(low.Public()) > string(ida.Public()) {
		low = newIdentity(t)
	}
	beta.knows(alpha)
	alpha.knowsAs("beta", beta.Addr().String(), low) // alpha believes that beta dials
	if e := next(t, alpha.fails, "failure at alpha"); e.Reason != session.WrongKey || e.Peer != "beta" {
		t.Errorf("alpha: %v", e)
	}
	if e := next(t, beta.fails, "failure at beta"); e.Reason != session.KeyRefused || e.Peer != "alpha" {
		t.Errorf("beta: %v", e)
	}
}

func (w With) testUnreachable(t *testing.T) {
	alpha := w.startNode(t, "alpha", newIdentity(t), func(o *session.Options) {
		o.DialTimeout, o.PeerTimeout, o.Heartbeat = 300*time.Millisecond, 200*time.Millisecond, 50*time.Millisecond
	})
	alpha.knowsAs("beta", w.Silent(t), newIdentity(t))
	alpha.knowsAs("gamma", "127.0.0.1:port", newIdentity(t))
	seen := map[string]string{}
	for range 2 {
		e := next(t, alpha.fails, "failure")
		if e.Reason != session.Unreachable {
			t.Errorf("%v", e)
		}
		seen[e.Peer] = e.Error()
	}
	if !strings.Contains(seen["beta"], "unreachable: no answer") || !strings.Contains(seen["gamma"], "port") {
		t.Errorf("%v", seen)
	}
}

// testOptionFaults: what cannot be is refused, all faults together.
func (w With) testOptionFaults(t *testing.T) {
	if _, err := session.Start(session.Options{Heartbeat: time.Second, PeerTimeout: time.Second, BackoffMin: time.Hour}); err == nil {
		t.Error("started without options")
	} else {
		for _, want := range []string{"no identity", "node name", "no handler", "no logger", "no transport", "two heartbeats", "back-off from"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v: %s is missing", err, want)
			}
		}
	}
	id, known, other := newIdentity(t), newIdentity(t), newIdentity(t).Public()
	n := w.startNode(t, "alpha", id, nil)
	n.knowsAs("beta", "127.0.0.1:1", known)
	for _, c := range []struct {
		peer session.Peer
		want string
	}{
		{session.Peer{Name: ""}, "peer name"},
		{session.Peer{Name: "alpha", Keys: []ed25519.PublicKey{other}}, "own name"},
		{session.Peer{Name: "beta", Keys: []ed25519.PublicKey{other}}, "there already"},
		{session.Peer{Name: "gamma"}, "0 keys"},
		{session.Peer{Name: "gamma", Keys: []ed25519.PublicKey{other, other, other}}, "3 keys"},
		{session.Peer{Name: "gamma", Keys: []ed25519.PublicKey{other[:5]}}, "5 bytes"},
		{session.Peer{Name: "gamma", Keys: []ed25519.PublicKey{id.Public()}}, "own key"},
		{session.Peer{Name: "gamma", Keys: []ed25519.PublicKey{known.Public()}}, "same key"},
		{session.Peer{Name: "gamma", Keys: []ed25519.PublicKey{other}, Transport: 9}, "not available"},
	} {
		if err := n.AddPeer(c.peer); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %s", c.peer, err, c.want)
		}
	}
	if _, err := session.Start(session.Options{Identity: id, Name: "a", Listen: n.Addr().String(), Handler: n.recorder, Transports: w.Open,
		Log: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("two nodes on one port")
	}
}
