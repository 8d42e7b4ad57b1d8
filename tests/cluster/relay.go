package cluster

import (
	"errors"
	"net"
	"sync"
	"testing"
	"time"
)

// relay passes UDP packets on to an address and back, each after a delay, in order:
// a long way between two nodes where the kernel cannot make one.
type relay struct {
	conn   net.PacketConn
	target string
	delay  time.Duration

	mu   sync.Mutex
	back map[string]net.Conn // by the sender's address
	wg   sync.WaitGroup
}

// relayQueue is how many packets may be on their way; more are dropped, as a router
// would: 4,096 of 1,200 bytes are 5 MB.
const relayQueue = 4096

type datagram struct {
	due  time.Time
	data []byte
}

// Relay returns the address of a relay to target, which ends with the test.
func Relay(t testing.TB, target string, delay time.Duration) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{conn: conn, target: target, delay: delay, back: map[string]net.Conn{}}
	r.wg.Go(r.receive)
	t.Cleanup(r.close)
	return conn.LocalAddr().String()
}

// receive takes what comes for the target, one way for each sender.
func (r *relay) receive() {
	ways := map[string]chan datagram{}
	defer func() {
		for _, c := range ways {
			close(c)
		}
	}()
	buf := make([]byte, 64<<10)
	for {
		n, from, err := r.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		way := ways[from.String()]
		if way == nil {
			out, err := net.Dial("udp", r.target)
			if err != nil {
				continue
			}
			r.mu.Lock()
			r.back[from.String()] = out
			r.mu.Unlock()
			way = r.way(func(p []byte) { _, _ = out.Write(p) })
			ways[from.String()] = way
			r.wg.Go(func() { r.answers(out, from) })
		}
		queue(way, buf[:n], r.delay)
	}
}

// answers takes what comes back from the target for one sender.
func (r *relay) answers(out net.Conn, to net.Addr) {
	way := r.way(func(p []byte) { _, _ = r.conn.WriteTo(p, to) })
	defer close(way)
	buf := make([]byte, 64<<10)
	for {
		n, err := out.Read(buf)
		switch {
		case err == nil:
			queue(way, buf[:n], r.delay)
		case errors.Is(err, net.ErrClosed):
			return
		default: // refused: nobody listens there now
			time.Sleep(time.Millisecond)
		}
	}
}

// way delivers packets when they are due, in order.
func (r *relay) way(deliver func([]byte)) chan datagram {
	c := make(chan datagram, relayQueue)
	r.wg.Go(func() {
		for p := range c {
			time.Sleep(time.Until(p.due))
			deliver(p.data)
		}
	})
	return c
}

func queue(way chan datagram, p []byte, delay time.Duration) {
	select {
	case way <- datagram{time.Now().Add(delay), append([]byte(nil), p...)}:
	default:
	}
}

func (r *relay) close() {
	r.conn.Close()
	r.mu.Lock()
	for _, c := range r.back {
		c.Close()
	}
	r.mu.Unlock()
	r.wg.Wait()
}
