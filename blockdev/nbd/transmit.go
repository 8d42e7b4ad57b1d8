package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/qrbd/qrbd/blockdev"
)

// errDraining: the reader was woken because the server shuts down.
var errDraining = errors.New("the server shut down")

// statusMax is how many BLOCK_STATUS requests of a connection run at once. They
// block in the device, each in a goroutine.
const statusMax = 4

// transmit reads requests until the client disconnects (nil after DISC) or the
// connection fails.
func (c *conn) transmit() error {
	t := &terms{
		size: c.export.Device.Size(), readOnly: c.export.ReadOnly,
		structured: c.structured, allocation: c.allocation, align: c.align,
	}
	for {
		b, err := c.src.next(requestLen)
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) && c.srv.draining.Load() {
				return errDraining
			}
			return err
		}
		h := DecodeRequest((*[requestLen]byte)(b))
		if h.RequestMagic != MagicRequest {
			return fmt.Errorf("%w: request magic %#x", errProtocol, h.RequestMagic)
		}
		e := t.check(&h)
		if h.Type == CmdDisc && e == EOK {
			return nil
		}
		busy.Add(1)
		c.inDevice.Add(1) // before draining is read, so that quiesce misses nothing
		if e == EOK && c.srv.draining.Load() {
			if c.srv.opt.LeaveUnanswered {
				c.leave()
				return errDraining
			}
			e = ESHUTDOWN
		}
		if e == EOK && (h.Length > 0 || h.Type == CmdFlush) {
			err = c.start(&h)
		} else {
			err = c.answer(&h, e)
			c.leave()
		}
		if err != nil {
			return err
		}
	}
}

// answer replies to a request that no device sees, after its payload.
func (c *conn) answer(h *header, e Errno) error {
	if h.Type == CmdWrite {
		if err := c.src.discard(int64(h.Length)); err != nil {
			return err
		}
	}
	r := c.acquire(h, 0)
	r.answer(e)
	c.out.push(r)
	return nil
}

// start hands a valid request to the device.
func (c *conn) start(h *header) error {
	if h.Type == CmdBlockStatus {
		c.startStatus(h)
		return nil
	}
	var payload int64
	switch h.Type {
	case CmdRead, CmdWrite:
		payload = int64(h.Length)
	case CmdCache:
		payload = min(int64(h.Length), blockdev.MaxBuffer)
	}
	r := c.acquire(h, payload)
	d := &r.dev
	d.Off, d.Len, d.Flags = int64(h.Offset), int64(h.Length), 0
	if payload > 0 {
		d.Len = payload
		if d.Buf = c.buffer(int(payload)); d.Buf == nil {
			return c.drop(r, errDisconnected)
		}
	}
	switch h.Type {
	case CmdRead, CmdCache: // caching is reading it, to no one
		d.Op = blockdev.OpRead
	case CmdWrite:
		d.Op = blockdev.OpWrite
		if err := c.src.readFull(d.Buf.Bytes()); err != nil {
			return c.drop(r, err)
		}
	case CmdWriteZeroes:
		d.Op = blockdev.OpZero
	case CmdTrim:
		d.Op = blockdev.OpTrim
	case CmdFlush:
		d.Op = blockdev.OpFlush
	}
	d.Flags = deviceFlags(h.Type, h.CommandFlags)
	// A client that was disconnected sends what was not answered again: what is left
	// here of its old connection must not come after that.
	c.handing.Store(true)
	defer c.handing.Store(false)
	select {
	case <-c.stop:
		return c.drop(r, errDisconnected)
	default:
	}
	if c.srv.opt.LeaveUnanswered && c.deserted() {
		return c.drop(r, errLeft)
	}
	c.export.Device.Submit(d)
	r.submitted.Store(true)
	return nil
}

// desertedPause is how old the answer to deserted may be for requests that were read
// together.
const desertedPause = 100 * time.Millisecond

// deserted reports whether the client has given the connection up. One that sends again
// what was not answered has then sent this elsewhere, maybe long ago: what is left here
// must not come after that.
func (c *conn) deserted() bool {
	now := time.Now()
	if !c.src.fresh && now.Sub(c.looked) < desertedPause {
		return false
	}
	c.src.fresh, c.looked = false, now
	return c.src.st.hungUp()
}

// deviceFlags translates a command's flags to the device's. FUA means nothing to
// a command that changes nothing.
func deviceFlags(cmd, flags uint16) blockdev.Flags {
	var f blockdev.Flags
	switch cmd {
	case CmdWrite, CmdTrim, CmdWriteZeroes:
		if flags&CmdFlagFUA != 0 {
			f |= blockdev.FUA
		}
	}
	if flags&CmdFlagNoHole != 0 {
		f |= blockdev.NoHole
	}
	if flags&CmdFlagFastZero != 0 {
		f |= blockdev.FastZero
	}
	return f
}

// drop recycles a request that did not reach the device because the connection
// ends with err.
func (c *conn) drop(r *request, err error) error {
	c.close(err)
	r.answer(EIO)
	c.out.push(r)
	c.leave()
	return err
}

// buffer returns a buffer of n bytes, or nil when the connection is closed
// while it waits for one.
func (c *conn) buffer(n int) *blockdev.Buffer {
	if b := c.srv.opt.Pool.TryGet(n); b != nil {
		return b
	}
	c.out.flush()
	b := c.srv.opt.Pool.Get(n, c.stop)
	c.out.resume()
	return b
}

// acquire returns a request for the header with n bytes on its account, waiting
// while the connection has too much in flight.
func (c *conn) acquire(h *header, n int64) *request {
	if c.local != nil && c.out.roomFor(n) {
		c.out.bytes.Add(n)
	} else {
		c.out.flush()
		c.local = c.out.take(c.local, c, n)
		c.out.resume()
	}
	r := c.local
	c.local = r.next
	r.cookie, r.cmd, r.flags, r.holdsBytes = h.Handle, h.Type, h.CommandFlags, n
	// With structured replies negotiated a READ must be answered by chunks;
	// BLOCK_STATUS knows nothing else.
	r.structured = c.structured && (h.Type == CmdRead || h.Type == CmdBlockStatus)
	r.submitted.Store(false)
	return r
}

func newRequest(c *conn) *request {
	r := &request{c: c}
	r.dev.Tag, r.dev.Done = r, requestDone
	return r
}

// startStatus answers BLOCK_STATUS from a goroutine of its own.
func (c *conn) startStatus(h *header) {
	r := c.acquire(h, 0)
	r.dev.Off, r.dev.Len = int64(h.Offset), int64(h.Length)
	select {
	case c.status <- struct{}{}:
	default:
		c.out.flush()
		c.status <- struct{}{}
		c.out.resume()
	}
	r.submitted.Store(true)
	go func() {
		limit := extentsMax
		if r.flags&CmdFlagReqOne != 0 {
			limit = 1
		}
		l, err := c.export.Device.Extents(r.dev.Off, r.dev.Len, limit)
		<-c.status
		r.describe(l, err)
		c.out.push(r)
		c.leave()
	}()
}

// describe makes the reply to BLOCK_STATUS: context 4, then length 4 and state 4
// per extent. What the device says is cut to the range asked for; extents that
// do not continue each other end the reply, so that a client is never told
// wrong.
func (r *request) describe(l []blockdev.Extent, err error) {
	at, end := r.dev.Off, r.dev.Off+r.dev.Len
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 4+8*len(l)), allocationID)
	for _, x := range l {
		stop := min(x.End(), end)
		if x.Off > at || stop <= at || len(b) >= 4+8*extentsMax {
			break
		}
		b = binary.BigEndian.AppendUint32(b, uint32(stop-at))
		b = binary.BigEndian.AppendUint32(b, state(x))
		at = stop
	}
	if err == nil && at == r.dev.Off {
		err = fmt.Errorf("no extent at %d", at)
	}
	if err != nil {
		r.answer(errnoOf(r.cmd, r.flags, err))
		return
	}
	r.headLen = len(appendChunk(r.head[:0], r.cookie, ChunkBlockStatus, uint32(len(b))))
	r.payload = b
}

func state(x blockdev.Extent) uint32 {
	var s uint32
	if x.Hole {
		s |= StateHole
	}
	if x.Zero {
		s |= StateZero
	}
	return s
}
