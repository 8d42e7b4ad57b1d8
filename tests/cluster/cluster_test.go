package cluster

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestMain lets the test binary be a host in a namespace: with QRBD_UDP set it
// prints what arrives there, or sends a word there.
func TestMain(m *testing.M) {
	verb, where, _ := strings.Cut(os.Getenv("QRBD_UDP"), " ")
	switch verb {
	case "receive":
		receive(where)
	case "send":
		send(where)
	default:
		os.Exit(Main(m))
	}
}

func receive(where string) {
	conn, err := net.ListenPacket("udp", where)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("ready")
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		fmt.Println(err)
	}
	b := make([]byte, 64)
	n, _, err := conn.ReadFrom(b)
	fmt.Println(string(b[:n]), err)
}

func send(where string) {
	conn, err := net.Dial("udp", where)
	if err != nil {
		fmt.Println(err)
		return
	}
	for range 5 { // the first one resolves the address
		_, _ = conn.Write([]byte("word")) // refused while nobody listens
		time.Sleep(50 * time.Millisecond)
	}
}

// TestLinks cuts one way, and only that.
func TestLinks(t *testing.T) {
	l := newLinks(t, []string{"alpha", "beta"})
	passes := func(from, to int) bool {
		t.Helper()
		host := func(i int, role string) *exec.Cmd {
			argv := append(l.prefix(l.nodes[i]), os.Args[0])
			cmd := exec.Command(argv[0], argv[1:]...)
			cmd.Env = append(os.Environ(), "QRBD_UDP="+role+" "+l.ip(to)+":7000")
			return cmd
		}
		receiver := host(to, "receive")
		out, err := receiver.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := receiver.Start(); err != nil {
			t.Fatal(err)
		}
		ready := make([]byte, 6)
		if _, err := out.Read(ready); err != nil || string(ready) != "ready\n" {
			t.Fatalf("%q %v", ready, err)
		}
		if err := host(from, "send").Run(); err != nil {
			t.Fatal(err)
		}
		got := make(chan string, 1)
		go func() {
			b := make([]byte, 64)
			n, _ := out.Read(b) // nothing when it is killed
			got <- string(b[:n])
		}()
		select {
		case word := <-got:
			_ = receiver.Wait() // it has said what it had to say
			return strings.HasPrefix(word, "word")
		case <-time.After(300 * time.Millisecond):
			_ = receiver.Process.Kill()
			<-got
			_ = receiver.Wait() // killed
			return false
		}
	}
	for _, step := range []struct {
		what        string
		do          func()
		there, back bool
	}{
		{"open", func() {}, true, true},
		{"cut there", func() { l.block(t, "alpha", "beta") }, false, true},
		{"cut both", func() { l.block(t, "beta", "alpha") }, false, false},
		{"healed there", func() { l.unblock(t, "alpha", "beta") }, true, false},
		{"healed both, twice", func() { l.unblock(t, "beta", "alpha"); l.unblock(t, "beta", "alpha") }, true, true},
	} {
		step.do()
		if there, back := passes(0, 1), passes(1, 0); there != step.there || back != step.back {
			t.Errorf("%s: alpha to beta %v, beta to alpha %v", step.what, there, back)
		}
	}
	l.close()
	if left, _ := filepath.Glob("/run/netns/" + l.base + "*"); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestDiff(t *testing.T) {
	const size = 64 << 20
	write := func(name string, at map[int64]string) string {
		t.Helper()
		path := filepath.Join(t.TempDir(), name)
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		for off, s := range at {
			if _, err := f.WriteAt([]byte(s), off); err != nil {
				t.Fatal(err)
			}
		}
		return path
	}
	zeroes := string(make([]byte, 8192))
	tests := []struct {
		name string
		a, b map[int64]string
		want []int64
	}{
		{"both empty", nil, nil, nil},
		{"equal", map[int64]string{5 << 20: "x"}, map[int64]string{5 << 20: "x"}, nil},
		{"zeroes and a hole", map[int64]string{5 << 20: zeroes}, nil, nil},
		{"data against a hole", map[int64]string{5<<20 + 4097: "x"}, nil, []int64{5<<20 + 4096}},
		{"hole against data", nil, map[int64]string{5 << 20: "x", size - 1: "y"}, []int64{5 << 20, size - 4096}},
		{"different", map[int64]string{100: "x"}, map[int64]string{100: "y"}, []int64{0}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Diff(write("a", tt.a), write("b", tt.b))
			if err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("%v, %v; want %v", got, err, tt.want)
			}
		})
	}
	short := filepath.Join(t.TempDir(), "short")
	if err := os.WriteFile(short, bytes.Repeat([]byte{0}, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Diff(write("a", nil), short); err == nil {
		t.Error("files of different lengths are not equal")
	}
}
