package nbd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/nbd"
	"github.com/qrbd/qrbd/blockdev/nbd/client"
)

var styles = map[string]client.Options{"structured": {}, "simple": {Simple: true}}

// TestRequestErrors: lines 16, 17, 20, 22 and 25: what a request that cannot be
// gets, and that the connection goes on.
func TestRequestErrors(t *testing.T) {
	const (
		fua, noHole, df, one, fast = nbd.CmdFlagFUA, nbd.CmdFlagNoHole, nbd.CmdFlagDF, nbd.CmdFlagReqOne, nbd.CmdFlagFastZero
		maxU64                     = math.MaxUint64
	)
	type want struct{ rw, ro nbd.Errno } // on a writable and a read-only export
	ok, inval, perm := want{nbd.EOK, nbd.EOK}, want{nbd.EINVAL, nbd.EINVAL}, want{nbd.EOK, nbd.EPERM}
	nospc := want{nbd.ENOSPC, nbd.EPERM}
	invalPerm := want{nbd.EINVAL, nbd.EPERM}
	tests := []struct {
		cmd, flags uint16
		off        uint64
		n          uint32
		want       want
	}{
		{nbd.CmdRead, 0, 0, 512, ok}, {nbd.CmdRead, 0, 1, 3, ok}, {nbd.CmdRead, fua, 0, 512, ok}, {nbd.CmdRead, 0, size - 1, 1, ok},
		{nbd.CmdRead, 0, size - 1, 2, inval}, {nbd.CmdRead, 0, size, 1, inval}, {nbd.CmdRead, 0, maxU64, 1, inval},
		{nbd.CmdRead, 0, maxU64 - 511, 512, inval}, {nbd.CmdRead, 0, 1 << 63, 512, inval}, {nbd.CmdRead, 0, math.MaxInt64, 512, inval},
		{nbd.CmdRead, noHole, 0, 512, inval}, {nbd.CmdRead, 1 << 15, 0, 512, inval},
		{nbd.CmdWrite, 0, 0, 512, perm}, {nbd.CmdWrite, fua, 511, 513, perm},
		{nbd.CmdWrite, 0, size - 1, 2, nospc}, {nbd.CmdWrite, fua, size, 512, nospc}, {nbd.CmdWrite, 0, maxU64 - 511, 512, nospc},
		{nbd.CmdWrite, 0, math.MaxInt64, 512, nospc},
		{nbd.CmdWrite, df, 0, 512, inval}, {nbd.CmdWrite, noHole, 0, 512, inval}, {nbd.CmdWrite, 1 << 5, 0, 512, inval},
		{nbd.CmdFlush, 0, 0, 0, ok}, {nbd.CmdFlush, fua, 0, 0, ok},
		{nbd.CmdFlush, 0, 1, 0, inval}, {nbd.CmdFlush, 0, 0, 1, inval}, {nbd.CmdFlush, df, 0, 0, inval},
		{nbd.CmdTrim, 0, 0, 4096, perm}, {nbd.CmdTrim, fua, 100, 5000, perm},
		{nbd.CmdTrim, 0, size, 512, invalPerm}, {nbd.CmdTrim, 0, 4096, math.MaxUint32, invalPerm}, {nbd.CmdTrim, 0, maxU64, 2, invalPerm},
		{nbd.CmdTrim, fast, 0, 512, inval},
		{nbd.CmdWriteZeroes, 0, 0, 4096, perm}, {nbd.CmdWriteZeroes, fua | noHole, 0, 4096, perm}, {nbd.CmdWriteZeroes, fua | fast, 0, 4096, perm},
		{nbd.CmdWriteZeroes, 0, size, 512, nospc}, {nbd.CmdWriteZeroes, 0, 0, math.MaxUint32, nospc},
		{nbd.CmdWriteZeroes, 0, 512, math.MaxUint32 - 511, nospc}, {nbd.CmdWriteZeroes, fast, maxU64 - 511, 512, nospc},
		{nbd.CmdWriteZeroes, df, 0, 512, inval}, {nbd.CmdWriteZeroes, one, 0, 512, inval},
		{nbd.CmdCache, 0, 0, 4096, ok}, {nbd.CmdCache, fua, 0, size, ok}, {nbd.CmdCache, 0, size, 1, inval},
		{nbd.CmdBlockStatus, 0, 0, 0, inval}, {nbd.CmdBlockStatus, 0, size, 512, inval},
		{nbd.CmdBlockStatus, 0, 0, math.MaxUint32, inval}, {nbd.CmdBlockStatus, 0, 512, math.MaxUint32 - 511, inval},
		{nbd.CmdBlockStatus, noHole, 0, 512, inval},
		{8, 0, 0, 512, inval}, {9, fua, 0, 512, inval}, {65535, 65535, 0, math.MaxUint32, inval},
		// Nothing to do, but nothing wrong either.
		{nbd.CmdRead, 0, 0, 0, ok}, {nbd.CmdWrite, fua, 0, 0, perm}, {nbd.CmdTrim, 0, size, 0, perm}, {nbd.CmdWriteZeroes, 0, 7, 0, perm},
		{nbd.CmdCache, 0, 0, 0, ok}, {nbd.CmdRead, 0, size + 1, 0, inval},
	}
	for style, o := range styles {
		for _, readOnly := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s read-only=%v", style, readOnly), func(t *testing.T) {
				d := newDisk(size)
				s := serve(t, nbd.Options{Exports: newExports(&nbd.Export{Name: "crm", Device: d, ReadOnly: readOnly})})
				c := dial(t, s, "crm", o)
				for _, tt := range tests {
					want := tt.want.rw
					if readOnly {
						want = tt.want.ro
					}
					var p []byte
					if tt.cmd == nbd.CmdRead || tt.cmd == nbd.CmdWrite {
						p = make([]byte, tt.n)
					}
					d.requests()
					err := c.Do(tt.cmd, tt.flags, tt.off, tt.n, p)
					if want == nbd.EOK && err != nil || want != nbd.EOK && !errors.Is(err, want) {
						t.Errorf("command %d flags %#x, %d bytes at %d: %v, want %v", tt.cmd, tt.flags, tt.n, tt.off, err, want)
					}
					if l := d.requests(); want != nbd.EOK && len(l) > 0 {
						t.Errorf("command %d flags %#x, %d bytes at %d reached the device: %v", tt.cmd, tt.flags, tt.n, tt.off, l)
					}
				}
				// DF is offered with structured replies only.
				err := c.Do(nbd.CmdRead, df, 0, 512, make([]byte, 512))
				if structured := !o.Simple; structured != (err == nil) {
					t.Errorf("DF: %v", err)
				}
			})
		}
	}
}

// TestSizes: line 22, 32 MiB are served, more than that is refused with its
// payload consumed, and ranges without payload have no such limit.
func TestSizes(t *testing.T) {
	const big = 8 << 30
	d := newDisk(big)
	s := serve(t, nbd.Options{Exports: newExports(&nbd.Export{Name: "crm", Device: d})})
	c := dial(t, s, "", client.Options{})
	p := bytes.Repeat([]byte{7}, nbd.MaxPayload+1)
	must(t, c.Do(nbd.CmdWrite, 0, 5, nbd.MaxPayload, p[:nbd.MaxPayload]))
	q := make([]byte, nbd.MaxPayload+1)
	must(t, c.Do(nbd.CmdRead, nbd.CmdFlagDF, 5, nbd.MaxPayload, q[:nbd.MaxPayload]))
	if !bytes.Equal(p[:nbd.MaxPayload], q[:nbd.MaxPayload]) {
		t.Error("32 MiB read back differently")
	}
	wantErr(t, "WRITE of 32 MiB + 1", c.Do(nbd.CmdWrite, 0, 0, nbd.MaxPayload+1, p), nbd.EINVAL)
	wantErr(t, "READ of 32 MiB + 1", c.Do(nbd.CmdRead, 0, 0, nbd.MaxPayload+1, q), nbd.EINVAL)
	for _, cmd := range []uint16{nbd.CmdTrim, nbd.CmdWriteZeroes, nbd.CmdCache} {
		must(t, c.Do(cmd, 0, 4096, math.MaxUint32, nil))
	}
	l, err := c.Extents(0, big, 1000)
	must(t, err)
	if len(l) == 0 || !l[len(l)-1].Zero {
		t.Errorf("extents %v", l)
	}
}

// TestAlignment: line 27, only a client that was told the minimum is held to it.
func TestAlignment(t *testing.T) {
	s := serve(t, nbd.Options{Exports: newExports(&nbd.Export{Name: "crm", Device: newDisk(size), MinBlock: 512})})
	told, not := dial(t, s, "", client.Options{BlockSize: true}), dial(t, s, "", client.Options{})
	if told.MinBlock() != 512 {
		t.Errorf("minimum %d", told.MinBlock())
	}
	for _, r := range [][2]uint64{{1, 512}, {512, 511}, {256, 256}} {
		for _, cmd := range []uint16{nbd.CmdRead, nbd.CmdWrite, nbd.CmdTrim, nbd.CmdWriteZeroes, nbd.CmdBlockStatus} {
			p := make([]byte, r[1])
			wantErr(t, fmt.Sprintf("told, command %d at %v", cmd, r), told.Do(cmd, 0, r[0], uint32(r[1]), p), nbd.EINVAL)
			if cmd != nbd.CmdBlockStatus {
				must(t, not.Do(cmd, 0, r[0], uint32(r[1]), p))
			}
		}
	}
	must(t, told.Do(nbd.CmdRead, 0, 512, 1024, make([]byte, 1024)))
}

// TestDeviceErrors: lines 18, 20 and 23: the error numbers for a device's errors.
func TestDeviceErrors(t *testing.T) {
	tests := []struct {
		err        error
		cmd, flags uint16
		want       nbd.Errno
	}{
		{blockdev.ErrRange, nbd.CmdRead, 0, nbd.EINVAL}, {blockdev.ErrRange, nbd.CmdTrim, 0, nbd.EINVAL},
		{blockdev.ErrRange, nbd.CmdWrite, 0, nbd.ENOSPC}, {blockdev.ErrRange, nbd.CmdWriteZeroes, 0, nbd.ENOSPC},
		{blockdev.ErrNoSpace, nbd.CmdWrite, 0, nbd.ENOSPC}, {syscall.EDQUOT, nbd.CmdWrite, 0, nbd.ENOSPC}, {syscall.EFBIG, nbd.CmdWriteZeroes, 0, nbd.ENOSPC},
		{blockdev.ErrNotFast, nbd.CmdWriteZeroes, nbd.CmdFlagFastZero, nbd.ENOTSUP}, {blockdev.ErrNotFast, nbd.CmdWriteZeroes, 0, nbd.EIO},
		{blockdev.ErrReadOnly, nbd.CmdTrim, 0, nbd.EPERM}, {blockdev.ErrShutdown, nbd.CmdWrite, 0, nbd.ESHUTDOWN},
		{blockdev.ErrShutdown, nbd.CmdRead, 0, nbd.ESHUTDOWN},
		{blockdev.ErrFailed, nbd.CmdFlush, 0, nbd.EIO}, {blockdev.ErrClosed, nbd.CmdRead, 0, nbd.EIO}, {errors.New("odd"), nbd.CmdRead, 0, nbd.EIO},
		{syscall.ENOMEM, nbd.CmdRead, 0, nbd.EIO}, {syscall.ENOTSUP, nbd.CmdTrim, 0, nbd.EIO},
	}
	for style, o := range styles {
		s, d := serveDisk(t)
		c := dial(t, s, "", o)
		for _, tt := range tests {
			d.setFail(func(*blockdev.Request) error { return fmt.Errorf("wrapped: %w", tt.err) })
			n := uint32(512)
			if tt.cmd == nbd.CmdFlush {
				n = 0
			}
			wantErr(t, fmt.Sprintf("%s command %d on %v", style, tt.cmd, tt.err), c.Do(tt.cmd, tt.flags, 0, n, make([]byte, n)), tt.want)
		}
		// Line 18: a failed flush stays failed as long as the device says so, and
		// the connection lives.
		d.setFail(nil)
		must(t, c.Flush())
	}
}

// TestCommands: lines 17, 21, 23 and 24: what reaches the device, and what comes
// back.
func TestCommands(t *testing.T) {
	for style, o := range styles {
		t.Run(style, func(t *testing.T) {
			s, d := serveDisk(t)
			c := dial(t, s, "", o)
			r := func(op blockdev.Op, f blockdev.Flags, off, n int64) asked { return asked{op, f, off, n} }
			tests := []struct {
				cmd, flags uint16
				off        uint64
				n          uint32
				want       asked
			}{
				{nbd.CmdWrite, 0, 3, 5, r(blockdev.OpWrite, 0, 3, 5)},
				{nbd.CmdWrite, nbd.CmdFlagFUA, 3, 5, r(blockdev.OpWrite, blockdev.FUA, 3, 5)},
				{nbd.CmdRead, nbd.CmdFlagFUA, 3, 5, r(blockdev.OpRead, 0, 3, 5)},
				{nbd.CmdFlush, nbd.CmdFlagFUA, 0, 0, r(blockdev.OpFlush, 0, 0, 0)},
				{nbd.CmdTrim, nbd.CmdFlagFUA, 1, 9000, r(blockdev.OpTrim, blockdev.FUA, 1, 9000)},
				{nbd.CmdWriteZeroes, 0, 1, 9000, r(blockdev.OpZero, 0, 1, 9000)},
				{nbd.CmdWriteZeroes, nbd.CmdFlagNoHole, 1, 9000, r(blockdev.OpZero, blockdev.NoHole, 1, 9000)},
				{nbd.CmdWriteZeroes, nbd.CmdFlagFastZero | nbd.CmdFlagFUA, 1, 9000, r(blockdev.OpZero, blockdev.FastZero|blockdev.FUA, 1, 9000)},
				{nbd.CmdCache, 0, 0, 4096, r(blockdev.OpRead, 0, 0, 4096)},
			}
			for _, tt := range tests {
				d.requests()
				must(t, c.Do(tt.cmd, tt.flags, tt.off, tt.n, make([]byte, tt.n)))
				if got := d.requests(); !slices.Equal(got, []asked{tt.want}) {
					t.Errorf("command %d flags %#x: device got %v, want %v", tt.cmd, tt.flags, got, tt.want)
				}
			}
			// Data, zeroes and a mixture come back as they are.
			for _, off := range []int64{0, 4096, 5000} {
				must(t, c.WriteAt([]byte{1, 0, 2}, off, 0))
			}
			want, got := make([]byte, 60000), make([]byte, 60000)
			must(t, d.mem.ReadAt(want, 0))
			must(t, c.ReadAt(got, 0))
			if !bytes.Equal(want, got) {
				t.Error("read differs from the device")
			}
			must(t, c.ReadAt(got, 100000)) // all hole
			if !bytes.Equal(got, make([]byte, 60000)) {
				t.Error("hole does not read as zeroes")
			}
		})
	}
}

// TestReadError: line 21, an error after a read began has no success header
// before it, and the connection goes on.
func TestReadError(t *testing.T) {
	for style, o := range styles {
		s, d := serveDisk(t)
		c := dial(t, s, "", o)
		d.setFail(func(r *blockdev.Request) error {
			clear(r.Buf.Bytes()[:100])
			return blockdev.ErrFailed
		})
		wantErr(t, style, c.Do(nbd.CmdRead, 0, 0, 4096, make([]byte, 4096)), nbd.EIO)
		d.setFail(nil)
		must(t, c.ReadAt(make([]byte, 4096), 0))
	}
}

// TestOutOfOrder: line 28, replies come as the device completes, under cookies
// of any value; line 16, a flush does not wait behind an unanswered write.
func TestOutOfOrder(t *testing.T) {
	s, d := serveDisk(t)
	h := greet(t, s, bothFlags)
	if got, _ := outcome(h, nbd.OptGo, client.InfoData("")); got != "ack" {
		t.Fatal(got)
	}
	d.setHold(func(r *blockdev.Request) bool { return r.Op == blockdev.OpTrim })
	cookies := []uint64{math.MaxUint64, 0, 0x2560951367446698}
	for _, k := range cookies {
		_, err := h.Conn.Write(request(nbd.CmdTrim, 0, k, 0, 512))
		must(t, err)
	}
	d.wait(t, len(cookies))
	_, err := h.Conn.Write(request(nbd.CmdFlush, 0, 42, 0, 0))
	must(t, err)
	reply := func(want uint64) {
		t.Helper()
		b := make([]byte, 16)
		if _, err := io.ReadFull(h, b); err != nil {
			t.Fatal(err)
		}
		if got := binary.BigEndian.Uint64(b[8:]); got != want || binary.BigEndian.Uint32(b[4:]) != 0 {
			t.Errorf("reply % x, want cookie %#x", b, want)
		}
	}
	reply(42)
	d.release() // newest first
	for _, k := range slices.Backward(cookies) {
		reply(k)
	}
}

// TestPipelined: requests that arrive together with the end of the handshake are
// served.
func TestPipelined(t *testing.T) {
	s, d := serveDisk(t)
	h := greet(t, s, bothFlags)
	b := client.AppendOption(nil, nbd.OptGo, client.InfoData("crm"))
	b = append(b, request(nbd.CmdWrite, 0, 1, 0, 4)...)
	b = append(b, "data"...)
	_, err := h.Conn.Write(append(b, request(nbd.CmdDisc, 0, 2, 0, 0)...))
	must(t, err)
	got, err := io.ReadAll(h)
	if err != nil || len(got) < 16 || binary.BigEndian.Uint64(got[len(got)-8:]) != 1 {
		t.Errorf("% x %v", got, err)
	}
	p := make([]byte, 4)
	must(t, d.mem.ReadAt(p, 0))
	if string(p) != "data" {
		t.Errorf("device holds %q", p)
	}
}

// TestBlockStatus: line 25.
func TestBlockStatus(t *testing.T) {
	s, d := serveDisk(t)
	c := dial(t, s, "", client.Options{})
	long := func(n int64) []blockdev.Extent { return []blockdev.Extent{{Off: 0, Len: n}} }
	tests := []struct {
		name   string
		device []blockdev.Extent
		limit  int
		want   []blockdev.Extent
		err    error
	}{
		{"states", []blockdev.Extent{{Off: 0, Len: 512}, {Off: 512, Len: 512, Zero: true}, {Off: 1024, Len: 3072, Hole: true, Zero: true}}, 10,
			[]blockdev.Extent{{Off: 0, Len: 512}, {Off: 512, Len: 512, Zero: true}, {Off: 1024, Len: 3072, Hole: true, Zero: true}}, nil},
		{"cut to the request", long(1 << 40), 10, long(4096), nil},
		{"one", long(4096), 1, long(4096), nil},
		{"shorter than asked", long(512), 10, long(512), nil},
		{"a gap ends it", []blockdev.Extent{{Off: 0, Len: 512}, {Off: 1024, Len: 512, Zero: true}}, 10, long(512), nil},
		{"an empty extent ends it", []blockdev.Extent{{Off: 0, Len: 512}, {Off: 512}}, 10, long(512), nil},
		{"nothing is an error", nil, 10, nil, nbd.EIO},
	}
	for _, tt := range tests {
		d.mu.Lock()
		d.ext = func(off, n int64, limit int) ([]blockdev.Extent, error) {
			if off != 0 || n != 4096 || limit == 1 != (tt.limit == 1) {
				t.Errorf("%s: asked for %d at %d, %d extents", tt.name, n, off, limit)
			}
			return tt.device, nil
		}
		d.mu.Unlock()
		got, err := c.Extents(0, 4096, tt.limit)
		if !errors.Is(err, tt.err) || !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v %v, want %v %v", tt.name, got, err, tt.want, tt.err)
		}
	}
	d.mu.Lock()
	d.ext = func(int64, int64, int) ([]blockdev.Extent, error) { return nil, blockdev.ErrFailed }
	d.mu.Unlock()
	_, err := c.Extents(0, 4096, 10)
	wantErr(t, "failed device", err, nbd.EIO)
}

// TestBlockStatusDoesNotBlock: however many run, other requests are served.
func TestBlockStatusDoesNotBlock(t *testing.T) {
	s, d := serveDisk(t)
	free := make(chan struct{})
	running, most := 0, 0
	d.ext = func(off, n int64, _ int) ([]blockdev.Extent, error) {
		d.mu.Lock()
		running++
		most = max(most, running)
		d.mu.Unlock()
		<-free
		d.mu.Lock()
		running--
		d.mu.Unlock()
		return []blockdev.Extent{{Off: off, Len: n}}, nil
	}
	c := dial(t, s, "", client.Options{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() { c.Extents(0, 4096, 10) })
	}
	must(t, c.ReadAt(make([]byte, 512), 0))
	for range 20 {
		wg.Go(func() { c.Extents(0, 4096, 10) })
	}
	eventually(t, "four run at once", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return running >= 4
	})
	alive(t, s) // time enough for a fifth to start, if it could
	close(free)
	wg.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	if most > 4 {
		t.Errorf("%d at once, want at most 4", most)
	}
}

// TestMultiConn: line 15, a flush on one connection covers writes completed on
// another, since both reach one device.
func TestMultiConn(t *testing.T) {
	s, d := serveDisk(t)
	a, b := dial(t, s, "", client.Options{}), dial(t, s, "", client.Options{Simple: true})
	if a.Flags()&nbd.TxCanMultiConn == 0 {
		t.Error("CAN_MULTI_CONN is not offered")
	}
	must(t, a.WriteAt([]byte("committed"), 4096, 0))
	must(t, b.Flush())
	p := make([]byte, 9)
	must(t, b.ReadAt(p, 4096))
	if string(p) != "committed" {
		t.Errorf("the other connection reads %q", p)
	}
	l := d.requests()
	if len(l) != 3 || l[0].op != blockdev.OpWrite || l[1].op != blockdev.OpFlush {
		t.Errorf("device saw %v", l)
	}
}

// TestDisc: line 26, DISC finishes what is outstanding and has no reply; an
// abrupt loss leaves the device's requests alone.
func TestDisc(t *testing.T) {
	t.Run("DISC", func(t *testing.T) {
		s, d := serveDisk(t)
		h := greet(t, s, bothFlags)
		outcome(h, nbd.OptGo, client.InfoData(""))
		d.holdAll()
		_, err := h.Conn.Write(append(request(nbd.CmdTrim, 0, 1, 0, 512), request(nbd.CmdDisc, 0, 2, 0, 0)...))
		must(t, err)
		d.wait(t, 1)
		d.release()
		b, err := io.ReadAll(h)
		if err != nil || len(b) != 16 || binary.BigEndian.Uint64(b[8:]) != 1 {
			t.Errorf("after DISC came % x, %v", b, err)
		}
	})
	t.Run("loss", func(t *testing.T) {
		s, d := serveDisk(t)
		c := dial(t, s, "", client.Options{})
		d.holdAll()
		done := make(chan error, 1)
		go func() { done <- c.WriteAt([]byte("kept"), 0, 0) }()
		d.wait(t, 1)
		c.Abort()
		if err := <-done; err == nil {
			t.Error("a write was acknowledged over a dead connection")
		}
		if s.Clients("crm") != 1 {
			t.Error("the connection ended before its request")
		}
		d.release()
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		must(t, s.Disconnect(ctx, "crm"))
		p := make([]byte, 4)
		must(t, d.mem.ReadAt(p, 0))
		if string(p) != "kept" {
			t.Errorf("device holds %q", p)
		}
		alive(t, s)
	})
}

// TestConcurrent mixes sizes and commands on many connections.
func TestConcurrent(t *testing.T) {
	q := blockdev.Async(blockdev.NewMemory(8<<20), 4)
	defer q.Close()
	s := serve(t, nbd.Options{Exports: newExports(&nbd.Export{Name: "crm", Device: q}), PerConnInFlight: 16, PerConnBytes: 1 << 20})
	var wg sync.WaitGroup
	for conn := range 4 {
		c := dial(t, s, "", client.Options{Simple: conn%2 == 1})
		for worker := range 8 {
			wg.Go(func() {
				base := int64(conn*8+worker) * (256 << 10)
				for i := range 60 {
					n := []int{1, 512, 4096, 65536, 200000}[(i+worker)%5]
					p, got := bytes.Repeat([]byte{byte(i)}, n), make([]byte, n)
					if err := c.WriteAt(p, base+int64(i), blockdev.Flags(i%2)); err != nil {
						t.Error(err)
						return
					}
					if err := c.ReadAt(got, base+int64(i)); err != nil || !bytes.Equal(p, got) {
						t.Errorf("connection %d worker %d round %d: read back differs (%v)", conn, worker, i, err)
						return
					}
					if i%20 == 0 {
						if err := c.Flush(); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
	}
	wg.Wait()
}
