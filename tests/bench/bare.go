package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/qrbd/qrbd/protocol/session"
)

const (
	// bareLimit is when an end says what it waits for, and ends.
	bareLimit = 2 * time.Minute
	// bareGrace is how long after that, or after the other end has ended, an end is waited for before it is made to
	// show what its goroutines do.
	bareGrace = 2 * time.Second
)

// bareNames are the ends: the first sends or answers, the second receives or asks.
var bareNames = [2]string{"alpha", "beta"}

// measureBare sends sizeBytes over one bulk stream between two processes, each with as
// many threads as an agent gives itself, in pieces of barePiece, and returns bytes per
// second as the receiver counts them. With stores, the sender reads the first and the
// receiver writes the second: what no resync can avoid. Without, it is the transport
// alone. Instead of stores there may be echoItem twice: then sizeBytes is how many questions
// beta asks alpha, and what is returned is the median time of one in microseconds.
func measureBare(ctx context.Context, dir, transport string, sizeBytes int64, stores [2]string) (float64, error) {
	p, err := newBarePair(dir, transport)
	if err != nil {
		return 0, fmt.Errorf("bare transport: %w", err)
	}
	figure, err := p.run(ctx, sizeBytes, stores, bareLimit)
	if err != nil {
		return 0, fmt.Errorf("bare transport: %w", err)
	}
	return figure, nil
}

// barePair is where and who the two ends are.
type barePair struct {
	dir, transport  string
	keys, addresses [2]string // hexadecimal; host:port
}

// newBarePair makes identities in dir and finds ports.
func newBarePair(dir, transport string) (*barePair, error) {
	p := &barePair{dir: dir, transport: transport}
	for i, name := range bareNames {
		at := filepath.Join(dir, name)
		if err := os.MkdirAll(at, 0o700); err != nil {
			return nil, err
		}
		id, err := session.LoadOrCreateIdentity(at)
		if err != nil {
			return nil, err
		}
		port, err := freePort("tcp+udp")
		for err == nil && i == 1 && strconv.Itoa(port) == p.port(0) { // it may be given twice
			port, err = freePort("tcp+udp")
		}
		if err != nil {
			return nil, err
		}
		p.keys[i], p.addresses[i] = hex.EncodeToString(id.Public()), net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	}
	return p, nil
}

func (p *barePair) port(i int) string {
	_, port, _ := net.SplitHostPort(p.addresses[i]) // it is one of ours
	return port
}

// start starts an end, which gives up after limit.
func (p *barePair) start(i int, size int64, store string, limit time.Duration) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	name, other := bareNames[i], 1-i
	threads := fmt.Sprintf("GOMAXPROCS=%d", max(1, runtime.NumCPU()/2)) // agent.LimitThreads
	return startProcess(p.dir, name, "env", threads, self, bareCommand, filepath.Join(p.dir, name), name, p.addresses[i],
		bareNames[other], p.addresses[other], p.keys[other], strconv.FormatInt(size, 10), store, p.transport, limit.String())
}

// run runs both ends until beta has printed its figure. Whatever keeps it from that is told with what both waited for, and a
// file with the stacks of their goroutines.
func (p *barePair) run(ctx context.Context, size int64, stores [2]string, limit time.Duration) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, limit+bareGrace)
	defer cancel()
	var ends [2]*process
	for i := range ends {
		var err error
		if ends[i], err = p.start(i, size, stores[i], limit); err != nil {
			if i == 1 {
				ends[0].stop(syscall.SIGKILL)
			}
			return 0, err
		}
	}
	select {
	case <-ends[1].ended:
	case <-ends[0].ended: // beta ends, too, if it has noticed
		select {
		case <-ends[1].ended:
		case <-time.After(bareGrace):
		}
	case <-ctx.Done():
	}
	if ends[1].alive() == nil || !ends[1].cmd.ProcessState.Success() {
		return 0, giveUp(ctx, ends)
	}
	ends[0].stop(syscall.SIGKILL)                      // it waits to be ended
	return strconv.ParseFloat(ends[1].lastWords(), 64) // the error quotes it
}

// giveUp ends both ends, which show their stacks, and returns why.
func giveUp(ctx context.Context, ends [2]*process) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		ends[0].stop(syscall.SIGKILL)
		ends[1].stop(syscall.SIGKILL)
		return ctx.Err()
	}
	var said [2]string
	var all strings.Builder
	for i, p := range ends {
		running := p.alive() == nil
		p.stop(syscall.SIGQUIT)
		out, err := os.ReadFile(p.log)
		if err != nil {
			return err
		}
		fmt.Fprintf(&all, "%s, pid %d, %v:\n%s\n", p.name, p.pid(), p.cmd.ProcessState, out)
		before, _, _ := strings.Cut(string(out), "SIGQUIT: quit")
		said[i] = lastLine([]byte(before))
		if running {
			said[i] = "still running; " + said[i]
		}
	}
	kept, err := os.CreateTemp("", "bench-bare-*.log")
	if err == nil {
		_, err = kept.WriteString(all.String())
		err = errors.Join(err, kept.Close())
	}
	if err != nil {
		return fmt.Errorf("alpha: %s; beta: %s; keeping their output: %w", said[0], said[1], err)
	}
	return fmt.Errorf("alpha: %s; beta: %s; their output and stacks: %s", said[0], said[1], kept.Name())
}
