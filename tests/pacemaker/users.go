package pacemaker

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/stack/crm"
	"github.com/qrbd/qrbd/tests/stack/database"
)

// users work with the database at its address, and connect again when it is gone. What was
// acknowledged to them is in their book before they go on.
type users struct {
	wires *wires
	load  *crm.Load
	book  *crm.Book
	stop  context.CancelFunc
	ended sync.WaitGroup

	mu sync.Mutex
	// Guarded by mu.
	firsts []time.Time // first commits on a new connection
	last   error       // why the last connection ended
}

// clientsAtWork is how many there are: enough for commits to be under way at every moment.
const clientsAtWork = 3

// open opens a database at the service's address; "": the one that is always there.
func (w *wires) open(name string) (*sql.DB, error) {
	return database.Remote(serviceAddress, name, w.dial)
}

// openCRM opens the CRM in it.
func (w *wires) openCRM() (*crm.CRM, error) {
	db, err := w.open(database.Name)
	if err != nil {
		return nil, err
	}
	return crm.On(db, database.Postgres), nil
}

// newUsers makes the database and sets the users to work on it.
func newUsers(t *testing.T, w *wires, dir string) *users {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	db, err := w.open("")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, "CREATE DATABASE "+database.Name); err != nil {
		t.Fatalf("the database: %v", err)
	}
	c, err := w.openCRM()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Create(ctx); err != nil {
		t.Fatal(err)
	}
	book, err := crm.NewBook(filepath.Join(dir, "receipts"))
	if err != nil {
		t.Fatal(err)
	}
	u := &users{wires: w, book: book, load: crm.NewLoad(clientsAtWork, book)}
	u.load.Pause = 20 * time.Millisecond // the machines share this host's processors
	u.resume()
	t.Cleanup(func() {
		u.rest()
		if err := book.Close(); err != nil {
			t.Error(err)
		}
	})
	return u
}

// work goes on until ctx ends.
func (u *users) work(ctx context.Context) {
	for ctx.Err() == nil {
		err := u.session(ctx)
		u.mu.Lock()
		u.last = err
		u.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// session is the time until the first error.
func (u *users) session(ctx context.Context) error {
	c, err := u.wires.openCRM()
	if err != nil {
		return err
	}
	defer c.Close()
	if err := u.load.Once(c); err != nil {
		return err
	}
	u.mu.Lock()
	u.firsts = append(u.firsts, time.Now())
	u.mu.Unlock()
	return u.load.Run(ctx, c)
}

// rest has the users stop work, resume go on.
func (u *users) rest() {
	u.stop()
	u.ended.Wait()
}

func (u *users) resume() {
	ctx, stop := context.WithCancel(context.Background())
	u.stop = stop
	u.ended.Go(func() { u.work(ctx) })
}

// firstAfter waits for the first commit on a new connection after a moment, and returns
// how long after.
func (u *users) firstAfter(ctx context.Context, moment time.Time) (time.Duration, error) {
	for {
		u.mu.Lock()
		for _, first := range u.firsts {
			if first.After(moment) {
				u.mu.Unlock()
				return first.Sub(moment), nil
			}
		}
		last := u.last
		u.mu.Unlock()
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("the users cannot commit: %w (%w)", last, ctx.Err())
		case <-time.After(look):
		}
	}
}

// progress waits for some more commits.
func (u *users) progress(ctx context.Context, commits int64) error {
	for want := u.load.Commits() + commits; u.load.Commits() < want; {
		select {
		case <-ctx.Done():
			u.mu.Lock()
			defer u.mu.Unlock()
			return fmt.Errorf("the users do not get on: %w (%w)", u.last, ctx.Err())
		case <-time.After(look):
		}
	}
	return nil
}

// audit compares the database with the book. REQUIRES: the users rest.
func (u *users) audit(ctx context.Context) (crm.Audit, error) {
	receipts, err := u.book.Receipts()
	if err != nil {
		return crm.Audit{}, err
	}
	c, err := u.wires.openCRM()
	if err != nil {
		return crm.Audit{}, err
	}
	defer c.Close()
	return c.Audit(ctx, receipts)
}
