package crm

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
)

// Receipt is one acknowledged commit.
type Receipt struct {
	Number      int64
	Opportunity int
	Amount      int64 // of an order, cents; 0: an activity
}

// Book keeps receipts in a file on the host's own disk. Note and Len are safe for
// concurrent use.
type Book struct {
	file  *os.File
	notes chan note
	ended chan struct{}

	mu    sync.Mutex
	count int // guarded by mu
}

type note struct {
	receipt Receipt
	done    chan error // buffered: the writer never waits
}

// notesMax bounds the notes under way: one for each client is the most there are.
const notesMax = 256

// NewBook makes an empty book; the file must not exist.
func NewBook(path string) (*Book, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("book of receipts: %w", err)
	}
	b := &Book{file: f, notes: make(chan note, notesMax), ended: make(chan struct{})}
	go b.write()
	return b, nil
}

// Note returns when the receipt is on stable storage. REQUIRES: not after Close.
func (b *Book) Note(r Receipt) error {
	n := note{receipt: r, done: make(chan error, 1)}
	b.notes <- n
	return <-n.done
}

// write is the book's one writer: it puts all notes that wait under one fsync.
func (b *Book) write() {
	defer close(b.ended)
	var failed error // an fsync that failed is not tried again
	for first := range b.notes {
		batch := []note{first}
		for len(b.notes) > 0 && len(batch) < notesMax {
			batch = append(batch, <-b.notes)
		}
		if failed == nil {
			failed = b.append(batch)
		}
		for _, n := range batch {
			n.done <- failed
		}
	}
}

func (b *Book) append(batch []note) error {
	var text []byte
	for _, n := range batch {
		text = fmt.Appendf(text, "%d %d %d\n", n.receipt.Number, n.receipt.Opportunity, n.receipt.Amount)
	}
	if _, err := b.file.Write(text); err != nil {
		return fmt.Errorf("write %d receipts: %w", len(batch), err)
	}
	if err := b.file.Sync(); err != nil {
		return fmt.Errorf("sync %d receipts: %w", len(batch), err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.count += len(batch)
	return nil
}

// Len returns the number of receipts on stable storage.
func (b *Book) Len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.count
}

// Receipts reads the book back from its file.
func (b *Book) Receipts() ([]Receipt, error) {
	f, err := os.Open(b.file.Name())
	if err != nil {
		return nil, fmt.Errorf("read the receipts: %w", err)
	}
	defer f.Close()
	return ReadReceipts(f)
}

// ReadReceipts reads what a book's file holds. A last line that is cut off, because its
// host died, is none: whoever wrote it was never answered.
func ReadReceipts(f io.Reader) ([]Receipt, error) {
	text, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("read the receipts: %w", err)
	}
	var all []Receipt
	lines := bufio.NewScanner(bytes.NewReader(text[:bytes.LastIndexByte(text, '\n')+1]))
	for lines.Scan() {
		var r Receipt
		if _, err := fmt.Sscanf(lines.Text(), "%d %d %d", &r.Number, &r.Opportunity, &r.Amount); err != nil {
			return nil, fmt.Errorf("receipt %q in line %d: %w", lines.Text(), len(all)+1, err)
		}
		all = append(all, r)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read the receipts: %w", err)
	}
	return all, nil
}

// Close ends the writer and closes the file. REQUIRES: no Note under way.
func (b *Book) Close() error {
	close(b.notes)
	<-b.ended
	return b.file.Close()
}
