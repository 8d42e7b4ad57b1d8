package nbd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/qrbd/qrbd/blockdev"
)

// ErrUnknownExport is returned by Exports.Open for a name that it does not
// serve.
var ErrUnknownExport = errors.New("unknown export")

// PolicyError is returned by Exports.Open for an export that may not be used
// here or now. The client is shown the text (its first 1024 bytes), so it should
// say what to do instead.
type PolicyError struct{ Text string }

func (e *PolicyError) Error() string { return "export refused: " + e.Text }

// DeniedError is returned by Exports.Open for an export that this caller may not
// use. The client is shown the text as that of a PolicyError, and the refusal is
// logged.
type DeniedError struct{ Text string }

func (e *DeniedError) Error() string { return "client refused: " + e.Text }

// Exports says what a server serves. Its methods are called by connections
// concurrently, with nothing locked, and should not block for long: a client
// waits.
type Exports interface {
	// List returns the names that the caller may see.
	List(c Caller) []string
	// Open returns the export of that name; "" means the default export, if
	// there is exactly one. It is called for every option that names an export
	// and takes nothing that would have to be given back. Errors:
	// ErrUnknownExport, *PolicyError, *DeniedError, blockdev.ErrShutdown; any other
	// is logged and looks unknown to the client.
	Open(name string, c Caller) (*Export, error)
}

// Export is one device as clients see it.
type Export struct {
	// Name is the canonical name; Clients and Disconnect go by it.
	Name string
	// Description is for people; may be empty.
	Description string
	Device      blockdev.Submitter
	// ReadOnly: writes, zeroes and trims are refused with EPERM.
	ReadOnly bool
	// Rotational: seeks are costly.
	Rotational bool
	// MinBlock is the smallest block, in bytes, that a client should use: a
	// power of two up to 64 KiB that divides the size; 0 means 1. A client that
	// asked for it is held to it (EINVAL); any other is served at any alignment,
	// as the device takes any.
	MinBlock uint32
	// PreferredBlock is the block size that performs best, in bytes: a power of
	// two of at least MinBlock and 512; 0 means 4096.
	PreferredBlock uint32
}

// blocks returns the block sizes with defaults filled in.
func (e *Export) blocks() (minimum, preferred uint32) {
	minimum, preferred = max(e.MinBlock, 1), e.PreferredBlock
	if preferred == 0 {
		preferred = max(defaultPrefer, minimum)
	}
	return minimum, preferred
}

// check reports what is wrong with an export. It guards against mistakes of our
// own side, before a client sees them.
func (e *Export) check() error {
	minimum, preferred := e.blocks()
	switch {
	case e.Device == nil:
		return fmt.Errorf("export %q has no device", e.Name)
	case bits.OnesCount32(minimum) != 1 || minimum > minBlockMax || e.Device.Size()%int64(minimum) != 0:
		return fmt.Errorf("export %q: minimum block of %d bytes does not fit a device of %d", e.Name, minimum, e.Device.Size())
	case bits.OnesCount32(preferred) != 1 || preferred < max(minimum, preferredMin):
		return fmt.Errorf("export %q: preferred block of %d bytes with a minimum of %d", e.Name, preferred, minimum)
	}
	return nil
}

// Options of a Server. Zero means the default in parentheses.
type Options struct {
	// Exports is required.
	Exports Exports
	// TLS makes every client start TLS with a certificate before anything else
	// (nil: there is no TLS).
	TLS *Credentials
	// Log (discards).
	Log *slog.Logger
	// Pool bounds the bytes in flight over all connections (a pool of 256 MiB).
	Pool *blockdev.Pool
	// MaxConns bounds the connections in the transmission phase (100). One more
	// is refused with a policy error.
	MaxConns int
	// MaxHalfOpen bounds the connections that are in the handshake (64). One
	// more takes the place of the oldest, so that silent connections cannot
	// keep others out.
	MaxHalfOpen int
	// HandshakeTimeout bounds the whole handshake (10 s).
	HandshakeTimeout time.Duration
	// PerConnInFlight bounds the requests of one connection (256).
	PerConnInFlight int
	// PerConnBytes bounds the payload bytes of one connection in flight (64 MiB;
	// one request of any legal size is always let through).
	PerConnBytes int64
	// LeaveUnanswered: a request that comes while the server shuts down ends its
	// connection instead of being answered with ESHUTDOWN, and nothing that a client has
	// sent is executed once it has closed the connection (answered, executed). It is for
	// clients that send again what was not answered and take every error for the disk's,
	// as the kernel's does.
	LeaveUnanswered bool
	// StallTimeout ends a connection whose client takes no byte of a waiting
	// reply for so long (5 min): its replies hold buffers of the pool.
	StallTimeout time.Duration
}

func (o Options) withDefaults() Options {
	if o.Exports == nil {
		panic("nbd: Options.Exports is nil")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Pool == nil {
		o.Pool = blockdev.NewPool(256 << 20)
	}
	orInt := func(p *int, d int) {
		if *p <= 0 {
			*p = d
		}
	}
	orInt(&o.MaxConns, 100)
	orInt(&o.MaxHalfOpen, 64)
	orInt(&o.PerConnInFlight, 256)
	if o.HandshakeTimeout <= 0 {
		o.HandshakeTimeout = 10 * time.Second
	}
	if o.PerConnBytes <= 0 {
		o.PerConnBytes = 64 << 20
	}
	if o.StallTimeout <= 0 {
		o.StallTimeout = 5 * time.Minute
	}
	return o
}

// Server serves exports on any number of listeners.
type Server struct {
	opt Options
	// draining: options and requests are refused from now on. Read without mu.
	draining atomic.Bool
	wg       sync.WaitGroup // connection goroutines
	// complaints about clients that were refused.
	complaints complaints

	mu sync.Mutex
	// Guarded by mu.
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	halfOpen  []*conn // those in the handshake, oldest first
	entered   int     // those that use an export; a displaced one is in neither
	// parted counts calls of Disconnect, so that an export opened before one
	// is opened again before it is used.
	parted uint64
	closed bool // no connection starts any more
}

// NewServer returns a server that serves nothing until Serve. It panics without
// Exports.
func NewServer(o Options) *Server {
	return &Server{
		opt:       o.withDefaults(),
		listeners: make(map[net.Listener]struct{}),
		conns:     make(map[*conn]struct{}),
	}
}

// Serve accepts connections on l until Shutdown, then returns nil, or the error
// that ended accepting. It closes l. It may be called for several listeners.
func (s *Server) Serve(l net.Listener) error {
	defer l.Close()
	s.mu.Lock()
	if s.draining.Load() || s.closed {
		s.mu.Unlock()
		return nil
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
	}()
	delay := time.Millisecond
	for {
		nc, err := l.Accept()
		switch {
		case err == nil:
			delay = time.Millisecond
			s.start(nc)
		case s.draining.Load() || errors.Is(err, net.ErrClosed):
			return nil
		case temporary(err): // out of descriptors: others will end
			s.opt.Log.Warn("accepting NBD clients is held up", "error", err, "delay", delay)
			time.Sleep(delay)
			delay = min(2*delay, time.Second)
		default:
			return fmt.Errorf("accepting NBD clients on %v: %w", l.Addr(), err)
		}
	}
}

// start runs a connection in its own goroutine.
func (s *Server) start(nc net.Conn) {
	c := newConn(s, nc)
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		nc.Close()
		return
	}
	var oldest *conn
	if len(s.halfOpen) >= s.opt.MaxHalfOpen {
		oldest = s.halfOpen[0]
		s.halfOpen = s.halfOpen[1:]
	}
	s.conns[c] = struct{}{}
	connections.Add(1)
	s.halfOpen = append(s.halfOpen, c)
	s.wg.Add(1)
	s.mu.Unlock()
	if oldest != nil {
		oldest.close(errHalfOpen)
	}
	go func() {
		defer s.wg.Done()
		c.run()
		s.mu.Lock()
		s.notHalfOpen(c)
		delete(s.conns, c)
		connections.Add(-1)
		if c.export != nil {
			s.entered--
		}
		s.mu.Unlock()
		close(c.done)
	}()
}

// notHalfOpen takes c off the list of those in the handshake. REQUIRES s.mu.
func (s *Server) notHalfOpen(c *conn) {
	for i, o := range s.halfOpen {
		if o == c {
			s.halfOpen = append(s.halfOpen[:i], s.halfOpen[i+1:]...)
			return
		}
	}
}

// open returns the export of that name for the caller, checked, and a mark for enter.
func (s *Server) open(name string, c Caller) (*Export, uint64, error) {
	s.mu.Lock()
	mark := s.parted
	s.mu.Unlock()
	e, err := s.opt.Exports.Open(name, c)
	if err == nil {
		err = e.check()
	}
	return e, mark, err
}

// enter makes c a client of the export that open returned with the mark. again
// means that clients were disconnected meanwhile: the export may be gone, open
// it anew.
func (s *Server) enter(c *conn, caller Caller, e *Export, mark uint64) (again bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.parted != mark {
		return true, nil
	}
	if s.draining.Load() || s.closed {
		return false, blockdev.ErrShutdown
	}
	if s.entered >= s.opt.MaxConns {
		return false, &PolicyError{Text: fmt.Sprintf("the limit of %d connections is reached", s.opt.MaxConns)}
	}
	s.notHalfOpen(c)
	c.export, c.caller = e, caller
	s.entered++
	return false, c.nc.SetDeadline(time.Time{})
}

const (
	// settleTime bounds settle. Whoever takes longer is inside the device, which has the
	// request then and orders it before later ones.
	settleTime  = time.Second
	settlePause = time.Millisecond
)

// settle waits until no closed connection of the export is about to hand a request
// to the device, so that a client that comes back is never overtaken by itself.
func (s *Server) settle(export string) {
	end := time.Now().Add(settleTime)
	for _, c := range s.clients(export) {
		select {
		case <-c.stop:
			for c.handing.Load() && time.Now().Before(end) {
				time.Sleep(settlePause)
			}
		default:
		}
	}
}

// Clients returns the number of connections that use the export.
func (s *Server) Clients(export string) int {
	return len(s.clients(export))
}

func (s *Server) clients(export string) []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	var l []*conn
	for c := range s.conns {
		if c.export != nil && c.export.Name == export {
			l = append(l, c)
		}
	}
	return l
}

// Disconnect closes the connections that use the export and waits until the
// device has completed their requests, or for ctx. To keep clients from coming
// back the caller first makes Open refuse them: no export opened before the call
// is used after it.
func (s *Server) Disconnect(ctx context.Context, export string) error {
	s.mu.Lock()
	s.parted++
	s.mu.Unlock()
	l := s.clients(export)
	for _, c := range l {
		c.close(errDisconnected)
	}
	for _, c := range l {
		select {
		case <-c.done:
		case <-ctx.Done():
			return fmt.Errorf("disconnecting the clients of %q: %w", export, ctx.Err())
		}
	}
	return nil
}

// Expel closes the connections that use the export and whose caller is to go,
// without waiting. The caller first makes Open refuse them, as for Disconnect.
func (s *Server) Expel(export string, goes func(Caller) bool) {
	s.mu.Lock()
	s.parted++
	s.mu.Unlock()
	for _, c := range s.clients(export) {
		if goes(c.caller) { // set before c was among them, and not changed
			c.close(errDisconnected)
		}
	}
}

// Shutdown takes the server out of service: it stops accepting, answers new
// options and requests with the protocol's shutdown errors, lets the requests in
// flight complete and be answered, closes the connections and waits for their
// goroutines. When ctx ends first it closes what is left and returns ctx's
// error; goroutines then end as the devices complete.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.draining.Store(true)
	for l := range s.listeners {
		l.Close()
	}
	var l []*conn
	for c := range s.conns {
		l = append(l, c)
	}
	s.mu.Unlock()
	for _, c := range l {
		c.quiesce(ctx)
	}
	s.mu.Lock()
	s.closed = true
	for c := range s.conns {
		c.nc.SetReadDeadline(time.Unix(1, 0)) // wakes the reader, which ends the connection
	}
	s.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	left := len(s.conns)
	for c := range s.conns {
		c.close(errDisconnected)
	}
	s.mu.Unlock()
	return fmt.Errorf("shutting down with %d NBD connections: %w", left, ctx.Err())
}
