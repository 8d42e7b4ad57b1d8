package crm

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/qrbd/qrbd/tests/stack/database"
	"github.com/qrbd/qrbd/tests/stack/process"
)

func TestBook(t *testing.T) {
	defer goleak.VerifyNone(t)
	path := filepath.Join(t.TempDir(), "receipts")
	b, err := NewBook(path)
	if err != nil {
		t.Fatal(err)
	}
	var notes sync.WaitGroup
	for i := range 100 {
		notes.Go(func() {
			if err := b.Note(Receipt{Number: int64(i), Opportunity: i + 1, Amount: 2}); err != nil {
				t.Error(err)
			}
		})
	}
	notes.Wait()
	got, err := b.Receipts()
	if err != nil || len(got) != 100 || b.Len() != 100 {
		t.Fatalf("%d receipts in the file, %d by Len, %v; want 100", len(got), b.Len(), err)
	}
	slices.SortFunc(got, func(a, b Receipt) int { return int(a.Number - b.Number) })
	if want := (Receipt{Number: 99, Opportunity: 100, Amount: 2}); got[99] != want {
		t.Errorf("last receipt %+v, want %+v", got[99], want)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if _, err := NewBook(path); err == nil {
		t.Error("a book was made over another")
	}
}

// TestCutOffReceipt: a host that dies leaves half a line, which is no receipt.
func TestCutOffReceipt(t *testing.T) {
	for text, want := range map[string]int{"": 0, "1 2 3": 0, "1 2 3\n": 1, "1 2 3\n4 5": 1, "1 2 3\n4 5 67": 1} {
		got, err := ReadReceipts(strings.NewReader(text))
		if err != nil || len(got) != want {
			t.Errorf("%q: %v, %v; want %d", text, got, err, want)
		}
	}
	if got, err := ReadReceipts(strings.NewReader("1 2\n4 5 6\n")); err == nil {
		t.Errorf("half a line in the middle was read as %v", got)
	}
}

// TestLoadAndAudit runs a load, kills the server under it, recovers, and expects
// every receipt to hold; then it damages rows and expects the audit to say so.
func TestLoadAndAudit(t *testing.T) {
	if testing.Short() {
		t.Skip("starts database servers")
	}
	for _, kind := range []database.Kind{database.Postgres, database.MariaDB} {
		t.Run(kind.String(), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			server, c := fill(ctx, t, kind)
			book, err := NewBook(filepath.Join(t.TempDir(), "receipts"))
			if err != nil {
				t.Fatal(err)
			}
			load := NewLoad(8, book)

			// An orderly end leaves nothing in doubt.
			short, stop := context.WithTimeout(ctx, 300*time.Millisecond)
			defer stop()
			if err := load.Run(short, c); err != nil {
				t.Fatal(err)
			}
			if load.Commits() != load.Attempts() || load.Commits() == 0 || load.Reads() == 0 {
				t.Errorf("%d of %d transactions acknowledged, %d reads", load.Commits(), load.Attempts(), load.Reads())
			}

			// The death of the server ends the run with an error.
			died := make(chan error, 1)
			go func() { died <- load.Run(ctx, c) }()
			for before := load.Commits(); load.Commits() < before+200; {
				time.Sleep(time.Millisecond)
			}
			process.Kill(server.Processes()...)
			if err := <-died; err == nil {
				t.Error("the load survived its server")
			}
			if err := server.Start(ctx); err != nil {
				t.Fatal(err)
			}
			audit(ctx, t, c, book, func(a Audit) bool { return a.Good() && a.Found == int(load.Commits()) })
			damage(ctx, t, c, book)
			if err := book.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// damage spoils one thing after the other and wants the audit to find each.
func damage(ctx context.Context, t *testing.T, c *CRM, book *Book) {
	t.Helper()
	for _, d := range []struct {
		statement string
		found     func(Audit) bool
	}{
		{`UPDATE opportunities SET touches = touches + 1 WHERE id = 5`, func(a Audit) bool { return a.Broken == 1 && a.Lost+a.Wrong == 0 }},
		{`UPDATE customers SET revenue = revenue + 1 WHERE id = 5`, func(a Audit) bool { return a.Broken == 2 }},
		{`UPDATE customers SET orders = orders + 1 WHERE id = 6`, func(a Audit) bool { return a.Broken == 3 }},
		{`UPDATE activities SET note = 'x' WHERE number >= 1000000`, func(a Audit) bool { return a.Wrong > 0 && a.Lost == 0 }},
		{`DELETE FROM orders WHERE number >= 1000000`, func(a Audit) bool { return a.Lost > 0 && !a.Good() }},
	} {
		if _, err := c.db.ExecContext(ctx, d.statement); err != nil {
			t.Fatal(err)
		}
		audit(ctx, t, c, book, d.found)
	}
}

func audit(ctx context.Context, t *testing.T, c *CRM, book *Book, good func(Audit) bool) {
	t.Helper()
	receipts, err := book.Receipts()
	if err != nil {
		t.Fatal(err)
	}
	a, err := c.Audit(ctx, receipts)
	if err != nil {
		t.Fatal(err)
	}
	if !good(a) {
		t.Errorf("unexpected audit: %+v", a)
	}
}

// fill starts a server with a CRM in it.
func fill(ctx context.Context, t *testing.T, kind database.Kind) (*database.Server, *CRM) {
	t.Helper()
	dir, err := os.MkdirTemp("", "qrbd-crm-") // t.TempDir is closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := database.New(kind, dir, filepath.Join(dir, "run"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Abandon)
	for _, do := range []func(context.Context) error{s.Init, s.Start, s.CreateDatabase} {
		if err := do(ctx); err != nil {
			t.Fatal(err)
		}
	}
	c, err := Open(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	began := time.Now()
	n, err := c.Create(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d rows in %v", n, time.Since(began))
	return s, c
}
