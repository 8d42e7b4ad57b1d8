package crash_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/blockdevtest"
	"github.com/qrbd/qrbd/blockdev/crash"
	"github.com/qrbd/qrbd/blockdev/fault"
)

const size = 4 << 20

func TestConformance(t *testing.T) {
	t.Run("crash", func(t *testing.T) {
		blockdevtest.Run(t, func(*testing.T) blockdev.Device { return crash.New(blockdev.NewMemory(size), 1) })
	})
	t.Run("odd size", func(t *testing.T) {
		blockdevtest.Run(t, func(*testing.T) blockdev.Device { return crash.New(blockdev.NewMemory(1<<20+1000), 1) })
	})
	t.Run("volatile", func(t *testing.T) {
		blockdevtest.Run(t, func(*testing.T) blockdev.Device { return crash.NewVolatile(blockdev.NewMemory(size), 0) })
	})
	t.Run("volatile, small", func(t *testing.T) {
		blockdevtest.Run(t, func(*testing.T) blockdev.Device {
			return crash.NewVolatile(blockdev.NewMemory(size), 64<<10)
		})
	})
	t.Run("huge clears", func(t *testing.T) {
		blockdevtest.Run(t, func(*testing.T) blockdev.Device { return crash.New(blockdev.NewMemory(20<<20), 1) })
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func contents(t *testing.T, dev blockdev.Device) []byte {
	t.Helper()
	p := make([]byte, dev.Size())
	must(t, dev.ReadAt(p, 0))
	return p
}

// TestCrashAgainstHistory: after a cut every sector is one of its versions since
// the last point that made it durable, and never older.
func TestCrashAgainstHistory(t *testing.T) {
	const sectors = 256
	seen := map[string]bool{}
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 0))
		dev := crash.New(blockdev.NewMemory(sectors*512), seed)
		model := make([]byte, sectors*512)
		legal := make([][][]byte, sectors) // what each sector may be
		settle := func(first, last int) {
			for s := first; s < last; s++ {
				legal[s] = [][]byte{bytes.Clone(model[s*512 : s*512+512])}
			}
		}
		settle(0, sectors)
		for range 3 { // three lives of the disk
			for i := range 40 {
				off := r.IntN(len(model))
				n := 1 + r.IntN(min(5000, len(model)-off))
				first, last := off/512, (off+n+511)/512
				flags := blockdev.Flags(0)
				if r.IntN(6) == 0 {
					flags = blockdev.FUA
				}
				switch r.IntN(8) {
				case 0:
					must(t, dev.Flush())
					settle(0, sectors)
					continue
				case 1:
					must(t, dev.Trim(int64(off), int64(n), flags))
					clear(model[off : off+n])
				default:
					p := bytes.Repeat([]byte{byte(1 + i)}, n)
					must(t, dev.WriteAt(p, int64(off), flags))
					copy(model[off:], p)
				}
				for s := first; s < last; s++ {
					legal[s] = append(legal[s], bytes.Clone(model[s*512:s*512+512]))
				}
				if flags&blockdev.FUA != 0 {
					settle(first, last)
				}
			}
			next, err := dev.Crash()
			must(t, err)
			if err := dev.ReadAt(make([]byte, 1), 0); !errors.Is(err, blockdev.ErrClosed) {
				t.Fatalf("read after the cut: %v", err)
			}
			dev = next
			got := contents(t, dev)
			for s := range sectors {
				is := got[s*512 : s*512+512]
				at, matches := -1, 0
				for v, want := range legal[s] {
					if bytes.Equal(is, want) {
						at = v
						matches++
					}
				}
				if at < 0 {
					t.Fatalf("seed %d: sector %d is none of its %d versions", seed, s, len(legal[s]))
				}
				if matches > 1 || len(legal[s]) < 4 { // three versions, of which one is surely meant
					continue
				}
				seen[[]string{"lost", "first", "second", "third"}[min(at, 3)]] = true
			}
			copy(model, got)
			settle(0, sectors)
		}
	}
	for _, what := range []string{"lost", "first", "second", "third"} {
		if !seen[what] {
			t.Errorf("no sector was ever left as: %s", what)
		}
	}
}

// TestCrashTearsOneWrite: some seed keeps part of a single large write.
func TestCrashTearsOneWrite(t *testing.T) {
	var none, some, all int
	for seed := range uint64(50) {
		dev := crash.New(blockdev.NewMemory(size), seed)
		must(t, dev.WriteAt(bytes.Repeat([]byte{1}, 64<<10), 0, 0))
		dev, err := dev.Crash()
		must(t, err)
		switch bytes.Count(contents(t, dev), []byte{1}) {
		case 0:
			none++
		case 64 << 10:
			all++
		default:
			some++
		}
	}
	if none == 0 || some == 0 || all == 0 {
		t.Errorf("of 50 cuts %d kept nothing, %d some, %d all of a write", none, some, all)
	}
}

func TestCrashIsRepeatable(t *testing.T) {
	run := func() []byte {
		dev := crash.New(blockdev.NewMemory(size), 17)
		for i := range int64(100) {
			must(t, dev.WriteAt(bytes.Repeat([]byte{byte(i)}, 9000), i*7000, 0))
		}
		next, err := dev.Crash()
		must(t, err)
		return contents(t, next)
	}
	if !bytes.Equal(run(), run()) {
		t.Error("one seed, two outcomes")
	}
}

// TestVolatile looks below: only what was flushed may be there.
func TestVolatile(t *testing.T) {
	below := blockdev.NewMemory(size)
	dev := crash.NewVolatile(below, 0)
	a, b, c := bytes.Repeat([]byte{'a'}, 4096), bytes.Repeat([]byte{'b'}, 4096), bytes.Repeat([]byte{'c'}, 4096)
	at := func(off int64) byte {
		p := make([]byte, 1)
		must(t, below.ReadAt(p, off))
		return p[0]
	}
	must(t, dev.WriteAt(a, 0, 0))
	if at(0) != 0 || dev.Unflushed() != 4096 {
		t.Fatal("an unflushed write reached the store")
	}
	must(t, dev.WriteAt(b, 8192, blockdev.FUA))
	if at(0) != 0 || at(8192) != 'b' {
		t.Fatal("FUA must apply its own range, and only that")
	}
	must(t, dev.Flush())
	if at(0) != 'a' || dev.Unflushed() != 0 {
		t.Fatal("a flush must apply everything")
	}
	must(t, dev.WriteAt(c, 0, 0))
	dev, err := dev.Crash()
	must(t, err)
	if got := contents(t, dev); got[0] != 'a' || got[8192] != 'b' {
		t.Fatal("a cut must lose what was not flushed, and only that")
	}
}

func TestVolatileLimit(t *testing.T) {
	dev := crash.NewVolatile(blockdev.NewMemory(size), 64<<10)
	for off := int64(0); off < size; off += 4096 {
		must(t, dev.WriteAt(bytes.Repeat([]byte{1}, 4096), off, 0))
		if n := dev.Unflushed(); n > 64<<10 {
			t.Fatalf("%d bytes cached, limit %d", n, 64<<10)
		}
	}
}

func TestFailedFlushIsSticky(t *testing.T) {
	dev := crash.New(fault.New(blockdev.NewMemory(size), 0, fault.Rule{Op: blockdev.OpFlush, Nth: 1}), 1)
	must(t, dev.WriteAt([]byte{1}, 0, 0))
	for range 2 {
		if err := dev.Flush(); !errors.Is(err, blockdev.ErrFailed) {
			t.Fatalf("flush: %v", err)
		}
	}
}
