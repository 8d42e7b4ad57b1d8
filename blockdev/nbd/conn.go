package nbd

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/qrbd/qrbd/blockdev"
)

// Why a connection ended.
var (
	errLeft         = errors.New("the client disconnected")
	errHalfOpen     = errors.New("displaced by a newer connection during the handshake")
	errDisconnected = errors.New("disconnected by the server")
)

const handshakeBuffer = 4096 // bytes; a half-open connection holds little more

// conn is one client's connection.
type conn struct {
	srv  *Server
	nc   net.Conn // the socket; closing it ends everything
	name string   // the client's address, for logs

	// What is spoken over: nc, or TLS over it. Owner: the reader goroutine, which
	// sets it in the handshake, and then whoever it starts.
	rw  net.Conn
	tls *tls.Conn // nil without TLS

	// done is closed when the device has completed the last request and the
	// goroutines have ended.
	done chan struct{}

	closeOnce sync.Once
	closeErr  error
	// stop is closed by close; releases a reader that waits for a buffer.
	stop chan struct{}

	// Terms of the transmission phase, set at the end of the handshake.
	export     *Export // written under srv.mu
	caller     Caller  // written under srv.mu
	structured bool
	allocation bool   // base:allocation was selected for this export
	align      uint32 // alignment in bytes that the client is held to

	// Transmission phase. Owner: the reader goroutine.
	src    source
	out    replies
	local  *request // idle requests that only the reader sees
	status chan struct{}
	looked time.Time // when deserted last asked

	// handing: the reader is between looking whether the connection was closed and
	// coming back from Submit.
	handing atomic.Bool

	// inDevice counts the requests that the device has not completed.
	inDevice atomic.Int64
	// quiet gets a token when inDevice falls to zero while the server drains.
	quiet chan struct{}
}

func newConn(s *Server, nc net.Conn) *conn {
	nc.SetDeadline(time.Now().Add(s.opt.HandshakeTimeout))
	return &conn{
		srv: s, nc: nc, rw: nc, name: nc.RemoteAddr().String(),
		done: make(chan struct{}), stop: make(chan struct{}), quiet: make(chan struct{}, 1),
	}
}

// run is the connection's reader goroutine, from handshake to teardown.
func (c *conn) run() {
	log := c.srv.opt.Log.With("client", c.name)
	h := handshake{c: c, br: bufio.NewReaderSize(c.rw, handshakeBuffer), caller: Caller{Addr: c.name}}
	if err := h.haggle(); err != nil {
		if errors.Is(err, errAborted) {
			c.bye()
		}
		c.close(err)
		log.Debug("NBD handshake ended", "reason", c.closeErr)
		return
	}
	log = log.With("export", c.export.Name)
	if names := h.caller.Names(); len(names) > 0 {
		log = log.With("certificate", names)
	}
	log.Info("NBD client connected", "structured", c.structured, "read-only", c.export.ReadOnly)

	early, _ := h.br.Peek(h.br.Buffered())
	st := newStream(c.rw, c.srv.opt.StallTimeout)
	c.out.init(st, c.srv.opt)
	c.out.broke = c.close
	c.src.init(st, early, c.out.flush, c.out.resume)
	c.status = make(chan struct{}, statusMax)
	writer := make(chan struct{})
	go func() {
		defer close(writer)
		c.out.run()
	}()

	err := c.transmit()
	if !orderly(err) {
		// Nobody reads replies any more, or nobody should.
		c.close(err)
	}
	c.out.settle(c.local)
	if orderly(err) {
		c.bye()
	}
	if err == nil {
		err = errLeft
	}
	c.close(err)
	<-writer
	log.Info("NBD client disconnected", "reason", c.closeErr)
}

// orderly says whether the replies to what is in flight are still to be sent:
// after DISC (nil), after the client closed its sending side, and in a shutdown.
func orderly(err error) bool {
	return err == nil || errors.Is(err, io.EOF) || errors.Is(err, errDraining)
}

// close ends the connection; only the first reason counts. Requests in the
// device go on; none follows, whatever the reader has in its buffer.
func (c *conn) close(err error) {
	c.closeOnce.Do(func() {
		c.closeErr = err
		close(c.stop)
		c.nc.Close()
	})
}

// quiesce waits until no request is in the device, or for ctx. REQUIRES that the
// server is draining, so that none follows.
func (c *conn) quiesce(ctx context.Context) {
	for c.inDevice.Load() != 0 {
		select {
		case <-c.quiet:
		case <-ctx.Done():
			return
		}
	}
}

// leave notes that the device has completed a request.
func (c *conn) leave() {
	busy.Add(-1)
	if c.inDevice.Add(-1) == 0 && c.srv.draining.Load() {
		select {
		case c.quiet <- struct{}{}:
		default:
		}
	}
}

// requestDone is the Done of every request.
func requestDone(d *blockdev.Request, err error) {
	r := d.Tag.(*request)
	c := r.c
	r.complete(err)
	if r.payload == nil && d.Buf != nil {
		d.Buf.Release() // a client that takes no replies does not keep it
		d.Buf = nil
	}
	c.out.push(r)
	c.leave()
}

// temporary says whether accepting may succeed again after a pause.
func temporary(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
