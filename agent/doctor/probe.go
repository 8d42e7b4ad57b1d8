package doctor

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Sizes of UDP payload that are tried, bytes. 1200 is the least that QUIC must have;
// 1452 fits an Ethernet frame of 1500 with IPv6, 8952 a jumbo frame of 9000.
var probeSizes = []int{1200, 1452, 8952}

// probe says how patiently a port is asked.
type probe struct {
	tries int           // for each size
	wait  time.Duration // for one answer
}

// patientProbe is for the networks that there are.
var patientProbe = probe{tries: 3, wait: time.Second}

// reach is what a probe found out about a QUIC port.
type reach struct {
	rtt     time.Duration // the shortest
	largest int           // payload that passes, bytes; 0: nothing was answered
	tooBig  int           // the smallest that this host itself cannot send; 0: none
}

var (
	errNoAnswer = errors.New("no answer")
	errRefused  = errors.New("the host answers, and nobody listens on that port")
)

// quic asks the QUIC port at address (host:port) which versions it speaks.
func (p probe) quic(ctx context.Context, address string) (reach, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", address)
	if err != nil {
		return reach{}, fmt.Errorf("%s: %w", address, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })
	defer stop()
	if err := neverFragment(conn.(*net.UDPConn)); err != nil {
		return reach{}, fmt.Errorf("%s: %w", address, err)
	}
	var r reach
	for _, size := range probeSizes {
		rtt, err := p.size(ctx, conn, size)
		switch {
		case errors.Is(err, syscall.EMSGSIZE):
			r.tooBig = size
			return r, nil
		case errors.Is(err, syscall.ECONNREFUSED):
			return r, errRefused
		case errors.Is(err, errNoAnswer) && r.largest > 0:
			return r, nil
		case err != nil:
			return r, err
		}
		r.largest = size
		if r.rtt == 0 || rtt < r.rtt {
			r.rtt = rtt
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
func (p probe) size(ctx context.Context, conn net.Conn, size int) (time.Duration, error) {
	answer := make([]byte, 2048)
	for range p.tries {
		packet, id := versionProbe(size)
		began := time.Now()
		if _, err := conn.Write(packet); err != nil {
			return 0, err
		}
		conn.SetReadDeadline(began.Add(p.wait))
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
	return 0, errNoAnswer
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
