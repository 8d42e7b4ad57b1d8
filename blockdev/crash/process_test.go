package crash_test

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/crash"
)

// childEnv names the store on which this test binary, started by itself, plays
// the process that is killed.
const childEnv = "CRASH_TEST_STORE"

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		child(path)
	}
	os.Exit(m.Run())
}

// child writes 1 at 0 and flushes, 2 at 4096 with FUA, 3 over both, and waits to
// be killed.
func child(path string) {
	check := func(err error) {
		if err != nil {
			os.Stdout.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
	}
	f, err := blockdev.OpenFile(path)
	check(err)
	dev := crash.NewVolatile(f, 0)
	check(dev.WriteAt(bytes.Repeat([]byte{1}, 4096), 0, 0))
	check(dev.Flush())
	check(dev.WriteAt(bytes.Repeat([]byte{2}, 4096), 4096, blockdev.FUA))
	check(dev.WriteAt(bytes.Repeat([]byte{3}, 16384), 0, 0))
	p := make([]byte, 16384)
	check(dev.ReadAt(p, 0))
	if bytes.Count(p, []byte{3}) != len(p) {
		os.Stdout.WriteString("does not read what it wrote\n")
		os.Exit(1)
	}
	os.Stdout.WriteString("ready\n")
	select {}
}

// TestVolatileProcess: SIGKILL takes what was not flushed, and only that.
func TestVolatileProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store")
	f, err := blockdev.CreateFile(path, 1<<20, false)
	must(t, err)
	must(t, f.Close())
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+path)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	cmd.Process.Kill()
	cmd.Wait()
	must(t, err)
	if line != "ready\n" {
		t.Fatal(line)
	}
	f, err = blockdev.OpenFile(path) // the lock went with the process
	must(t, err)
	defer f.Close()
	p := make([]byte, 16384)
	must(t, f.ReadAt(p, 0))
	want := append(bytes.Repeat([]byte{1}, 4096), bytes.Repeat([]byte{2}, 4096)...)
	want = append(want, make([]byte, 8192)...)
	if !bytes.Equal(p, want) {
		t.Errorf("blocks begin with %d %d %d", p[0], p[4096], p[8192])
	}
}

func BenchmarkVolatileWrite(b *testing.B) {
	dev := crash.NewVolatile(blockdev.NewMemory(64<<20), 0)
	p := make([]byte, 4096)
	b.SetBytes(4096)
	off := int64(0)
	for b.Loop() {
		if err := dev.WriteAt(p, off, 0); err != nil {
			b.Fatal(err)
		}
		off = (off + 4096) % (64 << 20)
	}
}
