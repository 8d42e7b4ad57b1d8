package tcpnet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// record is a TLS record with n bytes behind its header.
func record(n int, fill byte) []byte {
	r := bytes.Repeat([]byte{fill}, recordHeaderLen+n)
	r[0], r[1], r[2] = 23, 3, 3
	binary.BigEndian.PutUint16(r[3:], uint16(n))
	return r
}

// sockets returns both ends of a TCP connection.
func sockets(t *testing.T) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// chunks is a connection that gives what it has in pieces of the given sizes.
type chunks struct {
	net.Conn
	data  []byte
	sizes []int
}

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	n := min(len(p), len(c.data))
	if len(c.sizes) > 0 {
		n = min(n, c.sizes[0])
		c.sizes = c.sizes[1:]
	}
	copy(p, c.data[:n])
	c.data = c.data[n:]
	return n, nil
}

// TestWireKeepsRecords: however the kernel cuts what comes, no Read crosses the end
// of a record, nothing is lost, and whole says what the next reads can do.
func TestWireKeepsRecords(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var want [][]byte
		c := &chunks{}
		for i := range 20 {
			r := record([]int{0, 1, 17, 4000, 16<<10 + 256}[rng.IntN(5)], byte(i+1))
			want = append(want, r)
			c.data = append(c.data, r...)
		}
		for range 40 {
			c.sizes = append(c.sizes, 1+rng.IntN(20<<10))
		}
		w := newWire(c, new(atomic.Uint64))
		if rng.IntN(2) == 0 {
			w.bulk()
		}
		buf := make([]byte, 1+rng.IntN(20<<10))
		for i, r := range want {
			for got := 0; got < len(r); {
				before := len(c.data)
				whole := w.whole() && got == 0
				n, err := w.Read(buf)
				if err != nil {
					t.Fatalf("record %d: %v", i, err)
				}
				if got+n > len(r) || !bytes.Equal(buf[:n], r[got:got+n]) {
					t.Fatalf("record %d of %d bytes: %d bytes at %d", i, len(r), n, got)
				}
				got += n
				if whole && len(c.data) != before {
					t.Fatalf("record %d was said to be here", i)
				}
			}
		}
		if _, err := w.Read(buf); err != io.EOF {
			t.Fatalf("after the end: %v", err)
		}
		if w.heard.Load() == 0 {
			t.Error("nothing was heard")
		}
	}
}

// TestWireGrows: only a bulk stream's buffer, and only when what came at once has filled it.
func TestWireGrows(t *testing.T) {
	for _, test := range []struct {
		name string
		bulk bool
		come int // at once
		want int
	}{
		{"write stream", false, 1 << 20, readMax},
		{"bulk stream, little", true, 16 << 10, readMax},
		{"bulk stream, much", true, 1 << 20, bulkMax},
	} {
		c := &chunks{}
		for len(c.data) < 2<<20 {
			c.data = append(c.data, record(16<<10, 1)...)
			c.sizes = append(c.sizes, test.come)
		}
		w := newWire(c, new(atomic.Uint64))
		if test.bulk {
			w.bulk()
		}
		if n, err := io.Copy(io.Discard, w); err != nil || n < 2<<20 {
			t.Errorf("%s: %d bytes, %v", test.name, n, err)
		}
		if len(w.in) != test.want {
			t.Errorf("%s: holds %d bytes, want %d", test.name, len(w.in), test.want)
		}
	}
}

// TestWireBatches: held records leave together.
func TestWireBatches(t *testing.T) {
	a, b := sockets(t)
	w := newWire(a, new(atomic.Uint64))
	w.hold = true
	for range 3 {
		w.Write(record(100, 1))
	}
	b.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if n, err := b.Read(make([]byte, 10)); n != 0 {
		t.Errorf("%d bytes left before the flush, %v", n, err)
	}
	b.SetReadDeadline(time.Time{})
	w.hold = false
	if err := w.flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(b, make([]byte, 3*(recordHeaderLen+100))); err != nil {
		t.Error(err)
	}
}

// TestNowaitDoesNotWait: what has no room goes later, in order, and what is written
// meanwhile waits for it.
func TestNowaitDoesNotWait(t *testing.T) {
	a, b := sockets(t)
	w := newWire(a, new(atomic.Uint64))
	sent := []byte{}
	put := func(n int) {
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(len(sent) + i*7)
		}
		sent = append(sent, p...)
		w.batch = append(w.batch, p...)
	}
	for i := 0; !w.busy(); i++ {
		if i > 10000 {
			t.Fatal("the kernel takes all")
		}
		put(32 << 10)
		if err := w.nowait(); err != nil {
			t.Fatal(err)
		}
	}
	ended := make(chan error, 1)
	put(5000)
	rest := bytes.Clone(w.batch)
	w.batch = w.batch[:0]
	go func() {
		_, err := w.Write(rest)
		ended <- err
	}()
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(b, got); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes differ from what was sent, %v", len(got), err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if w.busy() {
		t.Error("still busy")
	}
}

// TestCloseEndsDrain: what waits for room ends with the connection, and says why.
func TestCloseEndsDrain(t *testing.T) {
	a, _ := sockets(t)
	w := newWire(a, new(atomic.Uint64))
	for !w.busy() {
		w.batch = append(w.batch, make([]byte, 64<<10)...)
		if err := w.nowait(); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	if _, err := w.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after the end: %v", err)
	}
}
