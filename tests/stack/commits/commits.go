package commits

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
)

// Place is one address at which the database may be.
type Place struct {
	Name string
	Open func() (*sql.DB, error)
}

// Postgres is a PostgreSQL server behind the Unix socket in a directory.
func Postgres(name, dir string) Place {
	return Place{Name: name, Open: func() (*sql.DB, error) {
		return sql.Open("pgx", fmt.Sprintf("host=%s user=postgres dbname=postgres", dir))
	}}
}

// Commit is one that was answered.
type Commit struct {
	ID    int64
	Place string
	At    time.Time // when the answer was there
}

// Ledger is what was answered. Safe for concurrent use.
type Ledger struct {
	next atomic.Int64

	mu      sync.Mutex
	commits []Commit // guarded by mu; in the order of answers
}

// Create makes the table.
func Create(ctx context.Context, db *sql.DB) error {
	_, err := db.ExecContext(ctx, "CREATE TABLE commits (id bigint PRIMARY KEY, place text NOT NULL, filler text NOT NULL)")
	if err != nil {
		return fmt.Errorf("table of commits: %w", err)
	}
	return nil
}

const (
	// patience ends a transaction that a client waits for.
	patience = 2 * time.Second
	// pause is between the attempts of a client that found no database.
	pause = 10 * time.Millisecond
)

// Run has so many clients commit until ctx ends.
func (l *Ledger) Run(ctx context.Context, clients int, places []Place) {
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for at := 0; ctx.Err() == nil; at++ {
				l.stay(ctx, places[at%len(places)])
				select {
				case <-time.After(pause):
				case <-ctx.Done():
				}
			}
		})
	}
	wg.Wait()
}

// stay commits at one place until that fails.
func (l *Ledger) stay(ctx context.Context, p Place) {
	db, err := p.Open()
	if err != nil {
		return
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	for ctx.Err() == nil {
		if l.commit(ctx, db, p.Name) != nil {
			return
		}
	}
}

func (l *Ledger) commit(ctx context.Context, db *sql.DB, place string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := db.PingContext(ctx); err != nil {
		return err
	}
	id := l.next.Add(1)
	if _, err := db.ExecContext(ctx, "INSERT INTO commits VALUES ($1, $2, repeat('x', 200))", id, place); err != nil {
		return err
	}
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.commits = append(l.commits, Commit{id, place, now})
	return nil
}

// Len returns the number of commits so far.
func (l *Ledger) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.commits)
}

// FirstAfter returns the first commit that was answered after t.
func (l *Ledger) FirstAfter(t time.Time) (Commit, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.commits {
		if c.At.After(t) {
			return c, true
		}
	}
	return Commit{}, false
}

// Check returns what is wrong with a database: commits that were answered and are not
// there, or are there as another place's, and rows that nobody tried to insert.
func (l *Ledger) Check(ctx context.Context, db *sql.DB) ([]string, error) {
	rows, err := db.QueryContext(ctx, "SELECT id, place FROM commits")
	if err != nil {
		return nil, fmt.Errorf("reading the commits: %w", err)
	}
	defer rows.Close()
	there := map[int64]string{}
	for rows.Next() {
		var id int64
		var place string
		if err := rows.Scan(&id, &place); err != nil {
			return nil, fmt.Errorf("reading the commits: %w", err)
		}
		there[id] = place
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading the commits: %w", err)
	}
	var wrong []string
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.commits {
		if got, ok := there[c.ID]; !ok || got != c.Place {
			wrong = append(wrong, fmt.Sprintf("commit %d, answered by %s at %s, is %q", c.ID, c.Place, c.At.Format("15:04:05.000"), got))
		}
	}
	for id := range there {
		if id < 1 || id > l.next.Load() {
			wrong = append(wrong, fmt.Sprintf("row %d was never inserted", id))
		}
	}
	slices.Sort(wrong)
	return wrong, nil
}
