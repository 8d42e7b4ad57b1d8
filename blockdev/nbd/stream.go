package nbd

import (
	"io"
	"net"
	"os"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	iovMax = 1024 // the kernel's limit of parts in one writev
	// unixBuffer, in bytes, lets a reply of 1 MiB leave in one write where the
	// system allows it (net.core.wmem_max); the default of 208 KiB makes it wait
	// for the client five times. TCP sizes its buffers itself.
	unixBuffer = 1 << 20
	smallMax   = 4 << 10  // bytes of short parts in one write: 256 simple replies
	chunkMax   = 64 << 10 // bytes of one write to what is no socket: four TLS records
)

// stream moves bytes over a connection with scattered reads and gathered writes
// and, unlike a net.Conn, can write without ever waiting. Reading and writing
// have one owner each at a time. A connection that is no socket works too, with
// every write waiting.
type stream struct {
	conn  net.Conn
	raw   syscall.RawConn // nil if the connection is no socket
	stall time.Duration

	// Reading. Owner: the reader goroutine.
	in       [2]unix.Iovec
	inParts  int
	inN      int
	inErr    error
	readFn   func(fd uintptr) bool // bound once, so that a read allocates nothing
	patience patience

	// Writing. Owner: whoever holds the writer's role of replies.
	outv    []unix.Iovec // what is left to be written starts at outv[outNext]
	outNext int
	outErr  error
	mayWait bool
	moved   bool
	writeFn func(fd uintptr) bool
	small   []byte // copies of short parts; of fixed capacity, since outv points into it
	joins   bool   // the last part of outv ends where small ends
	joined  []byte // parts for what is no socket; made when needed
}

func newStream(c net.Conn, stall time.Duration) *stream {
	s := &stream{conn: c, stall: stall, small: make([]byte, 0, smallMax), patience: newPatience()}
	if u, ok := c.(*net.UnixConn); ok {
		u.SetWriteBuffer(unixBuffer) // best effort: only speed depends on it
	}
	if sc, ok := c.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			s.raw = raw
		}
	}
	s.readFn, s.writeFn = s.readSome, s.writeSome
	return s
}

// read fills p, then q, with what has arrived, waiting until there is something.
// REQUIRES len(p)+len(q) > 0.
func (s *stream) read(p, q []byte) (int, error) {
	if s.raw == nil {
		if len(p) == 0 {
			p = q
		}
		return s.conn.Read(p)
	}
	s.inParts = 0
	for _, b := range [2][]byte{p, q} {
		if len(b) > 0 {
			s.in[s.inParts].Base = &b[0]
			s.in[s.inParts].SetLen(len(b))
			s.inParts++
		}
	}
	if busy.Load() == 0 {
		s.patience.wait(time.Since(begin))
	}
	err := s.raw.Read(s.readFn)
	s.in = [2]unix.Iovec{}
	if err == nil {
		err = s.inErr
	}
	if err == nil && s.inN == 0 {
		err = io.EOF
	}
	if err != nil {
		return 0, err
	}
	return s.inN, nil
}

func (s *stream) readSome(fd uintptr) bool {
	for {
		n, _, e := unix.Syscall(unix.SYS_READV, fd, uintptr(unsafe.Pointer(&s.in[0])), uintptr(s.inParts))
		switch e {
		case 0:
			s.inN, s.inErr = int(n), nil
			s.patience.asked(time.Since(begin))
			return true
		case unix.EINTR:
		case unix.EAGAIN:
			if busy.Load() != 0 || !s.patience.awake(time.Since(begin)) {
				return false
			}
			runtime.Gosched()
		default:
			s.inN, s.inErr = 0, os.NewSyscallError("readv", e)
			return true
		}
	}
}

// hungUp reports whether the client has closed its end, both ways: it will not see
// another reply. What it had sent may still be there to be read.
func (s *stream) hungUp() bool {
	if s.raw == nil {
		return false
	}
	gone := false
	err := s.raw.Control(func(fd uintptr) {
		p := [1]unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(p[:], 0)
		gone = err == nil && n > 0 && p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
	})
	return err != nil || gone
}

// reset empties the list of what is to be written.
func (s *stream) reset() {
	clear(s.outv)
	s.outv, s.outNext, s.small, s.joins = s.outv[:0], 0, s.small[:0], false
}

// add appends b to what is to be written. b stays untouched until then.
func (s *stream) add(b []byte) {
	if len(b) == 0 {
		return
	}
	v := unix.Iovec{Base: &b[0]}
	v.SetLen(len(b))
	s.outv, s.joins = append(s.outv, v), false
}

// addSmall appends a copy of b. Copies in a row make one part.
func (s *stream) addSmall(b []byte) {
	n := len(s.small)
	if n+len(b) > cap(s.small) {
		s.add(b)
		return
	}
	s.small = append(s.small, b...)
	if s.joins {
		last := &s.outv[len(s.outv)-1]
		last.SetLen(int(last.Len) + len(b))
		return
	}
	s.add(s.small[n:])
	s.joins = true
}

// tryWrite writes what the socket takes at once. It never waits.
func (s *stream) tryWrite() (all bool, err error) {
	if s.raw == nil {
		return false, nil
	}
	s.mayWait, s.outErr = false, nil
	if err := s.raw.Write(s.writeFn); err != nil {
		return false, err
	}
	return s.outNext == len(s.outv), s.outErr
}

// write writes all, waiting as long as the client takes something within each
// stall timeout.
func (s *stream) write() error {
	defer s.conn.SetWriteDeadline(time.Time{})
	for s.outNext < len(s.outv) {
		if err := s.conn.SetWriteDeadline(time.Now().Add(s.stall)); err != nil {
			return err
		}
		if s.raw == nil {
			n, err := s.conn.Write(s.chunk())
			s.advance(n)
			if err != nil {
				return err
			}
			continue
		}
		s.mayWait, s.moved, s.outErr = true, false, nil
		if err := s.raw.Write(s.writeFn); err != nil {
			return err
		}
		if s.outErr != nil {
			return s.outErr
		}
	}
	return nil
}

// chunk returns the next bytes to be written to what is no socket: of one part,
// or joined, so that the header of a reply does not cost a TLS record of its own.
func (s *stream) chunk() []byte {
	v := &s.outv[s.outNext]
	if first := unsafe.Slice(v.Base, v.Len); len(first) >= chunkMax || s.outNext == len(s.outv)-1 {
		return first[:min(len(first), chunkMax)]
	}
	if s.joined == nil {
		s.joined = make([]byte, 0, chunkMax)
	}
	s.joined = s.joined[:0]
	for i := s.outNext; i < len(s.outv) && len(s.joined) < chunkMax; i++ {
		part := unsafe.Slice(s.outv[i].Base, s.outv[i].Len)
		s.joined = append(s.joined, part[:min(len(part), chunkMax-len(s.joined))]...)
	}
	return s.joined
}

// writeSome returns false to be called again when the socket has room.
func (s *stream) writeSome(fd uintptr) bool {
	for s.outNext < len(s.outv) {
		parts := min(len(s.outv)-s.outNext, iovMax)
		n, _, e := unix.Syscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&s.outv[s.outNext])), uintptr(parts))
		switch e {
		case 0:
			s.advance(int(n))
			s.moved = true
		case unix.EINTR:
		case unix.EAGAIN:
			return !s.mayWait || s.moved
		default:
			s.outErr = os.NewSyscallError("writev", e)
			return true
		}
	}
	return true
}

// advance drops n written bytes from the list.
func (s *stream) advance(n int) {
	for n > 0 {
		v := &s.outv[s.outNext]
		if n < int(v.Len) {
			v.Base = (*byte)(unsafe.Add(unsafe.Pointer(v.Base), n))
			v.SetLen(int(v.Len) - n)
			return
		}
		n -= int(v.Len)
		s.outNext++
	}
}

// source is the buffered sending side of a client. Owner: the reader goroutine.
type source struct {
	st    *stream
	buf   []byte
	r, w  int  // unread bytes are buf[r:w]
	fresh bool // something was read since it was set to false
	// Every read of the socket, which may wait, is between these two.
	beforeWait, afterWait func()
}

// sourceBuffer lets one wake-up serve many requests: 9362 of 28 bytes, or 63
// writes of 4 KiB.
const sourceBuffer = 256 << 10

// init starts with the bytes that arrived early, behind the handshake.
func (s *source) init(st *stream, early []byte, beforeWait, afterWait func()) {
	s.st, s.buf, s.beforeWait, s.afterWait = st, make([]byte, sourceBuffer), beforeWait, afterWait
	s.w = copy(s.buf, early)
}

func (s *source) read(p, q []byte) (int, error) {
	s.beforeWait()
	n, err := s.st.read(p, q)
	s.fresh = true
	s.afterWait()
	return n, err
}

// next returns the next n bytes (n <= sourceBuffer); they are valid until the
// following call. io.EOF: the client closed between two requests.
func (s *source) next(n int) ([]byte, error) {
	for s.w-s.r < n {
		if s.r > 0 {
			s.w = copy(s.buf, s.buf[s.r:s.w])
			s.r = 0
		}
		got, err := s.read(s.buf[s.w:], nil)
		if err != nil {
			if err == io.EOF && s.w > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		s.w += got
	}
	b := s.buf[s.r : s.r+n]
	s.r += n
	return b, nil
}

// readFull fills p. What is not buffered yet goes straight into p, and what
// arrived behind it into the buffer.
func (s *source) readFull(p []byte) error {
	n := copy(p, s.buf[s.r:s.w])
	s.r += n
	for p = p[n:]; len(p) > 0; {
		s.r, s.w = 0, 0
		got, err := s.read(p, s.buf)
		if err != nil {
			return unexpected(err)
		}
		n := min(got, len(p))
		p, s.w = p[n:], got-n
	}
	return nil
}

// discard consumes n bytes.
func (s *source) discard(n int64) error {
	for {
		k := min(n, int64(s.w-s.r))
		s.r += int(k)
		if n -= k; n == 0 {
			return nil
		}
		s.r, s.w = 0, 0
		got, err := s.read(s.buf, nil)
		if err != nil {
			return unexpected(err)
		}
		s.w = got
	}
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
