package linear

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/nbd/client"
)

// Endpoint is a node that may serve the volume.
type Endpoint struct {
	Addr string // unix:/path or tcp:host:port
	Term func() Term
}

// Load is clients that write, read and flush single blocks and short runs of them, at
// whichever node serves the export. A few blocks are used all the time, so that clients
// meet, some often, and most now and then, so that a write that was missed is not soon
// made good by another.
type Load struct {
	History   *History
	Endpoints []Endpoint
	Export    string
	// Base is where the blocks begin, bytes. Groups of groupBlocks lie groupStep
	// apart.
	Base    int64
	Clients int
	// Readers of the clients only read: they stay at a node that should not serve them,
	// and are not held up by writes that wait.
	Readers int
	// Pause is the mean time between two requests of a client.
	Pause time.Duration
	Seed  uint64
}

const (
	groups      = 4
	groupBlocks = 256 // 1 MiB
	groupStep   = 1 << 30
	// Blocks is how many blocks a load uses.
	Blocks = groups * groupBlocks
	// runMax is the longest request, blocks.
	runMax = 8
	// dialTime bounds a connection to a node that is stopped.
	dialTime = 2 * time.Second
)

func (l *Load) offset(block int) int64 {
	return l.Base + int64(block/groupBlocks)*groupStep + int64(block%groupBlocks)*blockSize
}

// Run drives the volume until ctx ends; requests under way are awaited then.
func (l *Load) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for id := range l.Clients {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(l.Seed, uint64(id)))
			for ctx.Err() == nil {
				c, term := l.dial(ctx, rnd)
				if c == nil {
					rest(ctx, 20*time.Millisecond)
					continue
				}
				l.use(ctx, c, term, id, rnd)
			}
		})
	}
	wg.Wait()
}

// dial tries a node; nil: it does not serve the export.
func (l *Load) dial(ctx context.Context, rnd *rand.Rand) (*client.Client, Term) {
	e := l.Endpoints[rnd.IntN(len(l.Endpoints))]
	term := e.Term()
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	c, err := client.Dial(ctx, e.Addr, l.Export, client.Options{})
	if err != nil {
		return nil, 0
	}
	if e.Term() != term { // whose connection it is cannot be told
		c.Abort()
		return nil, 0
	}
	return c, term
}

// use sends request after request until one fails or ctx ends.
func (l *Load) use(ctx context.Context, c *client.Client, term Term, id int, rnd *rand.Rand) {
	buf := make([]byte, runMax*blockSize)
	for ctx.Err() == nil {
		if err := l.request(c, term, id, rnd, buf); err != nil {
			c.Abort()
			return
		}
		rest(ctx, time.Duration(rnd.Int64N(2*int64(l.Pause))))
	}
	_ = c.Close() // the server may have gone
}

// place returns a block, or a short run of them.
func place(rnd *rand.Rand) (first, n int) {
	switch rnd.IntN(4) {
	case 0:
		first = rnd.IntN(Blocks)
	case 1:
		first = rnd.IntN(groups)*groupBlocks + rnd.IntN(8)
	default:
		first = rnd.IntN(4)
	}
	if rnd.IntN(8) == 0 {
		return first, 1 + rnd.IntN(min(runMax, groupBlocks-first%groupBlocks))
	}
	return first, 1
}

func (l *Load) request(c *client.Client, term Term, id int, rnd *rand.Rand, buf []byte) error {
	first, n := place(rnd)
	p := buf[:n*blockSize]
	switch kind := rnd.IntN(100); {
	case id < l.Readers:
		return l.readBlocks(c, term, id, first, p)
	case kind < 4:
		acked := l.History.flush(id, term)
		if err := c.Flush(); err != nil {
			return err
		}
		acked()
	case kind < 45:
		return l.readBlocks(c, term, id, first, p)
	default:
		fua := kind < 50
		values, acked := l.History.write(id, term, first, n, fua)
		for i, v := range values {
			fill(p[i*blockSize:(i+1)*blockSize], first+i, v)
		}
		var fl blockdev.Flags
		if fua {
			fl = blockdev.FUA
		}
		if err := c.WriteAt(p, l.offset(first), fl); err != nil {
			return err
		}
		acked()
	}
	return nil
}

func (l *Load) readBlocks(c *client.Client, term Term, id, first int, p []byte) error {
	answered := l.History.read(id, term, first, len(p)/blockSize)
	if err := c.ReadAt(p, l.offset(first)); err != nil {
		return err
	}
	answered(p)
	return nil
}

// Look reads every block once, as one more client.
func (l *Load) Look(ctx context.Context, e Endpoint) error {
	c, err := client.Dial(ctx, e.Addr, l.Export, client.Options{})
	if err != nil {
		return err
	}
	defer c.Abort()
	p := make([]byte, blockSize)
	for b := range Blocks {
		if err := l.readBlocks(c, e.Term(), l.Clients, b, p); err != nil {
			return err
		}
	}
	return nil
}

func rest(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
