package main

import (
	"bytes"
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == bareCommand { // an end of a bare session is this program
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

func TestProcessIsMeasuredAndEnded(t *testing.T) {
	p, err := startProcess(t.TempDir(), "sleeper", "sleep", "60")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.alive(); err != nil {
		t.Error(err)
	}
	if rss, err := p.peakRSS(); err != nil || rss <= 0 || rss > 64<<20 {
		t.Errorf("peak memory %d, %v", rss, err)
	}
	if d, err := p.cpuTime(); err != nil || d <= 0 {
		t.Errorf("CPU time %v, %v", d, err)
	}
	p.stop(syscall.SIGTERM)
	p.stop(syscall.SIGTERM) // again does no harm
	if err := p.alive(); !errors.Is(err, errEnded) {
		t.Errorf("after its end: %v", err)
	}
	if _, err := p.cpuTime(); err == nil {
		t.Error("CPU time of a process that has ended")
	}
}

func TestProcessThatEndsEarlyIsQuoted(t *testing.T) {
	p, err := startProcess(t.TempDir(), "failing", "sh", "-c", "echo first; echo the reason >&2; exit 3")
	if err != nil {
		t.Fatal(err)
	}
	<-p.ended
	port, err := freePort("tcp")
	if err != nil {
		t.Fatal(err)
	}
	address := (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}).String()
	err = p.waitListening("tcp", address)
	if !errors.Is(err, errEnded) || lastLine([]byte(err.Error())) != "failing: process ended: the reason" {
		t.Errorf("error %v", err)
	}
}

func TestCopiesAreCompared(t *testing.T) {
	dir := t.TempDir()
	data := bytes.Repeat([]byte("0123456789abcdef"), 3*compareBytes/16/2) // one and a half steps
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	flipped := bytes.Clone(data)
	flipped[len(flipped)-1] ^= 1
	a := write("a", data)
	tests := map[string]error{
		write("same", data):                    nil,
		write("last byte", flipped):            errCopiesDiffer,
		write("shorter", data[:len(data)-1]):   errCopiesDiffer,
		write("one step", data[:compareBytes]): errCopiesDiffer,
		write("longer", append(data, 0)):       errCopiesDiffer,
		filepath.Join(dir, "absent"):           os.ErrNotExist,
	}
	for b, want := range tests {
		c := column{name: "test", copies: [2]string{a, b}}
		if err := c.verify(); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", filepath.Base(b), err, want)
		}
	}
	if err := (&column{}).verify(); err != nil {
		t.Errorf("without copies: %v", err)
	}
}
