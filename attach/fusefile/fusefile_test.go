package fusefile

import (
	"bytes"
	"errors"
	"os"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// memory is a Disk that notes what it was asked for besides reading and writing.
type memory struct {
	mu   sync.Mutex
	data []byte // Guarded by mu
	log  []string
	fail error
}

func (m *memory) note(word string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.log = append(m.log, word)
	return m.fail
}

// do looks at the disk, or changes it, from outside.
func (m *memory) do(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

func (m *memory) Size() int64 { return int64(len(m.data)) }

func (m *memory) ReadAt(p []byte, off int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(p, m.data[off:])
	return m.fail
}

func (m *memory) WriteAt(p []byte, off int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.data[off:], p)
	return m.fail
}

func (m *memory) Trim(off, n int64) error {
	m.mu.Lock()
	clear(m.data[off : off+n])
	m.mu.Unlock()
	return m.note("trim")
}

func (m *memory) Zero(off, n int64, noHole bool) error {
	m.mu.Lock()
	clear(m.data[off : off+n])
	m.mu.Unlock()
	if !noHole {
		return m.note("zero that may deallocate")
	}
	return m.note("zero")
}

func (m *memory) Flush() error { return m.note("flush") }

func TestNoPlace(t *testing.T) {
	for _, dir := range []string{"", ".", "disk", "/", "//"} {
		if _, err := Mount(dir, "qrbd:test", &memory{}); err == nil {
			t.Errorf("mounted on %q", dir)
		}
	}
}

func TestFile(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("skipped: mounting needs root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("skipped: needs /dev/fuse")
	}
	m := &memory{data: make([]byte, 8<<20)}
	srv, err := Mount(t.TempDir(), "qrbd:test", m)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := srv.Unmount(); err != nil {
			t.Error(err)
		}
		srv.Wait()
	}()
	f, err := os.OpenFile(srv.Path(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Size() != 8<<20 {
		t.Errorf("%v, %v", info, err)
	}
	want := bytes.Repeat([]byte("0123456789abcdef"), 3<<20/16)
	_, err = f.WriteAt(want, 512)
	m.do(func() {
		if err != nil || !bytes.Equal(m.data[512:512+3<<20], want) {
			t.Errorf("write: %v", err)
		}
	})
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, 512); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read: %v", err)
	}
	if n, err := f.ReadAt(got[:1024], 8<<20-512); n != 512 || err == nil {
		t.Errorf("at the end %d bytes, %v", n, err)
	}
	if _, err := f.WriteAt(got[:1024], 8<<20-512); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("beyond the end: %v", err)
	}
	if err := f.Truncate(4 << 20); err == nil {
		t.Error("truncated")
	}
	fd := int(f.Fd())
	for _, step := range []struct {
		word string
		do   func() error
	}{
		{"flush", func() error { return unix.Fsync(fd) }},
		{"trim", func() error {
			return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 4096, 8192)
		}},
		{"zero", func() error { return unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, 0, 4096) }},
	} {
		m.do(func() { m.log = nil })
		err := step.do()
		m.do(func() {
			if err != nil || len(m.log) != 1 || m.log[0] != step.word {
				t.Errorf("%s: %v, %q", step.word, err, m.log)
			}
		})
	}
	m.do(func() {
		if !bytes.Equal(m.data[:12288], make([]byte, 12288)) || m.data[12288] == 0 {
			t.Error("not zeroed, or too much")
		}
		m.fail = syscall.ENOSPC
	})
	if err := unix.Fsync(fd); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a full disk: %v", err)
	}
	m.do(func() { m.fail = errors.New("dead") })
	if _, err := f.WriteAt(want[:512], 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("a dead disk: %v", err)
	}
	m.do(func() { m.fail = nil })
}
