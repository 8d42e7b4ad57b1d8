package database

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/go-sql-driver/mysql"
)

type mariadb struct{}

// poolLimit: the server reserves addresses for the largest pool it may be told to have,
// by default terabytes, more than a process of a User-Mode Linux has. Servers before it
// knew the limit ignore it.
const poolLimit = "--loose-innodb-buffer-pool-size-max=1G"

func (mariadb) owner() string { return "mysql" }

func (mariadb) socket(s *Server) string { return filepath.Join(s.run, "mariadb.sock") }

func (mariadb) initialise(s *Server) []string {
	return []string{"mariadb-install-db", "--no-defaults", "--datadir=" + s.data,
		"--auth-root-authentication-method=normal", "--skip-test-db", poolLimit}
}

func (m mariadb) serve(s *Server) []string {
	return []string{"mariadbd", "--no-defaults", "--datadir=" + s.data, "--socket=" + m.socket(s),
		"--pid-file=" + filepath.Join(s.run, "mariadb.pid"), "--skip-networking",
		"--innodb-flush-log-at-trx-commit=1", poolLimit}
}

func (m mariadb) open(s *Server, db string) (*sql.DB, error) {
	c := mysql.NewConfig()
	c.User, c.Net, c.Addr, c.DBName = "root", "unix", m.socket(s), db
	c.InterpolateParams = true    // one round trip a statement
	c.Logger = &mysql.NopLogger{} // it would print what it also returns
	connector, err := mysql.NewConnector(c)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(connector), nil
}

func (mariadb) stopSignals() (orderly, quick syscall.Signal) { return syscall.SIGTERM, syscall.SIGKILL }

func (m mariadb) checkOnline(ctx context.Context, s *Server) (string, error) {
	out, err := s.command(ctx, "mariadb-check", "--no-defaults", "--socket="+m.socket(s), "--user=root",
		"--check", "--extended", "--all-databases")
	if err != nil {
		return "", err
	}
	// The exit code is 0 whatever it finds: a table that is well has one line that
	// ends in OK.
	var bad []string
	tables := 0
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		tables++
		if line != "" && !strings.HasSuffix(line, " OK") {
			bad = append(bad, line)
		}
	}
	if len(bad) != 0 || tables == 0 {
		return "", fmt.Errorf("mariadb-check found, in %d lines:\n%s", tables, strings.Join(bad, "\n"))
	}
	return fmt.Sprintf("mariadb-check --extended of %d tables: clean", tables), nil
}

// checkOffline reads every InnoDB file of the installation.
func (mariadb) checkOffline(ctx context.Context, s *Server) (string, error) {
	files := 0
	err := filepath.WalkDir(s.data, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() || !strings.HasSuffix(name, ".ibd") && name != "ibdata1" && !strings.HasPrefix(name, "undo") {
			return nil
		}
		files++
		if name == "ibdata1" {
			// Pages 64 to 191 are the doublewrite buffer: copies of other files' pages,
			// which innochecksum takes for damaged ones of this file.
			if _, err := s.command(ctx, "innochecksum", "--end-page=63", path); err != nil {
				return err
			}
			_, err := s.command(ctx, "innochecksum", "--start-page=192", path)
			return err
		}
		_, err = s.command(ctx, "innochecksum", path)
		return err
	})
	if err != nil {
		return "", err
	}
	if files == 0 {
		return "", fmt.Errorf("no InnoDB file below %s", s.data)
	}
	return fmt.Sprintf("innochecksum of %d files: clean", files), nil
}
