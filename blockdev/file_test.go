package blockdev

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newFile(t testing.TB, size int64) *File {
	t.Helper()
	f, err := CreateFile(filepath.Join(t.TempDir(), "store"), size, false)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func TestCreateAndOpenFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "store")
	if _, err := OpenFile(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open of nothing: %v", err)
	}
	for _, size := range []int64{0, -1} {
		if _, err := CreateFile(path, size, true); err == nil {
			t.Errorf("created with %d bytes", size)
		}
	}
	f, err := CreateFile(path, 1<<30, false)
	must(t, err)
	must(t, f.WriteAt([]byte("kept"), 4096, FUA))
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	if st.Mode&0o777 != 0o600 || st.Size != 1<<30 || st.Blocks*512 > 1<<20 {
		t.Errorf("mode %o, %d bytes, %d on disk", st.Mode&0o777, st.Size, st.Blocks*512)
	}
	for name, open := range map[string]func() (*File, error){
		"OpenFile": func() (*File, error) { return OpenFile(path) },
		"Open":     func() (*File, error) { return Open(path) },
		"force":    func() (*File, error) { return CreateFile(path, 4096, true) },
	} {
		if _, err := open(); !errors.Is(err, ErrInUse) {
			t.Errorf("%s while it is open: %v", name, err)
		}
	}
	must(t, f.Close())
	if _, err := CreateFile(path, 1<<20, false); !errors.Is(err, fs.ErrExist) {
		t.Errorf("create over a file: %v", err)
	}
	f, err = Open(path)
	must(t, err)
	p := make([]byte, 4)
	must(t, f.ReadAt(p, 4096))
	if string(p) != "kept" || f.Size() != 1<<30 {
		t.Errorf("%q in %d bytes: not what was there before the refusals", p, f.Size())
	}
	must(t, f.Close())
	f, err = CreateFile(path, 1<<20, true)
	must(t, err)
	must(t, f.ReadAt(p, 4096))
	if !bytes.Equal(p, make([]byte, 4)) || f.Size() != 1<<20 {
		t.Errorf("force kept %q in %d bytes", p, f.Size())
	}
	must(t, f.Close())

	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	for _, name := range []string{"fifo", "."} {
		for what, open := range map[string]func(string) (*File, error){
			"OpenFile": OpenFile, "Open": Open, "OpenBlock": OpenBlock,
			"CreateFile": func(p string) (*File, error) { return CreateFile(p, 4096, true) },
		} {
			if _, err := open(filepath.Join(dir, name)); err == nil {
				t.Errorf("%s took %s", what, name)
			}
		}
	}
	if _, err := OpenBlock(path); err == nil {
		t.Error("OpenBlock took a file")
	}
}

// TestLockAcrossProcesses: flock(1) stands for the other process.
func TestLockAcrossProcesses(t *testing.T) {
	f := newFile(t, 1<<20)
	if _, err := exec.LookPath("flock"); err != nil {
		t.Skip("no flock(1)")
	}
	if exec.Command("flock", "-n", f.Path(), "true").Run() == nil {
		t.Error("another process got the lock")
	}
	must(t, f.Close())
	must(t, exec.Command("flock", "-n", f.Path(), "true").Run())
}

// TestCloseWithOperationsInFlight: Close does not wait for a disk that hangs,
// and no descriptor is closed, and perhaps reused, under an operation.
func TestCloseWithOperationsInFlight(t *testing.T) {
	f := newFile(t, 1<<20)
	entered, hang := make(chan struct{}), make(chan struct{})
	f.fdatasync = func(fd int) error { close(entered); <-hang; return unix.Fdatasync(fd) }
	done := make(chan error, 1)
	go func() { done <- f.Flush() }()
	<-entered
	must(t, f.Close())
	if err := f.Flush(); !errors.Is(err, ErrClosed) {
		t.Errorf("flush after Close: %v", err)
	}
	if _, err := OpenFile(f.Path()); !errors.Is(err, ErrInUse) {
		t.Errorf("the lock is gone while a flush is in flight: %v", err)
	}
	close(hang)
	must(t, <-done)
	again, err := OpenFile(f.Path())
	must(t, err)
	must(t, again.Close())
}

// TestFailedFlushIsNeverRetried is P9.
func TestFailedFlushIsNeverRetried(t *testing.T) {
	f := newFile(t, 1<<20)
	calls := 0
	f.fdatasync = func(int) error {
		calls++
		if calls == 1 {
			return unix.EIO
		}
		return nil
	}
	if err := f.Flush(); !errors.Is(err, ErrFailed) || !errors.Is(err, unix.EIO) {
		t.Errorf("first flush: %v", err)
	}
	p := make([]byte, 512)
	for name, call := range map[string]func() error{
		"flush": f.Flush,
		"read":  func() error { return f.ReadAt(p, 0) },
		"write": func() error { return f.WriteAt(p, 0, 0) },
		"FUA":   func() error { return f.WriteAt(p, 0, FUA) },
		"zero":  func() error { return f.Zero(0, 512, 0) },
		"trim":  func() error { return f.Trim(0, 512, 0) },
		"extents": func() error {
			_, err := f.Extents(0, 512, 1)
			return err
		},
		"nowait": func() error { _, err := f.ReadNowait(p, 0); return err },
	} {
		if err := call(); !errors.Is(err, ErrFailed) {
			t.Errorf("%s after a failed flush: %v", name, err)
		}
	}
	if calls != 1 {
		t.Errorf("fdatasync called %d times", calls)
	}
	if !errors.Is(f.Failed(), unix.EIO) {
		t.Errorf("Failed: %v", f.Failed())
	}
}

// TestFailedFlushFailsThoseWhoWait: nor by those who already waited for the next.
func TestFailedFlushFailsThoseWhoWait(t *testing.T) {
	f := newFile(t, 1<<20)
	synctest.Test(t, func(t *testing.T) {
		calls, hang := 0, make(chan struct{})
		f.fdatasync = func(int) error {
			calls++
			if calls == 1 {
				<-hang
				return unix.EIO
			}
			return nil
		}
		results := make(chan error, 3)
		for range 3 {
			go func() { results <- f.Flush() }()
			synctest.Wait()
		}
		close(hang)
		for range 3 {
			if err := <-results; !errors.Is(err, ErrFailed) {
				t.Errorf("flush: %v", err)
			}
		}
		if calls != 1 {
			t.Errorf("fdatasync called %d times", calls)
		}
	})
}

// TestDurableWriteErrors: what a durable write may answer, by what the kernel
// answered it.
func TestDurableWriteErrors(t *testing.T) {
	tests := []struct {
		name   string
		answer error // of the first call
		n      int   // bytes it wrote
		want   error
		failed bool
	}{
		{"in two parts", nil, 2048, nil, false},
		{"nothing", nil, 0, ErrFailed, true},
		{"interrupted", unix.EINTR, -1, nil, false},
		{"unknown to the file system", unix.EOPNOTSUPP, -1, nil, false},
		{"lost", unix.EIO, -1, ErrFailed, true},
		// The write itself finds room when it is tried: so it was the sync that
		// found none, and what it had to write is lost.
		{"no space for the sync", unix.ENOSPC, -1, ErrFailed, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFile(t, 1<<20)
			calls := 0
			f.writeStable = func(fd int, p []byte, off int64) (int, error) {
				if calls++; calls > 1 || tt.answer == nil && tt.n > 0 {
					return pwriteDsync(fd, p[:min(len(p), 2048)], off)
				}
				return tt.n, tt.answer
			}
			p := bytes.Repeat([]byte{3}, 4096)
			if err := f.WriteAt(p, 100, FUA); !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
			if failed := f.Failed() != nil; failed != tt.failed {
				t.Errorf("failed: %v, want %v", failed, tt.failed)
			}
			if tt.want == nil {
				q := make([]byte, 4096)
				must(t, f.ReadAt(q, 100))
				if !bytes.Equal(p, q) {
					t.Error("not all of it was written")
				}
			}
		})
	}
}

// TestFlushesShare: those who ask while one runs share the next one, and nobody
// is served by a flush that began before they asked.
func TestFlushesShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flushGroup
		var began atomic.Int64
		step := make(chan error)
		sync := func() error { began.Add(1); return <-step }
		results := make(chan error, 11)
		ask := func() { go func() { results <- g.do(sync) }() }
		ask()
		synctest.Wait()
		for range 10 {
			ask()
		}
		synctest.Wait()
		if began.Load() != 1 {
			t.Fatalf("%d flushes at once", began.Load())
		}
		step <- nil
		synctest.Wait()
		if began.Load() != 2 || len(results) != 1 {
			t.Fatalf("%d flushes began, %d callers served", began.Load(), len(results))
		}
		must(t, <-results)
		broken := errors.New("broken")
		step <- broken
		synctest.Wait()
		for range 10 {
			if err := <-results; err != broken {
				t.Errorf("shared flush: %v", err)
			}
		}
		if began.Load() != 2 {
			t.Errorf("%d flushes for eleven callers", began.Load())
		}
	})
}

func TestFlushStress(t *testing.T) {
	var g flushGroup
	var written, durable atomic.Int64
	sync1 := func() error { durable.Store(written.Load()); return nil }
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 2000 {
				mine := written.Add(1)
				if err := g.do(sync1); err != nil {
					t.Error(err)
					return
				}
				if durable.Load() < mine {
					t.Errorf("flush returned before write %d was durable", mine)
					return
				}
			}
		})
	}
	wg.Wait()
}

func allocated(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	return st.Blocks * 512
}

func TestZeroAllocation(t *testing.T) {
	dirs := []string{t.TempDir()}
	if dir, err := os.MkdirTemp("/dev/shm", "blockdev"); err == nil {
		t.Cleanup(func() { os.RemoveAll(dir) })
		dirs = append(dirs, dir)
	}
	for _, dir := range dirs {
		f, err := CreateFile(filepath.Join(dir, "store"), 16<<20, true)
		must(t, err)
		must(t, f.WriteAt(bytes.Repeat([]byte{1}, 8<<20), 0, FUA))
		before := allocated(t, f.Path())
		must(t, f.Zero(0, 4<<20, NoHole))
		if now := allocated(t, f.Path()); now < before {
			t.Errorf("%s: NoHole freed %d bytes", dir, before-now)
		}
		must(t, f.Zero(8<<20, 1<<20, NoHole|FUA))
		if now := allocated(t, f.Path()); now < 9<<20 {
			t.Errorf("%s: NoHole on a hole did not allocate: %d bytes", dir, now)
		}
		must(t, f.Trim(0, 2<<20, 0))
		must(t, f.Zero(2<<20, 2<<20, FastZero))
		if now := allocated(t, f.Path()); now > 6<<20 {
			t.Errorf("%s: trim and zero left %d bytes allocated", dir, now)
		}
		list, err := f.Extents(0, 8<<20, 10)
		must(t, err)
		want := []Extent{{Off: 0, Len: 4 << 20, Hole: true, Zero: true}, {Off: 4 << 20, Len: 4 << 20}}
		if len(list) != 2 || list[0] != want[0] || list[1] != want[1] {
			t.Errorf("%s: extents %v", dir, list)
		}
		must(t, f.Close())
	}
}

// TestZeroWithoutFallocate: where the file system cannot, zeroes are written,
// but never when the caller asked for speed.
func TestZeroWithoutFallocate(t *testing.T) {
	f := newFile(t, 2<<20)
	f.noPunch.Store(true)
	f.noZeroRange.Store(true)
	ones := bytes.Repeat([]byte{1}, 1<<20)
	p := make([]byte, 1<<20)
	for _, flags := range []Flags{0, NoHole, FUA, FastZero, FastZero | NoHole} {
		must(t, f.WriteAt(ones, 1000, 0))
		err := f.Zero(1000, 1<<20, flags)
		want := byte(0)
		if flags&FastZero != 0 {
			want = 1
			if !errors.Is(err, ErrNotFast) {
				t.Errorf("flags %d: %v", flags, err)
			}
		} else {
			must(t, err)
		}
		must(t, f.ReadAt(p, 1000))
		if bytes.Count(p, []byte{want}) != len(p) {
			t.Errorf("flags %d: not all bytes are %d", flags, want)
		}
	}
	must(t, f.Trim(0, 2<<20, 0))
	must(t, f.ReadAt(p, 1000))
	if bytes.Count(p, []byte{0}) != len(p) {
		t.Error("trim left something")
	}
}

// TestDurableWriteFallback: a file system without RWF_DSYNC.
func TestDurableWriteFallback(t *testing.T) {
	f := newFile(t, 1<<20)
	f.noDsync.Store(true)
	synced := 0
	f.fdatasync = func(fd int) error { synced++; return unix.Fdatasync(fd) }
	must(t, f.WriteAt([]byte("x"), 0, FUA))
	must(t, f.Zero(0, 4096, FUA))
	must(t, f.Trim(0, 4096, FUA))
	must(t, f.WriteAt([]byte("x"), 0, 0))
	if synced != 3 {
		t.Errorf("%d syncs for three operations with FUA", synced)
	}
}

func TestReadNowait(t *testing.T) {
	f := newFile(t, 1<<20)
	must(t, f.WriteAt(bytes.Repeat([]byte{5}, 8192), 0, 0))
	p := make([]byte, 4096)
	done, err := f.ReadNowait(p, 1000)
	must(t, err)
	if !done || bytes.Count(p, []byte{5}) != 4096 {
		t.Errorf("what was just written is not served at once: %v, %d...", done, p[0])
	}
	if done, err := f.ReadNowait(p, 1<<20-1); !done || !errors.Is(err, ErrRange) {
		t.Errorf("beyond the end: %v, %v", done, err)
	}
}

// TestReadNowaitHalfCached: half an answer is none. (On tmpfs all is cached.)
func TestReadNowaitHalfCached(t *testing.T) {
	const half = 8 << 20 // a boundary that no folio crosses
	f := newFile(t, 2*half)
	data := bytes.Repeat([]byte{5}, 2*half)
	must(t, f.WriteAt(data, 0, FUA))
	must(t, unix.Fadvise(f.fd, half, half, unix.FADV_DONTNEED))
	p := make([]byte, 128<<10)
	done, err := f.ReadNowait(p, half-64<<10)
	must(t, err)
	if done && !bytes.Equal(p, data[:len(p)]) {
		t.Error("done, but not all of it is there")
	}
}

// TestFastZeroInPlaceOnBlockDevice: there the kernel writes zeroes by itself
// rather than say that the device cannot, so File must know.
func TestFastZeroInPlaceOnBlockDevice(t *testing.T) {
	for _, offload := range []bool{false, true} {
		f := newFile(t, 1<<20)
		f.kind, f.logical, f.fastZero = kindBlock, 512, offload
		must(t, f.WriteAt([]byte{1}, 5000, 0))
		err := f.Zero(100, 8192, FastZero|NoHole) // t.TempDir may be a tmpfs, which cannot
		if offload && errors.Is(err, ErrNotFast) {
			continue
		}
		p := make([]byte, 1)
		must(t, f.ReadAt(p, 5000))
		if offload && (err != nil || p[0] != 0) || !offload && (!errors.Is(err, ErrNotFast) || p[0] != 1) {
			t.Errorf("offload %v: %v, byte %d", offload, err, p[0])
		}
	}
	if offloadsZero(0, 0) {
		t.Error("a device that does not exist zeroes fast")
	}
}

func TestShrunkFile(t *testing.T) {
	f := newFile(t, 1<<20)
	must(t, os.Truncate(f.Path(), 4096))
	err := f.ReadAt(make([]byte, 8192), 0)
	if err == nil || !strings.Contains(err.Error(), "shrunk") {
		t.Errorf("read of what is gone: %v", err)
	}
}

// TestHugeFile: what is not there costs nothing.
func TestHugeFile(t *testing.T) {
	const size = 1 << 40
	f := newFile(t, size)
	must(t, f.WriteAt([]byte{1}, size-1, 0))
	must(t, f.WriteAt([]byte{1}, size/2, 0))
	list, err := f.Extents(0, size, 10)
	must(t, err)
	if len(list) < 3 || !list[0].Hole || list[0].Len < size/2-1<<20 {
		t.Errorf("extents %v", list)
	}
	must(t, f.Trim(0, size, 0))
	must(t, f.Zero(0, size, FastZero|FUA))
	list, err = f.Extents(0, size, 10)
	must(t, err)
	if len(list) != 1 || !list[0].Hole {
		t.Errorf("extents after trim %v", list)
	}
}

func TestHugeMemory(t *testing.T) {
	const size = 1 << 40
	m := NewMemory(size)
	must(t, m.WriteAt([]byte{1}, size-1, 0))
	must(t, m.WriteAt([]byte{1}, size/2, 0))
	list, err := m.Extents(0, size, 10)
	must(t, err)
	if len(list) != 4 || m.Allocated() != 2*memoryChunk {
		t.Errorf("extents %v, %d bytes allocated", list, m.Allocated())
	}
	must(t, m.Trim(1, size-2, 0))
	if m.Allocated() != memoryChunk { // the one that holds the last byte
		t.Errorf("%d bytes allocated after trim", m.Allocated())
	}
	must(t, m.Zero(0, size, 0))
	if m.Allocated() != 0 {
		t.Errorf("%d bytes allocated after zero", m.Allocated())
	}
}

func BenchmarkFileWrite(b *testing.B) {
	p := make([]byte, 4096)
	for name, flags := range map[string]Flags{"cached": 0, "fua": FUA} {
		b.Run(name, func(b *testing.B) {
			f := newFile(b, 64<<20)
			b.ReportAllocs()
			b.SetBytes(4096)
			off := int64(0)
			for b.Loop() {
				must(b, f.WriteAt(p, off, flags))
				off = (off + 4096) % (64 << 20)
			}
		})
	}
}
