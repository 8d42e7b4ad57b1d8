package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/qrbd/qrbd/agent/arbiter"
	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
)

// arbiterRetry is between two attempts to link a volume to its vote in etcd.
const arbiterRetry = 500 * time.Millisecond

// arbitrate keeps the volume linked to its vote in etcd, if it has one, until ctx ends.
func (f *service) arbitrate(ctx context.Context) {
	settings := f.s.live().Etcd // a change needs a restart, as that of a peer does
	if settings == nil {
		return
	}
	log := f.a.log.With("volume", f.s.cfg.Name, "endpoints", strings.Join(settings.Endpoints, " "))
	store, err := arbiter.OpenEtcd(settings, f.s.cfg.Name)
	if err != nil {
		log.Error("the vote in etcd is not used", "err", err)
		return
	}
	defer store.Close()
	told := ""
	for ctx.Err() == nil {
		err := f.linkVote(ctx, store)
		f.sawVote(0)
		if vol, closed := f.s.opened(); closed == nil && err != nil && ctx.Err() == nil {
			if text := err.Error(); text != told {
				log.Warn("the vote in etcd is not to be had", "err", err)
				told = text
			}
			vol.PeerUnreachable(config.EtcdName, err)
		}
		select {
		case <-time.After(arbiterRetry):
		case <-ctx.Done():
		}
	}
}

// linkVote makes one link, and returns why it has ended.
func (f *service) linkVote(ctx context.Context, store arbiter.Store) error {
	vol, err := f.s.opened()
	if err != nil {
		return err
	}
	look, done := context.WithTimeout(ctx, f.a.cfg.Node.PeerTimeout)
	_, _, err = store.Load(look) // a volume is not linked to what does not answer
	done()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.mu.Lock()
	f.relink = cancel
	f.mu.Unlock()
	began := time.Now()
	link := arbiter.NewLink(ctx, arbiter.NewVoter(arbiter.Options{
		Store: store, Self: f.a.cfg.Node.Name, Volume: f.s.cfg.Name, Nodes: f.dataNodes(), Identity: func() string { return vol.Status().ID }, Lease: f.a.cfg.Node.PeerTimeout,
		Now: func() time.Duration { return time.Since(began) }, Random: func() uint64 { return max(random(), 2) },
		Trusted: f.trusted, Made: f.trust, MayMake: f.mayMakeVote,
	}), f.sawVote)
	if err := vol.AttachPeer(config.EtcdName, volume.Conn{Write: link.Write, Bulk: link.Bulk, RTT: func() time.Duration { return 0 }}); err != nil {
		return errors.Join(err, link.Close())
	}
	stop := context.AfterFunc(ctx, func() { _ = link.Close() }) // why is what Wait says
	defer stop()
	return link.Wait()
}

func (f *service) dataNodes() string {
	names := []string{f.a.cfg.Node.Name}
	for _, p := range f.s.live().Peers {
		if !p.Witness {
			names = append(names, p.Name)
		}
	}
	return strings.Join(names, ", ")
}

// sawVote notes which record is seen, and tells the others.
func (f *service) sawVote(id uint64) {
	if f.vote.Swap(id) != id {
		f.tellPeers("")
	}
}

// trust makes durable which record is the volume's.
func (f *service) trust(id uint64) error {
	return f.save(func(file *failoverFile) { file.Vote = id })
}

// trusted reports whether a record is the volume's: this node knows it, or another one
// that is connected has confirmed it. Two nodes with two etcd's trust neither's.
func (f *service) trusted(id uint64) error {
	f.fileMu.Lock()
	known := f.file.Vote
	f.fileMu.Unlock()
	leader := f.View().Leader
	confirmed := false
	f.mu.Lock()
	for peer, m := range f.heard {
		switch {
		case m.Vote == id:
			confirmed = confirmed || known == 0 || peer == leader
		case m.Vote > 1:
			f.mu.Unlock()
			return fmt.Errorf("%w: %s keeps the vote of %s in another etcd, or under another key: make [volume.failover.etcd] the same on every node", arbiter.ErrForeign, peer, f.s.cfg.Name)
		}
	}
	f.mu.Unlock()
	switch {
	case known == id:
		return nil
	case confirmed:
		return f.trust(id)
	case known != 0:
		return fmt.Errorf("%w: this etcd is not the one that %s has used, or was made anew: it counts again when the primary is connected and uses it too", arbiter.ErrForeign, f.s.cfg.Name)
	}
	return fmt.Errorf("%w: no other node has confirmed yet that it uses the same etcd", arbiter.ErrForeign)
}

// mayMakeVote reports whether a record that is missing may be made anew: this node is
// primary, all others follow it, and find none either.
func (f *service) mayMakeVote() bool {
	vol, err := f.s.opened()
	if err != nil {
		return false
	}
	st := vol.Status()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range st.Peers {
		if p.Name == config.EtcdName {
			continue
		}
		if p.Connection != protocol.Connected.String() || p.Replication != protocol.Established.String() || f.heard[p.Name].Vote != 1 {
			return false
		}
	}
	return st.Role == protocol.Primary.String()
}

// voteHeard ends a link to a vote that turns out to be another one than a peer's.
func (f *service) voteHeard(m protocol.Failover) {
	if mine := f.vote.Load(); m.Vote <= 1 || mine <= 1 || m.Vote == mine {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.relink != nil {
		f.relink()
	}
}
