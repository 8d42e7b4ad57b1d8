package client

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/nbd"
)

const (
	errorChunkMax = 4096 + 14   // error 4, length 2, message, offset 8
	statusMax     = 8<<20 + 4   // a context and 2^20 extents
	statusStep    = 8 * 8 << 10 // extents are read in steps, not by the length claimed
)

// reply reads one reply and completes its call if it is the last. An error ends
// the connection.
func (c *Client) reply(r io.Reader) error {
	var b [20]byte
	if _, err := io.ReadFull(r, b[:16]); err != nil {
		return err
	}
	switch binary.BigEndian.Uint32(b[:]) {
	case nbd.MagicReply:
		return c.simple(r, nbd.Errno(binary.BigEndian.Uint32(b[4:])), binary.BigEndian.Uint64(b[8:]))
	case nbd.MagicStructured:
		if !c.structured {
			return fmt.Errorf("%w: chunk without structured replies", ErrProtocol)
		}
		if _, err := io.ReadFull(r, b[16:]); err != nil {
			return err
		}
		return c.chunk(r, binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:]),
			binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint32(b[16:]))
	}
	return fmt.Errorf("%w: reply magic % x", ErrProtocol, b[:4])
}

func (c *Client) find(cookie uint64) (*call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.calls[cookie]; k != nil {
		return k, nil
	}
	return nil, fmt.Errorf("%w: reply to no request (%#x)", ErrProtocol, cookie)
}

func (c *Client) complete(cookie uint64, k *call) {
	c.mu.Lock()
	delete(c.calls, cookie)
	c.mu.Unlock()
	close(k.done)
}

func (c *Client) simple(r io.Reader, e nbd.Errno, cookie uint64) error {
	k, err := c.find(cookie)
	if err != nil {
		return err
	}
	if c.structured && (k.cmd == nbd.CmdRead || k.cmd == nbd.CmdBlockStatus) {
		return fmt.Errorf("%w: simple reply to command %d", ErrProtocol, k.cmd)
	}
	if e != nbd.EOK {
		k.err = e
	} else if _, err := io.ReadFull(r, k.into); err != nil {
		return err
	}
	c.complete(cookie, k)
	return nil
}

func (c *Client) chunk(r io.Reader, flags, kind uint16, cookie uint64, n uint32) error {
	k, err := c.find(cookie)
	if err != nil {
		return err
	}
	bad := func() error {
		return fmt.Errorf("%w: chunk of type %#x, %d bytes, to command %d", ErrProtocol, kind, n, k.cmd)
	}
	done := flags&nbd.ChunkDone != 0
	switch {
	case kind == nbd.ChunkNone:
		if n != 0 || !done {
			return bad()
		}
	case kind == nbd.ChunkOffsetData && k.cmd == nbd.CmdRead && n > 8:
		p, err := k.part(r, n-8)
		if err != nil {
			return err
		}
		if _, err := io.ReadFull(r, p); err != nil {
			return err
		}
	case kind == nbd.ChunkOffsetHole && k.cmd == nbd.CmdRead && n == 12:
		p, err := k.hole(r)
		if err != nil {
			return err
		}
		clear(p)
	case kind == nbd.ChunkBlockStatus && k.cmd == nbd.CmdBlockStatus && n >= 12 && n <= statusMax && n%8 == 4 && k.extents == nil:
		if err := c.blockStatus(r, k, n); err != nil {
			return err
		}
	case kind&(1<<15) != 0 && n >= 6 && n <= errorChunkMax:
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			return err
		}
		e := nbd.Errno(binary.BigEndian.Uint32(b))
		if e == nbd.EOK || int(binary.BigEndian.Uint16(b[4:])) > len(b)-6 {
			return bad()
		}
		k.err = e
	default:
		return bad()
	}
	if !done {
		return nil
	}
	if k.err == nil && (k.filled != len(k.into) || k.cmd == nbd.CmdBlockStatus && k.extents == nil) {
		return fmt.Errorf("%w: command %d ended with %d of %d bytes", ErrProtocol, k.cmd, k.filled, len(k.into))
	}
	c.complete(cookie, k)
	return nil
}

// part reads the offset of n bytes of a READ and returns where they belong.
func (k *call) part(r io.Reader, n uint32) ([]byte, error) {
	var b [8]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return nil, err
	}
	return k.place(binary.BigEndian.Uint64(b[:]), n)
}

// hole reads offset and length of a hole in a READ and returns where it belongs.
func (k *call) hole(r io.Reader) ([]byte, error) {
	var b [12]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return nil, err
	}
	return k.place(binary.BigEndian.Uint64(b[:]), binary.BigEndian.Uint32(b[8:]))
}

func (k *call) place(off uint64, n uint32) ([]byte, error) {
	at := off - k.off
	if off < k.off || at > uint64(len(k.into)) || uint64(n) > uint64(len(k.into))-at || int(n) > len(k.into)-k.filled {
		return nil, fmt.Errorf("%w: %d bytes at %d in reply to a read of %d at %d", ErrProtocol, n, off, len(k.into), k.off)
	}
	k.filled += int(n)
	return k.into[at : at+uint64(n)], nil
}

// blockStatus reads the extents of a BLOCK_STATUS chunk of n bytes.
func (c *Client) blockStatus(r io.Reader, k *call, n uint32) error {
	var id [4]byte
	if _, err := io.ReadFull(r, id[:]); err != nil {
		return err
	}
	if binary.BigEndian.Uint32(id[:]) != c.contextID {
		return fmt.Errorf("%w: status of unknown context % x", ErrProtocol, id)
	}
	at := int64(k.off)
	for left := int(n - 4); left > 0; {
		b := make([]byte, min(left, statusStep))
		if _, err := io.ReadFull(r, b); err != nil {
			return err
		}
		left -= len(b)
		for ; len(b) > 0; b = b[8:] {
			length, state := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
			if length == 0 || at >= int64(k.off)+int64(k.length) {
				return fmt.Errorf("%w: extent of %d bytes at %d", ErrProtocol, length, at)
			}
			k.extents = append(k.extents, blockdev.Extent{
				Off: at, Len: int64(length), Hole: state&nbd.StateHole != 0, Zero: state&nbd.StateZero != 0,
			})
			at += int64(length)
		}
	}
	return nil
}
