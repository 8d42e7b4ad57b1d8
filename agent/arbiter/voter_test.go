package arbiter

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/qrbd/qrbd/protocol"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a Store without a server.
type memory struct {
	mu  sync.Mutex
	rec Record
	rev int64
}

func (m *memory) Load(context.Context) (Record, int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rec, m.rev, nil
}

func (m *memory) Swap(_ context.Context, rev int64, r Record) (int64, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if rev != m.rev {
		return m.rev, false, nil
	}
	m.rec, m.rev = r, m.rev+1
	return m.rev, true, nil
}

// slow is a node's way to a Store: it takes its time, there and back, and may be cut.
type slow struct {
	to  Store
	rng *rand.Rand
	max time.Duration
	cut atomic.Bool
}

func (s *slow) pass(ctx context.Context) error {
	var end <-chan time.Time
	if !s.cut.Load() {
		end = time.After(time.Duration(s.rng.Int64N(int64(s.max) + 1)))
	}
	select {
	case <-end:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *slow) Load(ctx context.Context) (Record, int64, error) {
	if err := s.pass(ctx); err != nil {
		return Record{}, 0, err
	}
	r, rev, err := s.to.Load(ctx)
	return r, rev, errors.Join(err, s.pass(ctx))
}

func (s *slow) Swap(ctx context.Context, rev int64, r Record) (int64, bool, error) {
	if s.cut.Load() && s.rng.IntN(2) == 0 { // under way, and done without an answer
		_, _, _ = s.to.Swap(ctx, rev, r)
	}
	if err := s.pass(ctx); err != nil {
		return 0, false, err
	}
	next, ok, err := s.to.Swap(ctx, rev, r)
	return next, ok, errors.Join(err, s.pass(ctx))
}

const lease = 3 * time.Second

var id = protocol.VolumeID{1, 2, 3}

// node is a voter with a clock that runs at its own speed.
type node struct {
	*Voter
	name  string
	rate  float64
	start time.Time
	store *slow
}

func newNode(name string, rate float64, to Store, seed uint64) *node {
	n := &node{name: name, rate: rate, start: time.Now(), store: &slow{to: to, rng: rand.New(rand.NewPCG(seed, 1)), max: 100 * time.Millisecond}}
	n.Voter = NewVoter(Options{Store: n.store, Self: name, Volume: "crm", Nodes: "alpha, beta", Identity: id.String, Lease: lease, Now: n.now,
		Random: func() uint64 { return 2 + n.store.rng.Uint64()/2 }, Trusted: func(uint64) error { return nil }, Made: func(uint64) error { return nil }, MayMake: func() bool { return false }})
	return n
}

// now is the node's clock.
func (n *node) now() time.Duration {
	return time.Duration(float64(time.Since(n.start)) * n.rate)
}

// after waits by the node's clock.
func (n *node) after(d time.Duration) { time.Sleep(time.Duration(float64(d) / n.rate)) }

func (n *node) say(t *testing.T, m protocol.Message) []protocol.Message {
	t.Helper()
	ctx, done := context.WithTimeout(t.Context(), lease/2)
	defer done()
	out, _ := n.Receive(ctx, m) // an error is no answer
	return out
}

func (n *node) hello(t *testing.T, role protocol.Role) []protocol.Message {
	return n.say(t, &protocol.Hello{Volume: id, Size: 4096, Role: role})
}

// ask asks for the vote, until it is given or refused.
func (n *node) ask(t *testing.T, force bool, current protocol.Generation, history ...protocol.Generation) (protocol.PromoteAnswer, uint64) {
	t.Helper()
	n.say(t, &protocol.Claim{Current: current, History: history})
	out := n.say(t, &protocol.PromoteAsk{ID: 1, Force: force})
	for range 1000 {
		term := uint64(0)
		for _, m := range out {
			switch m := m.(type) {
			case *protocol.Ballot:
				term = m.Term
			case *protocol.PromoteAnswer:
				return *m, term
			}
		}
		n.after(lease / 64) // more often than a link does: the sooner it sees a revision, the sooner it waits
		ctx, done := context.WithTimeout(t.Context(), lease/2)
		out, _ = n.Tick(ctx)
		done()
	}
	return protocol.PromoteAnswer{Text: "no answer"}, 0
}

// claim claims a term, and returns whether the vote is given.
func (n *node) claim(t *testing.T, term uint64, current protocol.Generation, history ...protocol.Generation) protocol.NoVote {
	t.Helper()
	for _, m := range n.say(t, &protocol.Claim{Term: term, Stamp: max(int64(n.now()), 1), Current: current, History: history}) {
		if a, ok := m.(*protocol.ClaimAnswer); ok {
			return a.No
		}
	}
	return protocol.NoFollow
}

// reign makes a node primary: the first one of a record if force.
func (n *node) reign(t *testing.T, force bool, current protocol.Generation, history ...protocol.Generation) (term uint64) {
	t.Helper()
	a, token := n.ask(t, force, current, history...)
	if !a.Yes {
		t.Fatalf("%s gets no leave: %s", n.name, a.Text)
	}
	term = token>>16<<16 + 1<<16 + 7
	n.say(t, &protocol.State{Role: protocol.Primary})
	if no := n.claim(t, term, current, history...); no != protocol.VoteYes {
		t.Fatalf("%s gets no vote: %v", n.name, no)
	}
	return term
}

func TestVotes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		alpha, beta := newNode("alpha", 1, m, 1), newNode("beta", 1, m, 2)
		for _, n := range []*node{alpha, beta} {
			out := n.hello(t, protocol.Secondary)
			if len(out) != 2 {
				t.Fatalf("answered with %v", out)
			}
			if h := out[1].(*protocol.Hello); h.Volume != id || h.Disk != protocol.Diskless || h.Role != protocol.Secondary {
				t.Errorf("hello %+v", h)
			}
		}
		if a, _ := alpha.ask(t, false, 10); a.Yes || !strings.Contains(a.Text, "no vote") {
			t.Errorf("without a record: %+v", a)
		}
		first := alpha.reign(t, true, 10)
		if no := alpha.claim(t, first, 11, 10); no != protocol.VoteYes {
			t.Errorf("a new generation: %v", no)
		}

		t.Log("beta has to wait, and lacks the data")
		if a, _ := beta.ask(t, false, 10); a.Yes || a.Code != protocol.CodeNotAllowed {
			t.Errorf("without the data: %+v", a)
		}
		var claims sync.WaitGroup
		claims.Go(func() {
			for range 8 {
				alpha.after(lease / 8)
				alpha.claim(t, first, 11, 10)
			}
		})
		if a, _ := beta.ask(t, false, 11, 10); a.Yes || a.Code != protocol.CodeTwoPrimaries {
			t.Errorf("beside a primary: %+v", a)
		}
		claims.Wait()
		second := beta.reign(t, false, 11, 10)
		if second <= first {
			t.Errorf("term %x after %x", second, first)
		}
		if no := alpha.claim(t, first, 11, 10); no != protocol.NoTerm {
			t.Errorf("an old token: %v", no)
		}

		t.Log("who is primary no more gives the vote back")
		beta.say(t, &protocol.State{Role: protocol.Secondary})
		alpha.say(t, &protocol.State{Role: protocol.Secondary})
		began := time.Now()
		if third := alpha.reign(t, false, 11, 10); third <= second || time.Since(began) > lease/2 {
			t.Errorf("term %x after %x, in %v", third, second, time.Since(began))
		}
	})
}

// TestOverruled: what was followed before an operator forced a promotion does not count
// against it, also if that was done without this vote; what is followed later does. Whoever
// was promoted before has the vote no more once it was given to such a candidate.
func TestOverruled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		alpha, beta := newNode("alpha", 1, m, 1), newNode("beta", 1, m, 2)
		alpha.hello(t, protocol.Secondary)
		first := alpha.reign(t, true, 11, 10)
		time.Sleep(2 * lease)

		over := protocol.ForcedOver(first)
		claim := &protocol.Claim{Term: protocol.NextTerm(over, 1), Stamp: 1, Current: 20, Overruled: first - 1, History: []protocol.Generation{10}}
		vote := func(want protocol.NoVote) {
			t.Helper()
			out := beta.say(t, claim)
			if len(out) != 1 || out[0].(*protocol.ClaimAnswer).No != want {
				t.Fatalf("claim %+v: %+v, not %v", claim, out[0], want)
			}
		}
		beta.hello(t, protocol.Primary)
		vote(protocol.NoBehind)
		claim.Overruled = over
		for range 8 { // alpha may still answer
			beta.say(t, claim)
			beta.after(lease / 4)
		}
		vote(protocol.VoteYes)

		t.Log("alpha is given the vote for what beta has, and goes on: that is not overruled")
		time.Sleep(2 * lease)
		second := alpha.reign(t, false, 21, 20, 10)
		time.Sleep(2 * lease)
		vote(protocol.NoBehind)
		if second <= claim.Term {
			t.Errorf("term %x after %x", second, claim.Term)
		}

		t.Log("beta has leave by force, and is lost: alpha's term is over")
		over = protocol.ForcedOver(second)
		beta.say(t, &protocol.State{Role: protocol.Secondary})
		beta.say(t, &protocol.Claim{Current: 20, Overruled: over, History: []protocol.Generation{10}})
		yes := false
		out := beta.say(t, &protocol.PromoteAsk{ID: 1, Force: true})
		for range 200 {
			for _, msg := range out {
				a, is := msg.(*protocol.PromoteAnswer)
				yes = yes || is && a.Yes
			}
			beta.after(lease / 64)
			out, _ = beta.Tick(t.Context())
		}
		time.Sleep(2 * lease)
		if no := alpha.claim(t, second, 21, 20, 10); !yes || no != protocol.NoTerm {
			t.Errorf("leave %v, the term before: %v", yes, no)
		}
	})
}

// TestSkewedClocks: at the moment at which a node gets the vote the one that had it, by its
// own clock, counts it no more; whatever the speed of both clocks within a fifth, however
// slow the way to the store, and whatever was under way when it was cut.
func TestSkewedClocks(t *testing.T) {
	for seed := range uint64(400) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 7))
			m := &memory{}
			rates := []float64{0.8, 1.2, 0.8 + 0.4*rng.Float64()}
			alpha, beta := newNode("alpha", rates[rng.IntN(3)], m, seed*2), newNode("beta", rates[rng.IntN(3)], m, seed*2+1)
			alpha.hello(t, protocol.Secondary)
			beta.hello(t, protocol.Secondary)
			term := alpha.reign(t, true, 10)
			var mu sync.Mutex
			votedAt, stop := alpha.now(), false
			serves := func() bool {
				mu.Lock()
				defer mu.Unlock()
				return alpha.now()-votedAt < lease/2
			}
			ended := make(chan struct{})
			go func() { // claims as a primary does
				defer close(ended)
				for {
					mu.Lock()
					over := stop
					mu.Unlock()
					if over {
						return
					}
					stamp := alpha.now()
					if alpha.claim(t, term, 10) == protocol.VoteYes {
						mu.Lock()
						votedAt = max(votedAt, stamp)
						mu.Unlock()
					}
					alpha.after(lease / 8)
				}
			}()
			time.Sleep(time.Duration(rng.Int64N(int64(2 * lease))))
			alpha.store.cut.Store(true)
			given := false
			for range 5 {
				if a, _ := beta.ask(t, false, 10); a.Yes {
					given = true
					break
				}
			}
			if !given {
				t.Errorf("seed %d: nobody has the vote any more", seed)
			}
			if given && serves() {
				t.Errorf("seed %d: both have the vote (clocks %.2f and %.2f)", seed, alpha.rate, beta.rate)
			}
			mu.Lock()
			stop = true
			mu.Unlock()
			<-ended
		})
	}
}

// TestForeign: another cluster's record is refused before anything is answered.
func TestForeign(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		other := newNode("gamma", 1, m, 1)
		_, _ = other.Receive(t.Context(), &protocol.Hello{Volume: protocol.VolumeID{9}})
		other.reign(t, true, 5)
		alpha := newNode("alpha", 1, m, 2)
		out, err := alpha.Receive(t.Context(), &protocol.Hello{Volume: id})
		if !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "another cluster") || !strings.Contains(err.Error(), "prefix") || len(out) > 0 {
			t.Errorf("%v, %v", out, err)
		}
		if _, err := newNode("alpha", 1, m, 2).Receive(t.Context(), &protocol.Hello{}); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "prefix") {
			t.Errorf("a new volume: %v", err)
		}
		beta := newNode("beta", 1, &memory{rec: Record{ID: 7, Volume: id.String()}, rev: 3}, 3)
		beta.o.Trusted = func(uint64) error { return ErrForeign }
		if out, err := beta.Receive(t.Context(), &protocol.Hello{Volume: id}); !errors.Is(err, ErrForeign) || len(out) > 0 {
			t.Errorf("untrusted: %v, %v", out, err)
		}
	})
}

// TestMadeAnew: a record that is gone is made again only when all follow the primary.
func TestMadeAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		alpha := newNode("alpha", 1, m, 1)
		alpha.hello(t, protocol.Primary)
		if no := alpha.claim(t, 5<<16, 10); no != protocol.NoFollow || m.rev != 0 {
			t.Errorf("%v at revision %d", no, m.rev)
		}
		may := false
		alpha.o.MayMake = func() bool { return may }
		var made []uint64
		alpha.o.Made = func(id uint64) error { made = append(made, id); return nil }
		may = true
		if no := alpha.claim(t, 5<<16, 10); no != protocol.VoteYes || !slices.Equal(made, []uint64{m.rec.ID}) {
			t.Errorf("%v, made %v, is %v", no, made, m.rec.ID)
		}
		alpha.o.Made = func(uint64) error { return errors.New("disk full") }
		*m = memory{}
		if out, err := alpha.Receive(t.Context(), &protocol.Hello{Volume: id, Role: protocol.Primary}); err != nil || len(out) != 2 {
			t.Errorf("%v, %v", out, err)
		}
		if _, err := alpha.Receive(t.Context(), &protocol.Claim{Term: 5 << 16, Stamp: 1, Current: 10}); err == nil || m.rev != 0 {
			t.Errorf("%v at revision %d", err, m.rev)
		}
	})
}

// TestNewVolume: the record of a volume without data takes its identity when it has one.
func TestNewVolume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		alpha, beta := newNode("alpha", 1, m, 1), newNode("beta", 1, m, 2)
		for _, n := range []*node{alpha, beta} {
			if _, err := n.Receive(t.Context(), &protocol.Hello{}); err != nil {
				t.Fatal(err)
			}
		}
		alpha.reign(t, true, 10)
		if m.rec.Volume != id.String() {
			t.Errorf("the record is %+v", m.rec)
		}
		if _, err := beta.Tick(t.Context()); !errors.Is(err, ErrForeign) {
			t.Errorf("without data: %v", err)
		}
		if _, err := newNode("beta", 1, m, 3).Receive(t.Context(), &protocol.Hello{Volume: id}); err != nil {
			t.Errorf("with data: %v", err)
		}
	})
}

// TestLeft: a node that had left in order is back.
func TestLeft(t *testing.T) {
	n := newNode("alpha", 1, &memory{}, 1)
	out, err := n.Receive(t.Context(), &protocol.Ballot{Rules: "r", Left: true})
	if _, ok := out[0].(*protocol.Readmit); err != nil || !ok {
		t.Errorf("%v, %v", out, err)
	}
}

// TestLink: frames there and back, and an end for each way of ending.
func TestLink(t *testing.T) {
	n := newNode("alpha", 1, &memory{}, 1)
	n.store.max = 0
	seen := make(chan uint64, 100)
	l := NewLink(t.Context(), n.Voter, func(id uint64) { seen <- id })
	frames := protocol.AppendFrame(nil, &protocol.Ballot{Rules: "majority"}, nil)
	frames = protocol.AppendFrame(frames, &protocol.Hello{Volume: id, Size: 4096, Role: protocol.Secondary, Disk: protocol.UpToDate, Mode: protocol.ModeC}, nil)
	if _, err := l.Write.Write(frames); err != nil {
		t.Fatal(err)
	}
	var dec protocol.Decoder
	head, body := make([]byte, protocol.HeaderLen), make([]byte, protocol.BodyMax)
	msg, err := next(l.Write, &dec, head, body)
	if b, ok := msg.(*protocol.Ballot); err != nil || !ok || b.Rules != "majority" || !b.Witness {
		t.Errorf("%+v, %v", msg, err)
	}
	if msg, err = next(l.Write, &dec, head, body); err != nil || msg.Type() != protocol.TypeHello {
		t.Errorf("%+v, %v", msg, err)
	}
	if id := <-seen; id != 1 {
		t.Errorf("seen %d", id)
	}
	_, _ = l.Write.Write([]byte("nonsense, which is no frame at all")) // it need not take all of it
	if err := l.Wait(); err == nil {
		t.Error("nonsense does not end the link")
	}
	l = NewLink(t.Context(), newNode("alpha", 1, &memory{}, 1).Voter, func(uint64) {})
	l.Bulk.Abort()
	if err := l.Close(); err == nil {
		t.Error("closed without a reason")
	}
}
