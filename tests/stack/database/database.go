package database

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qrbd/qrbd/tests/stack/process"
)

// Kind is a make of database server.
type Kind uint8

// Kinds.
const (
	Postgres Kind = iota
	MariaDB
)

// String returns the word used on the command line.
func (k Kind) String() string {
	switch k {
	case Postgres:
		return "postgres"
	case MariaDB:
		return "mariadb"
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// Title returns the name as its makers write it.
func (k Kind) Title() string {
	switch k {
	case Postgres:
		return "PostgreSQL"
	case MariaDB:
		return "MariaDB"
	}
	return k.String()
}

// ParseKind is the inverse of String.
func ParseKind(s string) (Kind, error) {
	for _, k := range []Kind{Postgres, MariaDB} {
		if k.String() == s {
			return k, nil
		}
	}
	return 0, fmt.Errorf("database %q: want postgres or mariadb", s)
}

// Name is the database that CreateDatabase makes and Open opens.
const Name = "crm"

// Server is one installation of a database on a data directory. It is not safe
// for concurrent use, except that Open's result is.
type Server struct {
	kind    Kind
	make    maker
	data    string
	run     string
	user    *process.User // nil: the caller's
	running *process.Process
}

// maker is what differs between the makes of servers.
type maker interface {
	// owner is the distribution's user for the server.
	owner() string
	// initialise returns the command that fills an empty data directory.
	initialise(s *Server) []string
	// serve returns the command that runs the server in the foreground.
	serve(s *Server) []string
	// open returns a pool of connections to a database; "": the one that every
	// installation has.
	open(s *Server, db string) (*sql.DB, error)
	// stopSignals: finish orderly, and end at once without loss of resources.
	stopSignals() (orderly, quick syscall.Signal)
	// checkOnline and checkOffline verify structure and checksums.
	checkOnline(ctx context.Context, s *Server) (string, error)
	checkOffline(ctx context.Context, s *Server) (string, error)
}

// New describes a server of the given kind whose files are below data, an existing
// directory, and whose socket and log are in run, which is made if missing.
func New(kind Kind, data, run string) (*Server, error) {
	s := &Server{kind: kind, data: filepath.Join(data, kind.String()), run: run}
	switch kind {
	case Postgres:
		bin, err := postgresBin()
		if err != nil {
			return nil, err
		}
		s.make = postgres{bin: bin}
	case MariaDB:
		s.make = mariadb{}
	default:
		return nil, fmt.Errorf("no such database: %v", kind)
	}
	if err := s.identify(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(run, 0o755); err != nil {
		return nil, fmt.Errorf("run directory of %v: %w", kind, err)
	}
	return s, s.own(run)
}

// identify finds the user to run as.
func (s *Server) identify() error {
	if os.Getuid() != 0 {
		return nil
	}
	name := s.make.owner()
	u, err := user.Lookup(name)
	if err != nil {
		return fmt.Errorf("user to run %v as: %w", s.kind, err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return fmt.Errorf("user id of %s: %w", name, err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return fmt.Errorf("group id of %s: %w", name, err)
	}
	s.user = &process.User{UID: uint32(uid), GID: uint32(gid)}
	return nil
}

// own gives a directory to the server's user.
func (s *Server) own(dir string) error {
	if s.user == nil {
		return nil
	}
	if err := os.Chown(dir, int(s.user.UID), int(s.user.GID)); err != nil {
		return fmt.Errorf("give the directory to the database: %w", err)
	}
	return nil
}

// Init makes a new, empty installation in the data directory, on stable storage
// when it returns: MariaDB's installer leaves its system tables to the page cache,
// and a host that dies within half a minute would lose them.
func (s *Server) Init(ctx context.Context) error {
	if err := os.Mkdir(s.data, 0o700); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if err := s.own(s.data); err != nil {
		return err
	}
	if _, err := s.command(ctx, s.make.initialise(s)...); err != nil {
		return err
	}
	return syncFS(s.data)
}

// syncFS writes the whole file system that holds dir to stable storage.
func syncFS(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync the installation: %w", err)
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("sync the installation in %s: %w", dir, err)
	}
	return nil
}

// startMax bounds the time from start to the first answer. Recovery counts: it
// replays what was written since the last checkpoint, tens of MiB here.
const startMax = 60 * time.Second

// Start starts the server and waits until it answers a query.
func (s *Server) Start(ctx context.Context) error {
	p, err := process.Start(process.Options{
		Args: s.make.serve(s), Dir: s.run, Env: s.environment(),
		Log: filepath.Join(s.run, "server.log"), User: s.user,
	})
	if err != nil {
		return err
	}
	s.running = p
	db, err := s.open("")
	if err != nil {
		return err
	}
	defer db.Close()
	ctx, cancel := context.WithTimeout(ctx, startMax)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := db.PingContext(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.Ended():
			return p.Err()
		case <-ctx.Done():
			return fmt.Errorf("%v does not answer: %w (%w)", s.kind, ctx.Err(), err)
		}
	}
}

// Stop ends the server in order: nothing is left to recover.
func (s *Server) Stop() error {
	if s.running == nil {
		return nil
	}
	orderly, _ := s.make.stopSignals()
	err := s.running.Stop(orderly, 60*time.Second)
	s.running = nil
	return err
}

// Abandon ends the server as fast as it can without leaving anything behind on the
// host, and by SIGKILL if that takes over 3 s. Its data needs recovery afterwards.
func (s *Server) Abandon() {
	if s.running == nil {
		return
	}
	_, quick := s.make.stopSignals()
	_ = s.running.Stop(quick, 3*time.Second) // Stop kills what does not obey
	s.running = nil
}

// Processes returns what a death of the host takes along.
func (s *Server) Processes() []*process.Process { return []*process.Process{s.running} }

// Kind returns the make of the server.
func (s *Server) Kind() Kind { return s.kind }

// CreateDatabase makes the database Name.
func (s *Server) CreateDatabase(ctx context.Context) error {
	db, err := s.open("")
	if err != nil {
		return err
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, "CREATE DATABASE "+Name); err != nil {
		return fmt.Errorf("create the database: %w", err)
	}
	return nil
}

// Open returns a pool of connections to the database Name. The caller closes it.
func (s *Server) Open() (*sql.DB, error) { return s.open(Name) }

func (s *Server) open(name string) (*sql.DB, error) {
	db, err := s.make.open(s, name)
	if err != nil {
		return nil, fmt.Errorf("open %v: %w", s.kind, err)
	}
	return db, nil
}

// CheckOnline verifies tables and indexes through the running server and returns
// what was done in a few words.
func (s *Server) CheckOnline(ctx context.Context) (string, error) {
	return s.make.checkOnline(ctx, s)
}

// CheckOffline verifies the checksum of every page. REQUIRES: stopped in order.
func (s *Server) CheckOffline(ctx context.Context) (string, error) {
	return s.make.checkOffline(ctx, s)
}

// environment keeps a server's messages and sorting free of the caller's locale,
// and its temporary files out of a directory that may be the caller's alone.
func (s *Server) environment() []string { return []string{"LC_ALL=C", "TMPDIR=" + s.run} }

// command runs a tool as the server's user.
func (s *Server) command(ctx context.Context, args ...string) (string, error) {
	return process.Run(ctx, process.Options{Args: args, Dir: s.run, Env: s.environment(), User: s.user})
}
