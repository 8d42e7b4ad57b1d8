package crm

import (
	"context"
	"database/sql"
	"fmt"
	"strconv"
	"strings"

	"github.com/qrbd/qrbd/tests/stack/database"
)

// CRM is an open CRM database. It is safe for concurrent use.
type CRM struct {
	db   *sql.DB
	kind database.Kind
}

// Open opens the CRM of a running server. The caller closes it.
func Open(s *database.Server) (*CRM, error) {
	db, err := s.Open()
	if err != nil {
		return nil, err
	}
	return On(db, s.Kind()), nil
}

// On is the CRM in a database that the caller has opened, of a server that runs anywhere.
func On(db *sql.DB, kind database.Kind) *CRM { return &CRM{db: db, kind: kind} }

// Close closes all connections.
func (c *CRM) Close() error { return c.db.Close() }

// Rows that Create makes in each table. Numbers of activities and orders made by
// a load start at firstNumber, well above.
const (
	customers     = 10_000
	contacts      = 20_000
	opportunities = 20_000
	activities    = 40_000
	orders        = 15_000
	firstNumber   = 1_000_000
)

// tables holds portable SQL. Money is in cents.
var tables = []string{
	`CREATE TABLE customers (id INT PRIMARY KEY, name VARCHAR(80) NOT NULL, city VARCHAR(40) NOT NULL,
	   revenue BIGINT NOT NULL, orders INT NOT NULL)`,
	`CREATE TABLE contacts (id INT PRIMARY KEY, customer_id INT NOT NULL, name VARCHAR(80) NOT NULL,
	   email VARCHAR(80) NOT NULL, FOREIGN KEY (customer_id) REFERENCES customers (id))`,
	`CREATE TABLE opportunities (id INT PRIMARY KEY, customer_id INT NOT NULL, title VARCHAR(80) NOT NULL,
	   stage VARCHAR(16) NOT NULL, value BIGINT NOT NULL, touches INT NOT NULL,
	   FOREIGN KEY (customer_id) REFERENCES customers (id))`,
	`CREATE TABLE activities (number BIGINT PRIMARY KEY, opportunity_id INT NOT NULL, contact_id INT NOT NULL,
	   note VARCHAR(400) NOT NULL, made TIMESTAMP NOT NULL,
	   FOREIGN KEY (opportunity_id) REFERENCES opportunities (id), FOREIGN KEY (contact_id) REFERENCES contacts (id))`,
	`CREATE TABLE orders (number BIGINT PRIMARY KEY, customer_id INT NOT NULL, opportunity_id INT NOT NULL,
	   amount BIGINT NOT NULL, note VARCHAR(400) NOT NULL, made TIMESTAMP NOT NULL,
	   FOREIGN KEY (customer_id) REFERENCES customers (id), FOREIGN KEY (opportunity_id) REFERENCES opportunities (id))`,
}

// indexes are made after the rows. MariaDB makes one for each foreign key itself.
var indexes = []string{
	`CREATE INDEX contacts_customer ON contacts (customer_id)`,
	`CREATE INDEX opportunities_customer ON opportunities (customer_id)`,
	`CREATE INDEX activities_opportunity ON activities (opportunity_id)`,
	`CREATE INDEX orders_customer ON orders (customer_id)`,
}

// Create makes the tables and fills them, and returns the number of rows.
func (c *CRM) Create(ctx context.Context) (int, error) {
	statements := append([]string{}, tables...)
	statements = append(statements, c.rows()...)
	if c.kind == database.Postgres {
		statements = append(statements, indexes...)
	}
	statements = append(statements,
		`UPDATE opportunities SET touches = (SELECT COUNT(*) FROM activities a WHERE a.opportunity_id = opportunities.id)`,
		`UPDATE customers SET
		   orders = (SELECT COUNT(*) FROM orders o WHERE o.customer_id = customers.id),
		   revenue = (SELECT COALESCE(SUM(o.amount), 0) FROM orders o WHERE o.customer_id = customers.id)`)
	for _, s := range statements {
		if _, err := c.db.ExecContext(ctx, s); err != nil {
			return 0, fmt.Errorf("make the CRM: %s: %w", firstLine(s), err)
		}
	}
	return customers + contacts + opportunities + activities + orders, nil
}

// rows returns the statements that fill the tables. An opportunity belongs to
// customer 1+id%customers, and so do its orders.
func (c *CRM) rows() []string {
	return []string{
		`INSERT INTO customers SELECT i, CONCAT('Customer ', i), CONCAT('City ', i % 300), 0, 0 FROM ` + c.series(customers),
		`INSERT INTO contacts SELECT i, 1 + i % ` + strconv.Itoa(customers) + `, CONCAT('Contact ', i),
		   CONCAT('c', i, '@example.com') FROM ` + c.series(contacts),
		`INSERT INTO opportunities SELECT i, 1 + i % ` + strconv.Itoa(customers) + `, CONCAT('Opportunity ', i), 'open',
		   1000 + i % 90000, 0 FROM ` + c.series(opportunities),
		`INSERT INTO activities SELECT i, 1 + (i * 7) % ` + strconv.Itoa(opportunities) + `, 1 + (i * 3) % ` + strconv.Itoa(contacts) + `,
		   CONCAT('Note ', i, REPEAT(' call back', 20)), CURRENT_TIMESTAMP FROM ` + c.series(activities),
		`INSERT INTO orders SELECT i, 1 + i % ` + strconv.Itoa(customers) + `, 1 + (i - 1) % ` + strconv.Itoa(opportunities) + `,
		   100 + i % 5000, CONCAT('Order ', i), CURRENT_TIMESTAMP FROM ` + c.series(orders),
	}
}

// series returns a table expression with the numbers 1 to n in column i.
func (c *CRM) series(n int) string {
	if c.kind == database.MariaDB {
		return fmt.Sprintf("(SELECT seq AS i FROM seq_1_to_%d) s", n)
	}
	return fmt.Sprintf("generate_series(1, %d) AS s(i)", n)
}

// sql rewrites ? placeholders for PostgreSQL, which numbers them.
func (c *CRM) sql(statement string) string {
	if c.kind != database.Postgres {
		return statement
	}
	var b strings.Builder
	n := 0
	for _, r := range statement {
		if r == '?' {
			n++
			fmt.Fprintf(&b, "$%d", n)
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
