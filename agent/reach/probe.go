package reach

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qrbd/qrbd/protocol/session"
)

// Sizes of UDP payload that are tried, bytes. 1200 is the least that QUIC must have;
// 1452 fits an Ethernet frame of 1500 with IPv6, 8952 a jumbo frame of 9000.
var probeSizes = []int{1200, Enough, 8952}

// Probe says how patiently a port is asked.
type Probe struct {
	Tries int           // for each size
	Wait  time.Duration // for one answer
}

// Patient is for the networks that there are: at most 3 s without any answer, 9 s
// with some.
var Patient = Probe{Tries: 3, Wait: time.Second}

// Result is what a probe found out about a port.
type Result struct {
	RTT     time.Duration // the shortest
	Largest int           // UDP payload that passes, bytes; 0: not known (TCP)
	TooBig  int           // the smallest that this host itself cannot send; 0: none
}

// Errors of Ask, beside the network's.
var (
	ErrNoAnswer = errors.New("no answer")
	ErrRefused  = errors.New("the host answers, and nobody listens on that port")
)

// Enough is the UDP payload that an MTU of 1500 has room for, bytes.
const Enough = 1452

// Ask asks the port at address (host:port) of a peer with that transport. It ends
// early with ctx.
func (p Probe) Ask(ctx context.Context, t session.Transport, address string) (Result, error) {
	if t == session.TCP {
		return p.tcp(ctx, address)
	}
	return p.quic(ctx, address)
}

// tcp only opens a connection: whoever does not present a key is dropped.
func (p Probe) tcp(ctx context.Context, address string) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(p.Tries)*p.Wait)
	defer cancel()
	began := time.Now()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return Result{}, ErrRefused
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return Result{}, ErrNoAnswer
	case err != nil:
		return Result{}, err
	}
	defer conn.Close()
	return Result{RTT: time.Since(began)}, nil
}

// quic asks which versions are spoken there.
func (p Probe) quic(ctx context.Context, address string) (Result, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", address)
	if err != nil {
		return Result{}, fmt.Errorf("%s: %w", address, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })
	defer stop()
	if err := neverFragment(conn.(*net.UDPConn)); err != nil {
		return Result{}, fmt.Errorf("%s: %w", address, err)
	}
	var r Result
	for _, size := range probeSizes {
		rtt, err := p.size(ctx, conn, size)
		switch {
		case errors.Is(err, syscall.EMSGSIZE) && r.Largest == 0:
			return r, fmt.Errorf("this host cannot send packets with %d bytes of payload there, which QUIC needs: raise the MTU of its interface", size)
		case errors.Is(err, syscall.EMSGSIZE):
			r.TooBig = size
			return r, nil
		case errors.Is(err, syscall.ECONNREFUSED):
			return r, ErrRefused
		case errors.Is(err, ErrNoAnswer) && r.Largest > 0:
			return r, nil
		case err != nil:
			return r, err
		}
		r.Largest = size
		if r.RTT == 0 || rtt < r.RTT {
			r.RTT = rtt
		}
	}
	return r, nil
}

// neverFragment has packets that are too large refused or dropped, as QUIC does.
func neverFragment(conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	v4 := conn.RemoteAddr().(*net.UDPAddr).IP.To4() != nil
	var inner error
	err = raw.Control(func(fd uintptr) {
		if v4 {
			inner = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
		} else {
			inner = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
		}
	})
	return errors.Join(err, inner)
}

// size sends packets of one size until one is answered.
func (p Probe) size(ctx context.Context, conn net.Conn, size int) (time.Duration, error) {
	answer := make([]byte, 2048)
	for range p.Tries {
		packet, id := versionProbe(size)
		began := time.Now()
		if _, err := conn.Write(packet); err != nil {
			return 0, err
		}
		conn.SetReadDeadline(began.Add(p.Wait))
		for {
			if ctx.Err() != nil {
				return 0, ctx.Err()
			}
			n, err := conn.Read(answer)
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				break
			}
			if err != nil {
				return 0, err
			}
			if isVersionAnswer(answer[:n], id) {
				return time.Since(began), nil
			}
		}
	}
	return 0, ErrNoAnswer
}

// probeVersion is one of those that are kept free so that servers answer with what they
// speak. Source: RFC 9000, section 15 (0x?a?a?a?a).
const probeVersion = 0x1a2a3a4a

// connIDLen is the length of the connection ids of a probe.
const connIDLen = 8

// versionProbe returns a packet of the size with a long header of probeVersion, and the
// connection ids that its answer has.
//
//	0      1           5    6     14   15    23
//	0xc0   version u32 8    dest  8    src   padding
//
// Source: RFC 8999, section 5.1.
func versionProbe(size int) (packet []byte, ids [2 * connIDLen]byte) {
	rand.Read(ids[:]) // never fails
	packet = make([]byte, 0, size)
	packet = append(packet, 0xc0)
	packet = binary.BigEndian.AppendUint32(packet, probeVersion)
	packet = append(packet, connIDLen)
	packet = append(packet, ids[:connIDLen]...)
	packet = append(packet, connIDLen)
	packet = append(packet, ids[connIDLen:]...)
	return packet[:size], ids
}

// isVersionAnswer says whether b is a version negotiation packet for the probe: version
// zero, and the connection ids the other way round.
func isVersionAnswer(b []byte, ids [2 * connIDLen]byte) bool {
	const head = 1 + 4 + 1 + connIDLen + 1 + connIDLen
	return len(b) >= head+4 && b[0]&0x80 != 0 && binary.BigEndian.Uint32(b[1:]) == 0 &&
		b[5] == connIDLen && bytes.Equal(b[6:6+connIDLen], ids[connIDLen:]) &&
		b[14] == connIDLen && bytes.Equal(b[15:15+connIDLen], ids[:connIDLen])
}
