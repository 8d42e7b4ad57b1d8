package client

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/nbd"
)

// Options of Dial. The zero value is what a good client uses.
type Options struct {
	// Simple leaves out structured replies, and with them Extents, as the
	// kernel's client does.
	Simple bool
	// BlockSize asks for the export's block sizes, which binds the client to the
	// minimum.
	BlockSize bool
	// TLS demands TLS of the server (nil: plaintext). There is no way back from it:
	// a server that refuses STARTTLS, or cannot prove its name, ends in an error.
	TLS *tls.Config
}

// Client is an export of an NBD server as a blockdev.Device.
type Client struct {
	conn net.Conn
	// Export as the server described it.
	size       int64
	flags      uint16
	minBlock   uint32
	structured bool
	allocation bool
	contextID  uint32

	sendMu sync.Mutex // guards the sending side of conn
	sent   []byte     // Guarded by sendMu: header scratch

	mu sync.Mutex
	// Guarded by mu.
	calls  map[uint64]*call
	cookie uint64
	broken error // the connection is gone
	closed bool  // by Close

	received chan struct{} // closed when the receive goroutine has ended
}

var _ blockdev.Device = (*Client)(nil)

// call is a request in flight. Owner: the receive goroutine, from sending until
// done is closed.
type call struct {
	cmd     uint16
	off     uint64
	length  uint32
	into    []byte // destination of READ
	filled  int
	extents []blockdev.Extent
	err     error
	done    chan struct{}
}

// Dial connects to an export ("" is the default export) at unix:/path or
// tcp:host:port. ctx bounds connecting and the handshake. Errors: *OptionError
// when the server refuses.
func Dial(ctx context.Context, addr, export string, o Options) (*Client, error) {
	conn, err := Connect(ctx, addr)
	if err != nil {
		return nil, err
	}
	return New(ctx, conn, export, o)
}

// New is Dial over a connection, which it takes over: it is closed on an error.
func New(ctx context.Context, conn net.Conn, export string, o Options) (*Client, error) {
	c, h, err := handshake(ctx, conn, export, o)
	if err != nil {
		return nil, err
	}
	c.conn = h.Conn
	go c.receive(h.r)
	return c, nil
}

// Negotiated is a connection on which the handshake is over, for somebody else to use.
type Negotiated struct {
	Conn  net.Conn
	Size  int64  // bytes
	Flags uint16 // nbd.Tx...
}

// Negotiate connects to an export as Dial does and hands the connection over. Simple
// replies are agreed, and nothing is sent or received after the handshake.
func Negotiate(ctx context.Context, addr, export string) (Negotiated, error) {
	conn, err := Connect(ctx, addr)
	if err != nil {
		return Negotiated{}, err
	}
	c, h, err := handshake(ctx, conn, export, Options{Simple: true})
	if err != nil {
		return Negotiated{}, err
	}
	return Negotiated{Conn: h.Conn, Size: c.size, Flags: c.flags}, nil
}

// handshake leads to the transmission phase. It closes conn on an error.
func handshake(ctx context.Context, conn net.Conn, export string, o Options) (*Client, *Handshake, error) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	c := &Client{conn: conn, calls: make(map[uint64]*call), received: make(chan struct{})}
	h, err := greet(conn)
	if err == nil {
		err = c.negotiate(ctx, h, export, o)
	}
	if !stop() {
		err = errors.Join(err, ctx.Err())
	}
	if err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("NBD export %q at %v: %w", export, conn.RemoteAddr(), err)
	}
	return c, h, nil
}

func (c *Client) negotiate(ctx context.Context, h *Handshake, export string, o Options) error {
	if h.Flags&nbd.FlagFixedNewstyle == 0 {
		return fmt.Errorf("%w: not fixed newstyle", ErrProtocol)
	}
	if err := h.SendFlags(uint32(h.Flags & (nbd.FlagFixedNewstyle | nbd.FlagNoZeroes))); err != nil {
		return err
	}
	if o.TLS != nil {
		if err := h.StartTLS(ctx, o.TLS); err != nil {
			return err
		}
	}
	var refused *OptionError
	if !o.Simple {
		_, err := h.Ask(nbd.OptStructuredReply, nil)
		if err != nil && !errors.As(err, &refused) {
			return err
		}
		c.structured = err == nil
	}
	if c.structured {
		l, err := h.Ask(nbd.OptSetMetaContext, ContextData(export, nbd.ContextBaseAllocation))
		if err != nil && !errors.As(err, &refused) {
			return err
		}
		for _, r := range l {
			if r.Type == nbd.RepMetaContext && len(r.Data) > 4 && string(r.Data[4:]) == nbd.ContextBaseAllocation {
				c.contextID, c.allocation = binary.BigEndian.Uint32(r.Data), true
			}
		}
	}
	var infos []uint16
	if o.BlockSize {
		infos = append(infos, nbd.InfoBlockSize)
	}
	l, err := h.Ask(nbd.OptGo, InfoData(export, infos...))
	if err != nil {
		return err
	}
	return c.describe(l)
}

// describe takes over what the server says of the export.
func (c *Client) describe(l []OptReply) error {
	found := false
	c.minBlock = 1
	for _, r := range l {
		if r.Type != nbd.RepInfo || len(r.Data) < 2 {
			return fmt.Errorf("%w: reply of type %#x to GO", ErrProtocol, r.Type)
		}
		b := r.Data[2:]
		switch binary.BigEndian.Uint16(r.Data) {
		case nbd.InfoExport:
			if len(b) != 10 || binary.BigEndian.Uint64(b)>>63 != 0 {
				return fmt.Errorf("%w: export information % x", ErrProtocol, b)
			}
			c.size, c.flags, found = int64(binary.BigEndian.Uint64(b)), binary.BigEndian.Uint16(b[8:]), true
		case nbd.InfoBlockSize:
			if len(b) != 12 {
				return fmt.Errorf("%w: block size information % x", ErrProtocol, b)
			}
			c.minBlock = binary.BigEndian.Uint32(b)
		}
	}
	if !found {
		return fmt.Errorf("%w: no export information", ErrProtocol)
	}
	return nil
}

// begin checks a range and that the client is open.
func (c *Client) begin(off, n int64) error {
	c.mu.Lock()
	closed := c.closed
	c.mu.Unlock()
	if closed {
		return blockdev.ErrClosed
	}
	return blockdev.CheckRange(c.size, off, n)
}

// Size returns the export's size in bytes.
func (c *Client) Size() int64 { return c.size }

// Flags returns the export's transmission flags (nbd.Tx...).
func (c *Client) Flags() uint16 { return c.flags }

// MinBlock returns the smallest block in bytes, 1 unless it was asked for.
func (c *Client) MinBlock() uint32 { return c.minBlock }

// Close sends DISC and waits until the server has answered what is in flight
// and closed the connection. Nothing is flushed. Later calls return
// blockdev.ErrClosed.
func (c *Client) Close() error {
	c.mu.Lock()
	closed := c.closed
	c.closed = true
	c.mu.Unlock()
	if closed {
		return fmt.Errorf("close: %w", blockdev.ErrClosed)
	}
	c.transmit(0, nbd.CmdDisc, 0, 0, 0, nil)
	if cw, ok := c.conn.(interface{ CloseWrite() error }); ok {
		cw.CloseWrite()
	}
	<-c.received
	return nil
}

// Abort cuts the connection, as a client that is killed does.
func (c *Client) Abort() {
	c.conn.Close()
	<-c.received
}

// Ended is closed when the connection is over, whoever ended it.
func (c *Client) Ended() <-chan struct{} { return c.received }

// ReadAt fills p from off.
func (c *Client) ReadAt(p []byte, off int64) error {
	if err := c.begin(off, int64(len(p))); err != nil {
		return err
	}
	for len(p) > 0 {
		n := min(len(p), nbd.MaxPayload)
		if err := c.Do(nbd.CmdRead, 0, uint64(off), uint32(n), p[:n]); err != nil {
			return deviceError("read", off, int64(n), err)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// WriteAt writes p at off.
func (c *Client) WriteAt(p []byte, off int64, flags blockdev.Flags) error {
	if err := c.begin(off, int64(len(p))); err != nil {
		return err
	}
	for len(p) > 0 {
		n := min(len(p), nbd.MaxPayload)
		if err := c.Do(nbd.CmdWrite, wireFlags(flags&blockdev.FUA), uint64(off), uint32(n), p[:n]); err != nil {
			return deviceError("write", off, int64(n), err)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// Zero makes the range read as zeroes.
func (c *Client) Zero(off, n int64, flags blockdev.Flags) error {
	return c.ranged(nbd.CmdWriteZeroes, "zero", off, n, wireFlags(flags))
}

// Trim gives the content of the range up.
func (c *Client) Trim(off, n int64, flags blockdev.Flags) error {
	return c.ranged(nbd.CmdTrim, "trim", off, n, wireFlags(flags&blockdev.FUA))
}

func (c *Client) ranged(cmd uint16, name string, off, n int64, flags uint16) error {
	if err := c.begin(off, n); err != nil {
		return err
	}
	const step = 1 << 31 // a length is 32 bits on the wire
	for n > 0 {
		k := min(n, step)
		if err := c.Do(cmd, flags, uint64(off), uint32(k), nil); err != nil {
			return deviceError(name, off, k, err)
		}
		off, n = off+k, n-k
	}
	return nil
}

// Flush makes what was written durable.
func (c *Client) Flush() error {
	if err := c.Do(nbd.CmdFlush, 0, 0, 0, nil); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return nil
}

// Extents describes a range by BLOCK_STATUS. Without base:allocation it is one
// data extent.
func (c *Client) Extents(off, n int64, limit int) ([]blockdev.Extent, error) {
	if err := c.begin(off, n); err != nil || n == 0 {
		return nil, err
	}
	if !c.allocation {
		return []blockdev.Extent{{Off: off, Len: n}}, nil
	}
	var flags uint16
	if limit == 1 {
		flags = nbd.CmdFlagReqOne
	}
	n = min(n, 1<<31)
	k := &call{cmd: nbd.CmdBlockStatus, off: uint64(off), length: uint32(n), done: make(chan struct{})}
	if err := c.do(k, flags, nil); err != nil {
		return nil, deviceError("block status", off, n, err)
	}
	var l []blockdev.Extent
	for _, x := range k.extents { // neighbours of one kind are joined; longer than asked is cut
		x.Len = min(x.Len, off+n-x.Off)
		if last := len(l) - 1; last >= 0 && l[last].Hole == x.Hole && l[last].Zero == x.Zero {
			l[last].Len += x.Len
		} else if x.Len > 0 && len(l) < limit {
			l = append(l, x)
		} else {
			break
		}
	}
	return l, nil
}

// Do sends one command as it is, unchecked, and waits for its reply; the error
// of the server is an nbd.Errno. p is the payload of WRITE and the destination of
// READ. REQUIRES for a READ len(p) == length; a WRITE sends all of p.
func (c *Client) Do(cmd, flags uint16, off uint64, length uint32, p []byte) error {
	k := &call{cmd: cmd, off: off, length: length, done: make(chan struct{})}
	var payload []byte
	switch cmd {
	case nbd.CmdRead:
		k.into = p
	case nbd.CmdWrite:
		payload = p
	}
	return c.do(k, flags, payload)
}

func (c *Client) do(k *call, flags uint16, payload []byte) error {
	c.mu.Lock()
	err := c.broken
	if c.closed {
		err = blockdev.ErrClosed
	}
	if err != nil {
		c.mu.Unlock()
		return err
	}
	c.cookie++
	cookie := c.cookie
	c.calls[cookie] = k
	c.mu.Unlock()
	c.transmit(cookie, k.cmd, flags, k.off, k.length, payload)
	<-k.done
	return k.err
}

// transmit sends a command. On an error it closes the connection, and the receive
// goroutine fails what waits for replies.
func (c *Client) transmit(cookie uint64, cmd, flags uint16, off uint64, length uint32, payload []byte) {
	c.sendMu.Lock()
	defer c.sendMu.Unlock()
	c.sent = nbd.AppendRequest(c.sent[:0], nbd.RequestHeader{
		RequestMagic: nbd.MagicRequest, CommandFlags: flags, Type: cmd, Handle: cookie, Offset: off, Length: length,
	})
	bufs := net.Buffers{c.sent, payload}
	if _, err := bufs.WriteTo(c.conn); err != nil {
		c.conn.Close()
	}
}

// receive is the receive goroutine.
func (c *Client) receive(r io.Reader) {
	defer close(c.received)
	var err error
	for err == nil {
		err = c.reply(r)
	}
	c.conn.Close()
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("the NBD server closed the connection: %w", io.ErrUnexpectedEOF)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = err
	for cookie, k := range c.calls {
		delete(c.calls, cookie)
		k.err = err
		close(k.done)
	}
}

func wireFlags(f blockdev.Flags) uint16 {
	var w uint16
	if f&blockdev.FUA != 0 {
		w |= nbd.CmdFlagFUA
	}
	if f&blockdev.NoHole != 0 {
		w |= nbd.CmdFlagNoHole
	}
	if f&blockdev.FastZero != 0 {
		w |= nbd.CmdFlagFastZero
	}
	return w
}

// deviceError adds the Device's sentinel for an error number.
func deviceError(what string, off, n int64, err error) error {
	var same error
	switch {
	case errors.Is(err, nbd.EPERM):
		same = blockdev.ErrReadOnly
	case errors.Is(err, nbd.ENOSPC):
		same = blockdev.ErrNoSpace
	case errors.Is(err, nbd.ENOTSUP):
		same = blockdev.ErrNotFast
	case errors.Is(err, nbd.ESHUTDOWN):
		same = blockdev.ErrShutdown
	default:
		return fmt.Errorf("%s %d bytes at %d: %w", what, n, off, err)
	}
	return fmt.Errorf("%s %d bytes at %d: %w: %w", what, n, off, err, same)
}
