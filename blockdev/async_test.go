package blockdev_test

import (
	"bytes"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// call submits a request and waits for it.
func call(q blockdev.Submitter, r blockdev.Request) error {
	done := make(chan error, 1)
	r.Done = func(_ *blockdev.Request, err error) { done <- err }
	q.Submit(&r)
	return <-done
}

func filled(c byte, n int) *blockdev.Buffer {
	b := blockdev.NewBuffer(n)
	copy(b.Bytes(), bytes.Repeat([]byte{c}, n))
	return b
}

func TestAsyncOperations(t *testing.T) {
	dev := blockdev.NewMemory(1 << 20)
	q := blockdev.Async(dev, 2)
	if q.Size() != 1<<20 {
		t.Errorf("size %d", q.Size())
	}
	expect := func(off int64, want byte) {
		t.Helper()
		b := blockdev.NewBuffer(4096)
		if err := call(q, blockdev.Request{Op: blockdev.OpRead, Off: off, Len: 4096, Buf: b}); err != nil {
			t.Fatal(err)
		}
		if bytes.Count(b.Bytes(), []byte{want}) != 4096 {
			t.Errorf("at %d: %d..., want %d", off, b.Bytes()[0], want)
		}
	}
	for _, r := range []blockdev.Request{
		{Op: blockdev.OpWrite, Off: 0, Len: 16384, Buf: filled(7, 16384), Flags: blockdev.FUA},
		{Op: blockdev.OpZero, Off: 4096, Len: 4096, Flags: blockdev.NoHole},
		{Op: blockdev.OpTrim, Off: 8192, Len: 4096},
		{Op: blockdev.OpFlush},
		{Op: blockdev.OpRead},
	} {
		if err := call(q, r); err != nil {
			t.Fatalf("%v: %v", r.Op, err)
		}
	}
	expect(0, 7)
	expect(4096, 0)
	expect(8192, 0)
	expect(12288, 7)
	if err := call(q, blockdev.Request{Op: blockdev.OpTrim, Off: 1 << 20, Len: 1}); !errors.Is(err, blockdev.ErrRange) {
		t.Errorf("beyond the end: %v", err)
	}
	list, err := q.Extents(0, 1<<20, 10)
	if err != nil || len(list) != 4 {
		t.Errorf("extents %v, %v", list, err)
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	for _, op := range []blockdev.Op{blockdev.OpRead, blockdev.OpFlush} {
		if err := call(q, blockdev.Request{Op: op}); !errors.Is(err, blockdev.ErrShutdown) {
			t.Errorf("%v after Close: %v", op, err)
		}
	}
	if err := q.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

// TestAsyncBound: a disk that hangs holds the submitter back after a bounded
// number of requests, and Close waits until every one is done.
func TestAsyncBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dev := fault.New(blockdev.NewMemory(1<<20), 0, fault.Rule{Op: blockdev.OpWrite, Action: fault.Hang})
		const workers, requests = 3, 20
		q := blockdev.Async(dev, workers)
		var submitted, done atomic.Int64
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := range int64(requests) {
				q.Submit(&blockdev.Request{Op: blockdev.OpWrite, Off: i * 4096, Len: 4096, Buf: filled(1, 4096),
					Done: func(_ *blockdev.Request, err error) {
						if err == nil {
							done.Add(1)
						}
					}})
				submitted.Add(1)
			}
		})
		synctest.Wait()
		if n := submitted.Load(); n != 2*workers {
			t.Errorf("%d requests accepted by %d workers on a disk that hangs", n, workers)
		}
		if n := dev.Waiting(); n != workers {
			t.Errorf("%d requests on the disk", n)
		}
		dev.Set()
		wg.Wait()
		q.Close()
		if done.Load() != requests {
			t.Errorf("%d of %d done after Close", done.Load(), requests)
		}
	})
}

// TestAsyncCloseWhileFull: a submitter that is held back gets ErrShutdown.
func TestAsyncCloseWhileFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dev := fault.New(blockdev.NewMemory(1<<20), 0, fault.Rule{Op: blockdev.OpFlush, Action: fault.Hang})
		q := blockdev.Async(dev, 1)
		results := make(chan error, 3)
		for range 3 {
			go q.Submit(&blockdev.Request{Op: blockdev.OpFlush, Done: func(_ *blockdev.Request, err error) { results <- err }})
			synctest.Wait()
		}
		go q.Close()
		if err := <-results; !errors.Is(err, blockdev.ErrShutdown) {
			t.Errorf("held back while closing: %v", err)
		}
		dev.Set()
		for range 2 {
			if err := <-results; err != nil {
				t.Errorf("accepted before closing: %v", err)
			}
		}
		synctest.Wait()
	})
}

func BenchmarkAsyncWrite(b *testing.B) {
	q := blockdev.Async(blockdev.NewMemory(64<<20), 2)
	defer q.Close()
	buf := filled(1, 4096)
	done := make(chan error, 1)
	r := &blockdev.Request{Op: blockdev.OpWrite, Len: 4096, Buf: buf, Done: func(_ *blockdev.Request, err error) { done <- err }}
	b.ReportAllocs()
	for b.Loop() {
		q.Submit(r)
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
}
