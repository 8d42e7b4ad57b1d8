package tcpnet

import (
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// recordHeaderLen is the length of a TLS record's header; its last two bytes are the
// length of the rest.
const recordHeaderLen = 5

// wire is what a tls.Conn reads from and writes to. It knows where records begin and
// end, and no more.
//
//	kernel ─► in: │ record │ record │ reco      Read: at most one record
//	batch: │ record │ record │ ─► kernel        flush, or nowait
//	                       rest ─► kernel       what nowait could not place
type wire struct {
	net net.Conn
	raw syscall.RawConn // nil: net is no socket
	// heard counts reads that brought something, for the whole session.
	heard *atomic.Uint64

	// Owner: the one goroutine that reads.
	in         []byte // allocated by the first read, and larger when one has filled it
	inMax      int    // what it may grow to
	begin, end int    // of what is there of in
	left       int    // of the record that is being handed out

	// Owner: the one goroutine that writes, by stream.writeMu.
	batch    []byte
	batchMax int  // from which on it leaves
	hold     bool // keep records in batch
	tried    []byte
	placed   int
	errno    error
	try      func(fd uintptr) bool // kept, so that a try costs no allocation

	mu sync.Mutex
	// Guarded by mu.
	rest   []byte // being sent by drain
	failed error  // why drain could not
	idle   chan struct{}
}

func newWire(c net.Conn, heard *atomic.Uint64) *wire {
	w := &wire{net: c, heard: heard, inMax: readMax, batchMax: batchMax}
	if s, ok := c.(syscall.Conn); ok {
		w.raw, _ = s.SyscallConn()
	}
	w.try = func(fd uintptr) bool {
		w.placed, w.errno = unix.Write(int(fd), w.tried)
		return true
	}
	return w
}

// bulk has it read and write more at a time. REQUIRES no concurrent Read or Write.
func (w *wire) bulk() { w.inMax, w.batchMax = bulkMax, bulkMax }

// Read implements net.Conn: some bytes of one record.
func (w *wire) Read(p []byte) (int, error) {
	if w.left == 0 {
		for w.end-w.begin < recordHeaderLen {
			if err := w.fill(); err != nil {
				return 0, err
			}
		}
		w.left = recordHeaderLen + int(binary.BigEndian.Uint16(w.in[w.begin+3:]))
	} else if w.begin == w.end {
		if err := w.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, w.in[w.begin:w.begin+min(w.left, w.end-w.begin)])
	w.begin += n
	w.left -= n
	return n, nil
}

// fill reads what there is, at least one byte.
func (w *wire) fill() error {
	if w.in == nil {
		w.in = make([]byte, readMax)
	} else if w.end == len(w.in) && w.end < w.inMax {
		in := make([]byte, w.inMax)
		w.begin, w.end = 0, copy(in, w.in[w.begin:w.end])
		w.in = in
	}
	if w.begin == w.end {
		w.begin, w.end = 0, 0
	} else if len(w.in)-w.end < recordMax {
		w.end = copy(w.in, w.in[w.begin:w.end])
		w.begin = 0
	}
	n, err := w.net.Read(w.in[w.end:])
	w.end += n
	if n > 0 {
		w.heard.Add(1)
		return nil
	}
	return err
}

// whole says whether the next record is here, so that reading it does not block.
func (w *wire) whole() bool {
	have := w.end - w.begin - w.left
	if w.left > w.end-w.begin || have < recordHeaderLen {
		return false
	}
	at := w.begin + w.left
	return have >= recordHeaderLen+int(binary.BigEndian.Uint16(w.in[at+3:]))
}

// Write implements net.Conn: p is a record, or several.
func (w *wire) Write(p []byte) (int, error) {
	if w.hold {
		w.batch = append(w.batch, p...)
		if len(w.batch) < w.batchMax {
			return len(p), nil
		}
		return len(p), w.flush()
	}
	if err := w.settle(); err != nil {
		return 0, err
	}
	return w.net.Write(p)
}

// flush writes the batch and waits for room.
func (w *wire) flush() error {
	err := w.settle()
	if err == nil && len(w.batch) > 0 {
		_, err = w.net.Write(w.batch)
	}
	w.batch = w.batch[:0]
	return err
}

// settle waits until drain has ended.
func (w *wire) settle() error {
	for {
		w.mu.Lock()
		idle, failed := w.idle, w.failed
		w.mu.Unlock()
		if failed != nil || idle == nil {
			return failed
		}
		<-idle
	}
}

// busy says whether something is waiting for room.
func (w *wire) busy() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.idle != nil
}

// nowait writes the batch as far as there is room and has a goroutine write the
// rest. REQUIRES !busy.
func (w *wire) nowait() error {
	n := 0
	if w.raw != nil {
		var err error
		if n, err = w.place(w.batch); err != nil {
			return err
		}
	}
	if n < len(w.batch) {
		w.mu.Lock()
		w.rest = append(w.rest[:0], w.batch[n:]...)
		w.idle = make(chan struct{})
		w.mu.Unlock()
		go w.drain()
	}
	w.batch = w.batch[:0]
	return nil
}

// place hands to the kernel what it takes of p at once.
func (w *wire) place(p []byte) (int, error) {
	for {
		w.tried = p
		err := w.raw.Write(w.try)
		w.tried = nil
		switch {
		case err != nil:
			return 0, err
		case w.errno == nil:
			return w.placed, nil
		case errors.Is(w.errno, unix.EINTR):
		case errors.Is(w.errno, unix.EAGAIN):
			return 0, nil
		default:
			return 0, &net.OpError{Op: "write", Net: "tcp", Err: w.errno}
		}
	}
}

// drain writes what nowait could not place. It ends with the connection.
func (w *wire) drain() {
	_, err := w.net.Write(w.rest)
	w.mu.Lock()
	w.failed = err
	close(w.idle)
	w.idle = nil
	w.mu.Unlock()
}

// Close implements net.Conn. drain has ended on return.
func (w *wire) Close() error {
	err := w.net.Close()
	w.mu.Lock()
	idle := w.idle
	w.mu.Unlock()
	if idle != nil {
		<-idle
	}
	return err
}

// LocalAddr implements net.Conn.
func (w *wire) LocalAddr() net.Addr { return w.net.LocalAddr() }

// RemoteAddr implements net.Conn.
func (w *wire) RemoteAddr() net.Addr { return w.net.RemoteAddr() }

// SetDeadline implements net.Conn.
func (w *wire) SetDeadline(t time.Time) error { return w.net.SetDeadline(t) }

// SetReadDeadline implements net.Conn.
func (w *wire) SetReadDeadline(t time.Time) error { return w.net.SetReadDeadline(t) }

// SetWriteDeadline implements net.Conn.
func (w *wire) SetWriteDeadline(t time.Time) error { return w.net.SetWriteDeadline(t) }
