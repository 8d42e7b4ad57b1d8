package crm

import (
	"context"
	"fmt"
)

// Audit is what a database holds, compared with the receipts.
type Audit struct {
	Acknowledged int      // receipts
	Found        int      // of them, with their row as it was written
	Lost         int      // of them, without a row
	Wrong        int      // of them, with a row that differs
	Unreceipted  int      // rows of the load without a receipt: the answer was lost, not the commit
	Broken       int      // totals that do not agree with the rows they sum up
	Faults       []string // the first of Lost, Wrong and Broken, in words
}

// Good reports whether nothing is lost, wrong or broken.
func (a Audit) Good() bool { return a.Lost == 0 && a.Wrong == 0 && a.Broken == 0 }

// faultsMax bounds Audit.Faults: more say nothing new.
const faultsMax = 5

func (a *Audit) fault(format string, args ...any) {
	if len(a.Faults) < faultsMax {
		a.Faults = append(a.Faults, fmt.Sprintf(format, args...))
	}
}

// row is what the database has under a number.
type row struct {
	receipt Receipt
	text    string
}

// Audit compares the database with the receipts. REQUIRES: no load runs.
func (c *CRM) Audit(ctx context.Context, receipts []Receipt) (Audit, error) {
	a := Audit{Acknowledged: len(receipts)}
	rows, err := c.loadRows(ctx)
	if err != nil {
		return a, err
	}
	for _, r := range receipts {
		got, ok := rows[r.Number]
		delete(rows, r.Number)
		switch {
		case !ok:
			a.Lost++
			a.fault("commit %d was acknowledged and is not there", r.Number)
		case got.receipt != r || got.text != text(r.Number):
			a.Wrong++
			a.fault("commit %d is %+v %.40q, was %+v %.40q", r.Number, got.receipt, got.text, r, text(r.Number))
		default:
			a.Found++
		}
	}
	a.Unreceipted = len(rows)
	return a, c.totals(ctx, &a)
}

// loadRows returns the rows that a load wrote, by number.
func (c *CRM) loadRows(ctx context.Context) (map[int64]row, error) {
	all := map[int64]row{}
	for _, query := range []string{
		`SELECT number, opportunity_id, 0, note FROM activities WHERE number >= ?`,
		`SELECT number, opportunity_id, amount, note FROM orders WHERE number >= ?`,
	} {
		found, err := c.db.QueryContext(ctx, c.sql(query), firstNumber)
		if err != nil {
			return nil, fmt.Errorf("read the load's rows: %w", err)
		}
		for found.Next() {
			var r row
			if err := found.Scan(&r.receipt.Number, &r.receipt.Opportunity, &r.receipt.Amount, &r.text); err != nil {
				return nil, fmt.Errorf("read the load's rows: %w", err)
			}
			all[r.receipt.Number] = r
		}
		if err := found.Err(); err != nil {
			return nil, fmt.Errorf("read the load's rows: %w", err)
		}
	}
	return all, nil
}

// totals compares every sum that the load keeps with the rows it is made of: they
// differ when part of a transaction is missing.
func (c *CRM) totals(ctx context.Context, a *Audit) error {
	for what, query := range map[string]string{
		"opportunities' touches": `SELECT COUNT(*) FROM opportunities p
			LEFT JOIN (SELECT opportunity_id, COUNT(*) AS n FROM activities GROUP BY opportunity_id) a ON a.opportunity_id = p.id
			WHERE p.touches <> COALESCE(a.n, 0)`,
		"customers' revenue or orders": `SELECT COUNT(*) FROM customers c
			LEFT JOIN (SELECT customer_id, COUNT(*) AS n, SUM(amount) AS total FROM orders GROUP BY customer_id) o ON o.customer_id = c.id
			WHERE c.revenue <> COALESCE(o.total, 0) OR c.orders <> COALESCE(o.n, 0)`,
	} {
		var n int
		if err := c.db.QueryRowContext(ctx, query).Scan(&n); err != nil {
			return fmt.Errorf("compare %s: %w", what, err)
		}
		if n != 0 {
			a.Broken += n
			a.fault("%d totals of %s differ from the rows they sum up", n, what)
		}
	}
	return nil
}
