package crm

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Load is the work of a CRM's users. Numbers go on from one Run to the next, so
// one Load is used for the whole life of a volume.
type Load struct {
	// Pause is what each client waits between two pieces of work. Zero: nothing.
	Pause time.Duration

	clients int
	book    *Book
	next    atomic.Int64 // number of the next row
	commits atomic.Int64 // acknowledged and noted
	reads   atomic.Int64
}

// NewLoad returns a load of so many concurrent clients that notes its commits in
// book.
func NewLoad(clients int, book *Book) *Load {
	l := &Load{clients: clients, book: book}
	l.next.Store(firstNumber)
	return l
}

// Commits returns how many commits were acknowledged so far; Reads how many
// customers' pages were shown.
func (l *Load) Commits() int64 { return l.commits.Load() }

// Reads returns how many customers' pages were read so far.
func (l *Load) Reads() int64 { return l.reads.Load() }

// Attempts returns how many numbers were given to a transaction. The rows of those
// that were not acknowledged may be there or not.
func (l *Load) Attempts() int64 { return l.next.Load() - firstNumber }

// Run keeps the clients at work until ctx ends, then returns nil; or until the
// first error of one, and returns that.
func (l *Load) Run(ctx context.Context, c *CRM) error {
	c.db.SetMaxOpenConns(l.clients + 2)
	c.db.SetMaxIdleConns(l.clients + 2)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var clients sync.WaitGroup
	for range l.clients {
		clients.Go(func() {
			for ctx.Err() == nil {
				if err := l.step(c); err != nil {
					cancel(err)
					return
				}
				l.pause(ctx)
			}
		})
	}
	clients.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

func (l *Load) pause(ctx context.Context) {
	if l.Pause == 0 {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(l.Pause):
	}
}

// Once commits one activity: the sign that a database takes writes again.
func (l *Load) Once(c *CRM) error { return l.commit(c, 1, 0, c.activity) }

// step does one piece of a user's work, to its end: it takes no context, so that
// stopping a load leaves no transaction in doubt.
func (l *Load) step(c *CRM) error {
	opportunity := 1 + rand.IntN(opportunities)
	switch dice := rand.IntN(10); {
	case dice < 2:
		return l.look(c, opportunity)
	case dice < 5:
		return l.commit(c, opportunity, int64(100+rand.IntN(100_000)), c.order)
	default:
		return l.commit(c, opportunity, 0, c.activity)
	}
}

// commit runs one writing transaction and notes it when it was acknowledged.
func (l *Load) commit(c *CRM, opportunity int, amount int64, work func(*sql.Tx, Receipt) error) error {
	r := Receipt{Number: l.next.Add(1) - 1, Opportunity: opportunity, Amount: amount}
	tx, err := c.db.Begin()
	if err != nil {
		return fmt.Errorf("begin transaction %d: %w", r.Number, err)
	}
	if err := work(tx, r); err != nil {
		return errors.Join(fmt.Errorf("transaction %d: %w", r.Number, err), tx.Rollback())
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit %d: %w", r.Number, err)
	}
	if err := l.book.Note(r); err != nil {
		return err
	}
	l.commits.Add(1)
	return nil
}

// text is what a row of the load says: a function of its number.
func text(number int64) string {
	r := rand.New(rand.NewPCG(uint64(number), 1))
	b := fmt.Appendf(nil, "%d:", number)
	for range 20 {
		b = fmt.Appendf(b, " %08x", r.Uint32())
	}
	return string(b)
}

// Rows are locked in the order opportunity, customer in all transactions, and
// before a row that refers to them is inserted: no two can wait for each other.

func (c *CRM) activity(tx *sql.Tx, r Receipt) error {
	if err := c.change(tx, `UPDATE opportunities SET touches = touches + 1 WHERE id = ?`, r.Opportunity); err != nil {
		return err
	}
	return c.change(tx, `INSERT INTO activities VALUES (?, ?, ?, ?, CURRENT_TIMESTAMP)`,
		r.Number, r.Opportunity, 1+r.Number%contacts, text(r.Number))
}

func (c *CRM) order(tx *sql.Tx, r Receipt) error {
	if err := c.change(tx, `UPDATE opportunities SET stage = 'won', value = ? WHERE id = ?`, r.Amount, r.Opportunity); err != nil {
		return err
	}
	customer := 1 + r.Opportunity%customers
	if err := c.change(tx, `UPDATE customers SET revenue = revenue + ?, orders = orders + 1 WHERE id = ?`, r.Amount, customer); err != nil {
		return err
	}
	return c.change(tx, `INSERT INTO orders VALUES (?, ?, ?, ?, ?, CURRENT_TIMESTAMP)`,
		r.Number, customer, r.Opportunity, r.Amount, text(r.Number))
}

// change runs a statement that must change exactly one row.
func (c *CRM) change(tx *sql.Tx, statement string, args ...any) error {
	res, err := tx.Exec(c.sql(statement), args...)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n != 1 {
		return fmt.Errorf("%s changed %d rows (%v), want 1", statement, n, err)
	}
	return nil
}

// look reads what a user sees of a customer.
func (l *Load) look(c *CRM, opportunity int) error {
	var open, touches sql.NullInt64
	err := c.db.QueryRow(c.sql(`SELECT COUNT(*), SUM(o.touches) FROM opportunities o JOIN customers c ON c.id = o.customer_id
		WHERE c.id = ?`), 1+opportunity%customers).Scan(&open, &touches)
	if err != nil {
		return fmt.Errorf("read a customer's page: %w", err)
	}
	l.reads.Add(1)
	return nil
}
