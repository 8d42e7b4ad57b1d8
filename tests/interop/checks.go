package interop

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// Info checks what nbdinfo says of the export, its list and its map.
func Info(t *testing.T, x Target) {
	need(t, "nbdinfo")
	size := blank(t, x)
	var info struct {
		Protocol   string `json:"protocol"`
		Structured bool   `json:"structured"`
		Exports    []struct {
			Name      string   `json:"export-name"`
			Size      int64    `json:"export-size"`
			Contexts  []string `json:"contexts"`
			ReadOnly  bool     `json:"is_read_only"`
			DF        bool     `json:"can_df"`
			FastZero  bool     `json:"can_fast_zero"`
			Flush     bool     `json:"can_flush"`
			FUA       bool     `json:"can_fua"`
			MultiConn bool     `json:"can_multi_conn"`
			Trim      bool     `json:"can_trim"`
			Zero      bool     `json:"can_zero"`
			Preferred int      `json:"block_size_preferred"`
			Maximum   int      `json:"block_size_maximum"`
		} `json:"exports"`
	}
	decode(t, run(t, "nbdinfo", "--json", x.URI()), &info)
	if info.Protocol != "newstyle-fixed" || !info.Structured || len(info.Exports) != 1 {
		t.Fatalf("%+v", info)
	}
	e := info.Exports[0]
	if e.Name != x.Export || e.Size != size || e.ReadOnly || !slices.Equal(e.Contexts, []string{"base:allocation"}) {
		t.Errorf("export %+v, want %q of %d bytes", e, x.Export, size)
	}
	if !e.DF || !e.FastZero || !e.Flush || !e.FUA || !e.MultiConn || !e.Trim || !e.Zero {
		t.Errorf("an ability is missing: %+v", e)
	}
	if e.Preferred < 512 || e.Maximum < 1<<20 {
		t.Errorf("block sizes: %+v", e)
	}
	if out := run(t, "nbdinfo", "--list", x.URI()); !strings.Contains(out, fmt.Sprintf("export=%q:", x.Export)) {
		t.Errorf("the list lacks %q:\n%s", x.Export, out)
	}
	var holes int64
	for _, m := range extents(t, x) {
		if m.Type == 3 {
			holes += m.Length
		}
	}
	if holes != size {
		t.Errorf("%d bytes of a blank export of %d are holes", holes, size)
	}
}

// extent is one line of nbdinfo's map; type 3 is a hole that reads as zeroes.
type extent struct {
	Offset, Length int64
	Type           int
}

func extents(t *testing.T, x Target) []extent {
	t.Helper()
	var l []extent
	decode(t, run(t, "nbdinfo", "--map", "--json", x.URI()), &l)
	var at int64
	for _, e := range l {
		if e.Offset != at || e.Length <= 0 {
			t.Fatalf("map is not contiguous at %d: %+v", at, e)
		}
		at += e.Length
	}
	return l
}

func decode(t *testing.T, text string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
}

// List checks that Debian's nbd-client sees the export.
func List(t *testing.T, x Target) {
	need(t, "nbd-client")
	args := []string{"-l"}
	if path, ok := strings.CutPrefix(x.Addr, "unix:"); ok {
		args = append(args, "-unix", path)
	} else {
		host, port, _ := strings.Cut(strings.TrimPrefix(x.Addr, "tcp:"), ":")
		args = append(args, host, port)
	}
	if out := run(t, "nbd-client", args...); !slices.Contains(strings.Split(out, "\n"), x.Export) {
		t.Errorf("the list lacks %q:\n%s", x.Export, out)
	}
}

//go:embed commands.py
var commandsScript string

//go:embed bad.py
var badScript string

// Commands gives every command with every flag that it takes, with structured
// and with simple replies.
func Commands(t *testing.T, x Target) { shell(t, x, commandsScript) }

// BadRequests gives requests that the protocol refuses and expects the number it
// prescribes, on a connection that goes on.
func BadRequests(t *testing.T, x Target) { shell(t, x, badScript) }

func shell(t *testing.T, x Target, script string) {
	need(t, "nbdsh")
	blank(t, x)
	if out, err := try(t, "nbdsh", "-c", "pass"); err != nil {
		t.Skipf("nbdsh does not work, is python3-libnbd installed? %s", out)
	}
	run(t, "nbdsh", "-c", fmt.Sprintf("uri = %q", x.URI()), "-c", script)
}

// image makes a sparse file of size bytes with 3 MiB of data in three places.
func image(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	r := rand.NewChaCha8([32]byte{1})
	p := make([]byte, 1<<20)
	for _, off := range []int64{0, size / 3 &^ 4095, size - 1<<20} {
		r.Read(p)
		if _, err := f.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// allocated returns the bytes that a file takes on its disk.
func allocated(t *testing.T, path string) int64 {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Sys().(*syscall.Stat_t).Blocks * 512
}

// sparseMax is how much may be allocated of what image makes: its 3 MiB, and as
// much again for units larger than a block.
const sparseMax = 6 << 20

// sparse checks that the export has little data in it.
func sparse(t *testing.T, x Target) {
	t.Helper()
	var data int64
	for _, e := range extents(t, x) {
		if e.Type&1 == 0 {
			data += e.Length
		}
	}
	if data < 3<<20 || data > sparseMax {
		t.Errorf("%d bytes of the export are allocated, 3 MiB were written", data)
	}
}

func same(t *testing.T, a, b string) {
	t.Helper()
	need(t, "cmp")
	run(t, "cmp", a, b)
}

// Copy copies a sparse image in and out by nbdcopy: same bytes, still sparse.
func Copy(t *testing.T, x Target) {
	need(t, "nbdcopy", "nbdinfo")
	in := image(t, blank(t, x))
	out := filepath.Join(t.TempDir(), "out")
	run(t, "nbdcopy", "--flush", "--destination-is-zero", in, x.URI())
	sparse(t, x)
	run(t, "nbdcopy", x.URI(), out)
	same(t, in, out)
	if n := allocated(t, out); n > sparseMax {
		t.Errorf("the copy takes %d bytes", n)
	}
	// Over old data, with zeroes for the holes.
	run(t, "nbdcopy", "--flush", "--requests=64", "--connections=4", in, x.URI())
	run(t, "nbdcopy", "--synchronous", x.URI(), out)
	same(t, in, out)
}

// Convert converts a sparse image in and out by qemu-img and compares.
func Convert(t *testing.T, x Target) {
	need(t, "qemu-img", "nbdinfo")
	in := image(t, blank(t, x))
	out := filepath.Join(t.TempDir(), "out")
	run(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", "--target-is-zero", "-W", in, x.URI())
	sparse(t, x)
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", in, x.URI())
	run(t, "qemu-img", "compare", "-s", "-f", "raw", "-F", "raw", x.URI(), x.URI())
	run(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", x.URI(), out)
	same(t, in, out)
	if n := allocated(t, out); n > sparseMax {
		t.Errorf("the conversion takes %d bytes", n)
	}
	run(t, "qemu-img", "info", x.URI())
	run(t, "qemu-img", "map", "--output=json", x.URI())
}

// QemuIO writes, zeroes, discards and reads back by qemu-io.
func QemuIO(t *testing.T, x Target) {
	need(t, "qemu-io")
	blank(t, x)
	args := []string{"-f", "raw", "-t", "none"}
	for _, c := range []string{
		"write -P 0x11 0 1M", "write -f -P 0x22 1M 64k", "flush",
		"read -P 0x11 0 1M", "read -P 0x22 1M 64k",
		"write -z 4k 8k", "read -P 0 4k 8k", "write -z -u 64k 64k", "read -P 0 64k 64k",
		"discard 128k 64k", "flush", "read -P 0x11 192k 64k",
		"aio_write -P 0x33 2M 64k", "aio_write -P 0x34 3M 64k", "aio_flush",
		"read -P 0x33 2M 64k", "read -P 0x34 3M 64k",
		"write -P 0x44 513 1023", "read -P 0x44 513 1023", "read -P 0x11 0 512",
	} {
		args = append(args, "-c", c)
	}
	out := run(t, "qemu-io", append(args, x.URI())...)
	if strings.Contains(out, "failed") {
		t.Errorf("qemu-io:\n%s", out)
	}
}

// Verify writes at random on four connections at depth 32 and reads everything
// back, with checksums, by fio.
func Verify(t *testing.T, x Target) {
	need(t, "fio")
	if out, _ := try(t, "fio", "--enghelp"); !strings.Contains(out, "nbd") {
		t.Skip("fio has no nbd engine")
	}
	blank(t, x)
	run(t, "fio", "--name=verify", "--ioengine=nbd", "--uri="+x.URI(), "--rw=randwrite", "--bsrange=512-64k", "--bs_unaligned=0",
		"--iodepth=32", "--numjobs=4", "--size=16m", "--offset_increment=64m", "--fsync=128",
		"--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--randrepeat=1")
}
