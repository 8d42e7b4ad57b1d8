package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/nbd/client"
	"github.com/qrbd/qrbd/tests/cluster/ledger"
	"github.com/qrbd/qrbd/tests/stack/process"
)

// regionMax is the part of the volume that the block story writes to, so that
// "resyncs only what changed" can be told from "resyncs everything".
const regionMax = 256 << 20

// blockStory is the story without what takes root: no file system, no database;
// an NBD client writes sectors that say who they are. The report is never nil.
func blockStory(ctx context.Context, o options, say *narrator) (*report, error) {
	s := &blockStage{stage: stage{options: o, say: say, report: &report{
		title: "A volume lost its host, and what became of it"}}}
	defer s.cleanup()
	say.line("on the bare block device: a file system and a database on it take root, and are left out")
	s.report.add("left out", "mount, journal replay, database and its checks: they take root")
	for _, act := range []func(context.Context) error{s.pair, s.loseHost, s.takeOver, s.comeBack, s.compareStores} {
		if err := act(ctx); err != nil {
			return s.report, err
		}
	}
	return s.report, nil
}

type blockStage struct {
	stage
	notes *ledger.Ledger
	died  time.Time // when alpha was killed
}

// work runs the clients on a node's export until ctx ends or a request fails.
func (s *blockStage) work(ctx context.Context, d disk) error {
	load := ledger.Load{Ledger: s.notes, Workers: s.clients, Pause: time.Millisecond, Seed: rand.Uint64()}
	_, err := load.Run(ctx, d)
	return err
}

// start runs work in a goroutine that ends by stop, or with the export.
func (s *blockStage) start(ctx context.Context, d disk) (running chan error, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	running = make(chan error, 1)
	go func() { running <- s.work(ctx, d) }()
	return running, cancel
}

func (s *blockStage) progress() string {
	_, acked, flushes := s.notes.Writes()
	return fmt.Sprintf("%s writes and %s flushes acknowledged", count(acked), count(flushes))
}

// loseHost writes to alpha and kills it in the middle.
func (s *blockStage) loseHost(ctx context.Context) error {
	s.notes = ledger.New(0, min(regionMax, s.sizeMiB<<20))
	d, err := dial(ctx, s.alpha)
	if err != nil {
		return err
	}
	defer d.close()
	s.say.line("%d clients write to alpha; every acknowledged write is noted outside the volume", s.clients)
	running, stop := s.start(ctx, d)
	defer stop()
	until := s.load*2/3 + time.Duration(rand.Int64N(int64(s.load/3)+1))
	if err := s.say.wait(ctx, until, running, s.progress); err != nil {
		return err
	}
	s.died = time.Now()
	process.Kill(s.alpha.agent)
	s.say.line("alpha dies, by SIGKILL: %s by then", s.progress())
	if err := <-running; err == nil {
		return fmt.Errorf("the clients did not notice that their server was killed")
	}
	return nil
}

// takeOver promotes beta, and reads everything that was ever written.
func (s *blockStage) takeOver(ctx context.Context) error {
	err := s.say.step(ctx, "beta: promote --peer-fenced", func(ctx context.Context) (string, error) {
		text, err := s.vouch(ctx, s.died)
		if err != nil {
			return "", err
		}
		d, err := dial(ctx, s.beta)
		if err != nil {
			return "", err
		}
		defer d.close()
		if err := d.ReadAt(make([]byte, 4096), 0); err != nil {
			return "", err
		}
		serving := time.Since(s.died)
		s.report.add("death to serving", "%s, until the first read from beta", seconds(serving))
		return text, nil
	})
	if err != nil {
		return err
	}
	return s.judge(ctx, "after the death")
}

// judge looks at every sector of the region on beta and claims that each holds the
// newest acknowledged write, or a later one.
func (s *blockStage) judge(ctx context.Context, when string) error {
	return s.say.step(ctx, "look up every acknowledged write", func(ctx context.Context) (string, error) {
		d, err := dial(ctx, s.beta)
		if err != nil {
			return "", err
		}
		defer d.close()
		v, err := s.notes.Judge(d, ledger.Acked)
		if err != nil {
			return "", err
		}
		_, acked, _ := s.notes.Writes()
		s.report.claim(v.Bad == 0 && acked > 0, "writes, "+when, "%s acknowledged; %s sectors looked at, %d lost, torn or stale",
			count(acked), count(v.Sectors), v.Bad)
		for _, f := range v.Faults {
			s.report.fail("byte %d: %s", f.Off, f.Text)
		}
		// What was under way is settled now, one way or the other.
		return fmt.Sprintf("%s sectors, %d lost, torn or stale", count(v.Sectors), v.Bad), s.notes.Rebase(d)
	})
}

// comeBack lets the clients go on against beta, and alpha return meanwhile.
func (s *blockStage) comeBack(ctx context.Context) error {
	s.say.line("the clients go on against beta, alone")
	d, err := dial(ctx, s.beta)
	if err != nil {
		return err
	}
	defer d.close()
	running, stop := s.start(ctx, d)
	defer stop()
	if err := s.say.wait(ctx, s.after, running, s.progress); err != nil {
		return err
	}
	if err := s.rejoin(ctx); err != nil {
		return err
	}
	if err := s.say.wait(ctx, s.after, running, s.progress); err != nil {
		return err
	}
	stop()
	if err := <-running; err != nil {
		return fmt.Errorf("the clients on beta: %w", err)
	}
	if err := d.Flush(); err != nil {
		return err
	}
	return s.judge(ctx, "at the end")
}

// disk is a connection to an export, as ledger.Load drives it.
type disk struct{ c *client.Client }

func dial(ctx context.Context, n *node) (disk, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	c, err := client.Dial(ctx, "unix:"+n.socket(), volumeName, client.Options{})
	if err != nil {
		return disk{}, fmt.Errorf("%s: %w", n.name, err)
	}
	return disk{c}, nil
}

func (d disk) ReadAt(p []byte, off int64) error { return d.c.ReadAt(p, off) }
func (d disk) Zero(off, n int64) error          { return d.c.Zero(off, n, 0) }
func (d disk) Trim(off, n int64) error          { return d.c.Trim(off, n, 0) }
func (d disk) Flush() error                     { return d.c.Flush() }

func (d disk) WriteAt(p []byte, off int64, fua bool) error {
	var flags blockdev.Flags
	if fua {
		flags = blockdev.FUA
	}
	return d.c.WriteAt(p, off, flags)
}

func (d disk) close() { _ = d.c.Close() } // nothing is under way that counts
