package database

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/stack/process"
)

func TestKind(t *testing.T) {
	for _, k := range []Kind{Postgres, MariaDB} {
		if got, err := ParseKind(k.String()); err != nil || got != k {
			t.Errorf("ParseKind(%q) = %v, %v", k, got, err)
		}
	}
	if _, err := ParseKind("oracle"); err == nil {
		t.Error("oracle is a kind")
	}
}

// TestLifeOfServer makes an installation, commits, kills the server, recovers on
// the same data with another run directory, and checks what it can.
func TestLifeOfServer(t *testing.T) {
	if testing.Short() {
		t.Skip("starts database servers")
	}
	for _, kind := range []Kind{Postgres, MariaDB} {
		t.Run(kind.String(), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			dir := open(t)
			s := server(t, kind, dir, "one")
			if err := s.Init(ctx); err != nil {
				t.Fatal(err)
			}
			if err := s.Start(ctx); err != nil {
				t.Fatal(err)
			}
			if err := s.CreateDatabase(ctx); err != nil {
				t.Fatal(err)
			}
			query(t, s, "CREATE TABLE a (b int)")
			query(t, s, "INSERT INTO a VALUES (7)")
			process.Kill(s.Processes()...)

			s = server(t, kind, dir, "two")
			if err := s.Start(ctx); err != nil {
				t.Fatal(err)
			}
			query(t, s, "UPDATE a SET b = 8 WHERE b = 7")
			if text, err := s.CheckOnline(ctx); err != nil || text == "" {
				t.Errorf("CheckOnline = %q, %v", text, err)
			} else {
				t.Log(text)
			}
			if err := s.Stop(); err != nil {
				t.Error(err)
			}
			if text, err := s.CheckOffline(ctx); err != nil || text == "" {
				t.Errorf("CheckOffline = %q, %v", text, err)
			} else {
				t.Log(text)
			}
			spoil(t, dir, kind)
			if text, err := s.CheckOffline(ctx); err == nil {
				t.Errorf("a page was spoilt, and CheckOffline says %q", text)
			}
		})
	}
}

func server(t *testing.T, kind Kind, dir, run string) *Server {
	t.Helper()
	s, err := New(kind, dir, filepath.Join(dir, run))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Abandon)
	return s
}

// query runs a statement that must change one row or make one table.
func query(t *testing.T, s *Server, statement string) {
	t.Helper()
	db, err := s.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	res, err := db.Exec(statement)
	if err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	if n, err := res.RowsAffected(); err != nil || n != 1 && statement[:6] != "CREATE" {
		t.Errorf("%s: %d rows, %v", statement, n, err)
	}
}

// open returns a directory that the server's user can reach, as t.TempDir is not.
func open(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "qrbd-database-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// spoil changes one byte in the first page of a system table.
func spoil(t *testing.T, dir string, kind Kind) {
	t.Helper()
	file := filepath.Join(dir, "postgres/base/1/1259")
	if kind == MariaDB {
		file = filepath.Join(dir, "mariadb/ibdata1")
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, 8000); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, 8000); err != nil {
		t.Fatal(err)
	}
}
