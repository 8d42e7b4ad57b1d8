package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"time"

	"github.com/qrbd/qrbd/tests/stack/crm"
	"github.com/qrbd/qrbd/tests/stack/database"
	"github.com/qrbd/qrbd/tests/stack/process"
)

// host is what runs on the primary: the mounted volume and the database on it.
type host struct {
	disk *attached
	db   *database.Server
}

// processes returns what dies with the host, beside the agent.
func (h *host) processes() []*process.Process {
	if h == nil || h.db == nil {
		return nil
	}
	return h.db.Processes()
}

// databaseStory is the whole story. The report is never nil.
func databaseStory(ctx context.Context, o options, say *narrator) (*report, error) {
	s := &databaseStage{stage: stage{options: o, say: say, report: &report{
		title: fmt.Sprintf("A CRM on %v lost its host, and what became of it", o.kind.Title())}}}
	defer s.cleanup()
	for _, act := range []func(context.Context) error{
		s.pair, s.fill, s.loseHost, s.takeOver, s.checkSurvivor, s.comeBack, s.closeInOrder, s.compareStores,
	} {
		if err := act(ctx); err != nil {
			return s.report, err
		}
	}
	return s.report, nil
}

type databaseStage struct {
	stage
	host *host // of the primary; nil between death and take-over
	crm  *crm.CRM
	book *crm.Book
	load *crm.Load
	// running ends when the load under way has ended; nil: none. Its goroutine is
	// ended by stopLoad, or by the death of the database under it.
	running  chan error
	stopLoad context.CancelFunc

	died time.Time // when alpha was killed
}

// fill makes file system, database and CRM on alpha.
func (s *databaseStage) fill(ctx context.Context) error {
	err := s.say.step(ctx, "alpha: qrbd attach, and ext4 on the device", func(ctx context.Context) (string, error) {
		disk, err := s.alpha.attach(ctx, filepath.Join(s.dir, "alpha-mount"))
		if err != nil {
			return "", err
		}
		s.host = &host{disk: disk}
		if err := disk.fs.Format(ctx); err != nil {
			return "", err
		}
		return fmt.Sprintf("%s on %s", disk.fs.Dir(), disk.device), disk.fs.Mount(ctx)
	})
	if err != nil {
		return err
	}
	err = s.say.step(ctx, fmt.Sprintf("alpha: %v makes its data directory there and starts", s.kind.Title()), func(ctx context.Context) (string, error) {
		if err := s.newServer("alpha"); err != nil {
			return "", err
		}
		if err := s.host.db.Init(ctx); err != nil {
			return "", err
		}
		if err := s.host.db.Start(ctx); err != nil {
			return "", err
		}
		return "", s.host.db.CreateDatabase(ctx)
	})
	if err != nil {
		return err
	}
	return s.say.step(ctx, "alpha: customers, contacts, opportunities, activities, orders", func(ctx context.Context) (string, error) {
		if err := s.openCRM(); err != nil {
			return "", err
		}
		rows, err := s.crm.Create(ctx)
		return count(rows) + " rows", err
	})
}

// newServer describes the database on the mounted volume of a node.
func (s *databaseStage) newServer(node string) (err error) {
	s.host.db, err = database.New(s.kind, s.host.disk.fs.Dir(), filepath.Join(s.dir, node+"-run"))
	return err
}

// openCRM opens the CRM of the running database, and closes the one before.
func (s *databaseStage) openCRM() (err error) {
	if s.crm != nil {
		_ = s.crm.Close() // its server may be dead
	}
	s.crm, err = crm.Open(s.host.db)
	return err
}

// startLoad lets the clients work until endLoad or the first error.
func (s *databaseStage) startLoad(ctx context.Context) {
	ctx, s.stopLoad = context.WithCancel(ctx)
	running, c := make(chan error, 1), s.crm
	go func() { running <- s.load.Run(ctx, c) }()
	s.running = running
}

// endLoad stops the load and waits for its end.
func (s *databaseStage) endLoad() error {
	if s.running == nil {
		return nil
	}
	s.stopLoad()
	err := <-s.running
	s.running = nil
	return err
}

func (s *databaseStage) progress() string {
	return fmt.Sprintf("%s commits acknowledged, %s customers' pages read", count(s.load.Commits()), count(s.load.Reads()))
}

// loseHost runs the load and kills alpha in the middle of it.
func (s *databaseStage) loseHost(ctx context.Context) error {
	var err error
	if s.book, err = crm.NewBook(filepath.Join(s.dir, "receipts")); err != nil {
		return err
	}
	s.load = crm.NewLoad(s.clients, s.book)
	s.say.line("%d clients work; every acknowledged commit is noted outside the volume", s.clients)
	s.startLoad(ctx)
	until := s.options.load*2/3 + time.Duration(rand.Int64N(int64(s.options.load/3)+1))
	if err := s.say.wait(ctx, until, s.running, s.progress); err != nil {
		return err
	}
	s.died = time.Now()
	process.Kill(append(s.host.processes(), s.alpha.agent)...)
	s.host.disk.kill()
	s.say.line("alpha dies: agent, %v and mount at once, by SIGKILL", s.kind.Title())
	if err := <-s.running; err == nil {
		return fmt.Errorf("the clients did not notice that their database was killed")
	}
	s.running = nil
	s.say.line("    %s commits were acknowledged by then; %d more were under way", count(s.book.Len()), s.load.Attempts()-int64(s.book.Len()))
	dead := s.host
	s.host = nil
	return dead.disk.crash(ctx)
}

// takeOver brings the CRM up on beta, to its first commit.
func (s *databaseStage) takeOver(ctx context.Context) error {
	err := s.say.step(ctx, "beta: promote --peer-fenced", func(ctx context.Context) (string, error) {
		return s.vouch(ctx, s.died)
	})
	if err != nil {
		return err
	}
	err = s.say.step(ctx, "beta: qrbd attach, mount; ext4 replays its journal", func(ctx context.Context) (string, error) {
		disk, err := s.beta.attach(ctx, filepath.Join(s.dir, "beta-mount"))
		if err != nil {
			return "", err
		}
		s.host = &host{disk: disk}
		replay, err := disk.fs.NeedsReplay(ctx)
		if err != nil {
			return "", err
		}
		s.report.claim(replay, "journal", "had to be replayed on beta: %t", replay)
		return "", disk.fs.Mount(ctx)
	})
	if err != nil {
		return err
	}
	return s.say.step(ctx, fmt.Sprintf("beta: %v recovers", s.kind.Title()), func(ctx context.Context) (string, error) {
		if err := s.newServer("beta"); err != nil {
			return "", err
		}
		if err := s.host.db.Start(ctx); err != nil {
			return "", err
		}
		if err := s.openCRM(); err != nil {
			return "", err
		}
		if err := s.load.Once(s.crm); err != nil {
			return "", err
		}
		serving := time.Since(s.died)
		s.report.add("death to serving", "%s, until the first commit on beta", seconds(serving))
		return fmt.Sprintf("first commit %s after the death", seconds(serving)), nil
	})
}

// checkSurvivor looks up every receipt, and has the database check itself.
func (s *databaseStage) checkSurvivor(ctx context.Context) error {
	if err := s.audit(ctx, "after the death"); err != nil {
		return err
	}
	return s.say.step(ctx, "beta: the database checks its structure", func(ctx context.Context) (string, error) {
		text, err := s.host.db.CheckOnline(ctx)
		if err == nil {
			s.report.add("database", "%s", text)
		}
		return text, err
	})
}

// audit compares the database with the receipts and claims that nothing is lost.
func (s *databaseStage) audit(ctx context.Context, when string) error {
	return s.say.step(ctx, "look up every acknowledged commit", func(ctx context.Context) (string, error) {
		receipts, err := s.book.Receipts()
		if err != nil {
			return "", err
		}
		a, err := s.crm.Audit(ctx, receipts)
		if err != nil {
			return "", err
		}
		s.report.claim(a.Good() && a.Found == a.Acknowledged && a.Found > 0, "commits, "+when,
			"%s acknowledged, %s found, %d lost, %d wrong, %d totals broken",
			count(a.Acknowledged), count(a.Found), a.Lost, a.Wrong, a.Broken)
		for _, f := range a.Faults {
			s.report.fail("%s", f)
		}
		return fmt.Sprintf("%s acknowledged, %s found, %d lost; of those without an answer %d are there", count(a.Acknowledged),
			count(a.Found), a.Lost+a.Wrong+a.Broken, a.Unreceipted), nil
	})
}

// comeBack lets the load go on against beta, and alpha return into it.
func (s *databaseStage) comeBack(ctx context.Context) error {
	s.say.line("the load goes on against beta, alone")
	s.startLoad(ctx)
	if err := s.say.wait(ctx, s.after, s.running, s.progress); err != nil {
		return err
	}
	if err := s.rejoin(ctx); err != nil {
		return err
	}
	if err := s.say.wait(ctx, s.after, s.running, s.progress); err != nil {
		return err
	}
	if err := s.endLoad(); err != nil {
		return fmt.Errorf("the load on beta: %w", err)
	}
	return s.audit(ctx, "at the end")
}

// closeInOrder stops the database, checks its pages and the file system, and takes
// the mount down, so that both replicas have all.
func (s *databaseStage) closeInOrder(ctx context.Context) error {
	err := s.say.step(ctx, fmt.Sprintf("beta: stop %v and check every page of its files", s.kind.Title()), func(ctx context.Context) (string, error) {
		_ = s.crm.Close() // only idle connections are left
		if err := s.host.db.Stop(); err != nil {
			return "", err
		}
		text, err := s.host.db.CheckOffline(ctx)
		if err == nil {
			s.report.add("", "%s", text)
		}
		return text, err
	})
	if err != nil {
		return err
	}
	return s.say.step(ctx, "beta: unmount, e2fsck -fn", func(ctx context.Context) (string, error) {
		disk := s.host.disk
		if err := disk.fs.Unmount(ctx); err != nil {
			return "", err
		}
		text, err := disk.fs.Check(ctx)
		if err != nil {
			return "", err
		}
		s.report.add("file system", "e2fsck -fn: clean, %s", text)
		if err := disk.close(ctx); err != nil {
			return "", err
		}
		s.host = nil
		return text, nil
	})
}

// cleanup takes down whatever is up, in an order that works at any point of the
// story and with any part of it dead.
func (s *databaseStage) cleanup() {
	if s.host != nil && s.host.db != nil {
		s.host.db.Abandon()
	}
	process.Kill(s.host.processes()...) // a load under way ends with its database
	if s.running != nil {
		s.stopLoad()
		<-s.running
	}
	if s.crm != nil {
		_ = s.crm.Close() // what counts is on the disk already
	}
	if s.book != nil {
		_ = s.book.Close() // likewise
	}
	if s.host != nil {
		if err := s.host.disk.crash(context.Background()); err != nil {
			s.say.line("clean-up: %v", err)
		}
	}
	s.stage.cleanup()
}
