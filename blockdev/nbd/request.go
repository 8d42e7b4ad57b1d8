package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"sync/atomic"
	"syscall"

	"github.com/qrbd/qrbd/blockdev"
)

// header is a request's header as it came.
type header = RequestHeader

// terms are what a request is checked against.
type terms struct {
	size       int64
	readOnly   bool
	structured bool
	allocation bool
	align      uint32
}

// cmdFlags lists the flags that each command takes besides FUA, which every
// command takes once it is offered.
var cmdFlags = [...]uint16{
	CmdRead:        CmdFlagDF,
	CmdWrite:       0,
	CmdDisc:        0,
	CmdFlush:       0,
	CmdTrim:        0,
	CmdCache:       0,
	CmdWriteZeroes: CmdFlagNoHole | CmdFlagFastZero,
	CmdBlockStatus: CmdFlagReqOne,
}

// check returns the error that a request deserves before any device sees it, or
// EOK. It is pure.
func (t *terms) check(h *header) Errno {
	if int(h.Type) >= len(cmdFlags) {
		return EINVAL
	}
	allowed := cmdFlags[h.Type] | CmdFlagFUA
	if !t.structured {
		allowed &^= CmdFlagDF // not offered then
	}
	if h.CommandFlags&^allowed != 0 {
		return EINVAL
	}
	beyond, changes := EINVAL, false
	switch h.Type {
	case CmdDisc:
		return EOK
	case CmdFlush:
		if h.Offset != 0 || h.Length != 0 {
			return EINVAL
		}
		return EOK
	case CmdWrite, CmdWriteZeroes:
		beyond, changes = ENOSPC, true
	case CmdTrim:
		changes = true
	case CmdBlockStatus:
		if !t.allocation || h.Length == 0 {
			return EINVAL
		}
	case CmdRead, CmdCache:
	}
	switch {
	case changes && t.readOnly:
		return EPERM
	case blockdev.CheckRange(t.size, int64(h.Offset), int64(h.Length)) != nil: // 2^63 and more are negative there
		return beyond
	case (h.Offset|uint64(h.Length))&uint64(t.align-1) != 0:
		return EINVAL
	case (h.Type == CmdRead || h.Type == CmdWrite) && h.Length > MaxPayload:
		return EINVAL
	}
	return EOK
}

// errnoOf returns the error number for a device's error on a command.
func errnoOf(cmd, flags uint16, err error) Errno {
	switch {
	case err == nil:
		return EOK
	case errors.Is(err, blockdev.ErrRange):
		if cmd == CmdWrite || cmd == CmdWriteZeroes {
			return ENOSPC
		}
		return EINVAL
	case errors.Is(err, blockdev.ErrNoSpace), errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		return ENOSPC
	case errors.Is(err, blockdev.ErrNotFast) && flags&CmdFlagFastZero != 0:
		return ENOTSUP
	case errors.Is(err, blockdev.ErrReadOnly):
		return EPERM
	case errors.Is(err, blockdev.ErrShutdown):
		return ESHUTDOWN
	}
	return EIO
}

// request is one request from its header until its reply is written. Requests
// are reused within a connection. Owner: the reader goroutine, then the device
// (dev), then replies.
type request struct {
	c   *conn
	dev blockdev.Request

	cookie     uint64
	cmd, flags uint16
	// structured: the reply is a chunk, not a simple reply.
	structured bool
	// holdsBytes are counted against the connection's PerConnBytes.
	holdsBytes int64
	// submitted: the reader has come back from Submit, so whoever completes the
	// request sees to it that the reply is sent.
	submitted atomic.Bool

	// The reply.
	head    [36]byte
	headLen int
	payload []byte

	next *request
}

// complete makes the reply to a request that the device has completed.
func (r *request) complete(err error) {
	e := errnoOf(r.cmd, r.flags, err)
	if e != EOK || r.cmd != CmdRead {
		r.answer(e)
		return
	}
	b := r.dev.Buf.Bytes()
	switch {
	case !r.structured:
		r.headLen = len(appendSimple(r.head[:0], r.cookie, EOK))
		r.payload = b
	case r.flags&CmdFlagDF == 0 && allZero(b): // hole: offset 8, length 4
		h := appendChunk(r.head[:0], r.cookie, ChunkOffsetHole, 12)
		h = binary.BigEndian.AppendUint64(h, uint64(r.dev.Off))
		h = binary.BigEndian.AppendUint32(h, uint32(len(b)))
		r.headLen = len(h)
	default: // data: offset 8, data
		h := appendChunk(r.head[:0], r.cookie, ChunkOffsetData, uint32(8+len(b)))
		h = binary.BigEndian.AppendUint64(h, uint64(r.dev.Off))
		r.headLen, r.payload = len(h), b
	}
}

// answer makes a reply without data.
func (r *request) answer(e Errno) {
	r.payload = nil
	var h []byte
	switch {
	case !r.structured:
		h = appendSimple(r.head[:0], r.cookie, e)
	case e == EOK:
		h = appendChunk(r.head[:0], r.cookie, ChunkNone, 0)
	default: // error: number 4, length of the message 2 (no message)
		h = appendChunk(r.head[:0], r.cookie, ChunkError, 6)
		h = binary.BigEndian.AppendUint32(h, uint32(e))
		h = binary.BigEndian.AppendUint16(h, 0)
	}
	r.headLen = len(h)
}

var zeroes [4096]byte

// allZero says whether b, which is not empty, is all zeroes. Data usually shows
// in its first bytes.
func allZero(b []byte) bool {
	if b[0] != 0 || b[len(b)-1] != 0 {
		return false
	}
	for len(b) > len(zeroes) {
		if !bytes.Equal(b[:len(zeroes)], zeroes[:]) {
			return false
		}
		b = b[len(zeroes):]
	}
	return bytes.Equal(b, zeroes[:len(b)])
}
