package database

import (
	"context"
	"database/sql"
	"fmt"
	"net"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib" // also the driver "pgx"
)

type postgres struct {
	bin string // directory of initdb, postgres and the tools
}

// postgresBin returns the programs' directory of the newest PostgreSQL that the
// distribution has installed. Debian keeps them out of PATH, one directory for
// each major version.
func postgresBin() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil || len(found) == 0 {
		return "", fmt.Errorf("PostgreSQL is not installed: no /usr/lib/postgresql/*/bin/postgres (package postgresql)")
	}
	version := func(path string) int {
		n, _ := strconv.Atoi(strings.Split(path, "/")[4]) // 0 for a strange name: sorted first
		return n
	}
	sort.Slice(found, func(i, j int) bool { return version(found[i]) < version(found[j]) })
	return filepath.Dir(found[len(found)-1]), nil
}

func (postgres) owner() string { return "postgres" }

func (p postgres) tool(name string) string { return filepath.Join(p.bin, name) }

func (p postgres) initialise(s *Server) []string {
	return []string{p.tool("initdb"), "--pgdata", s.data, "--username", "postgres", "--auth", "trust",
		"--encoding", "UTF8", "--locale", "C", "--data-checksums"}
}

// The smallest checkpoint_timeout makes checkpoints fall into a load of half a
// minute, so that a crash meets a data directory in motion.
func (p postgres) serve(s *Server) []string {
	return []string{p.tool("postgres"), "-D", s.data,
		"-c", "listen_addresses=", "-c", "unix_socket_directories=" + s.run,
		"-c", "dynamic_shared_memory_type=mmap", // a killed server leaves none in /dev/shm
		"-c", "checkpoint_timeout=30s", "-c", "restart_after_crash=off"}
}

func (postgres) open(s *Server, db string) (*sql.DB, error) {
	if db == "" {
		db = "postgres"
	}
	return sql.Open("pgx", fmt.Sprintf("host=%s user=postgres dbname=%s", s.run, db))
}

// Remote returns a pool of connections to a database of a PostgreSQL that runs on another
// host, made by dial; "": the one that every installation has. The caller closes it.
func Remote(host, db string, dial func(ctx context.Context, network, address string) (net.Conn, error)) (*sql.DB, error) {
	if db == "" {
		db = "postgres"
	}
	c, err := pgx.ParseConfig(fmt.Sprintf("host=%s port=5432 user=postgres sslmode=disable connect_timeout=2 dbname=%s", host, db))
	if err != nil {
		return nil, fmt.Errorf("open PostgreSQL on %s: %w", host, err)
	}
	c.DialFunc = dial
	return stdlib.OpenDB(*c), nil
}

func (postgres) stopSignals() (orderly, quick syscall.Signal) { return syscall.SIGINT, syscall.SIGQUIT }

func (p postgres) checkOnline(ctx context.Context, s *Server) (string, error) {
	_, err := s.command(ctx, p.tool("pg_amcheck"), "--host", s.run, "--username", "postgres", "--all",
		"--install-missing", "--heapallindexed", "--parent-check", "--jobs", "2")
	if err != nil {
		return "", err
	}
	return "pg_amcheck of all databases, heaps against indexes: clean", nil
}

func (p postgres) checkOffline(ctx context.Context, s *Server) (string, error) {
	out, err := s.command(ctx, p.tool("pg_checksums"), "--check", "--pgdata", s.data)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(out) {
		if blocks, ok := strings.CutPrefix(line, "Blocks scanned:"); ok {
			return fmt.Sprintf("pg_checksums of %s blocks: clean", strings.TrimSpace(blocks)), nil
		}
	}
	return "", fmt.Errorf("pg_checksums named no blocks:\n%s", out)
}
