package main

import (
	"errors"
	"net"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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
