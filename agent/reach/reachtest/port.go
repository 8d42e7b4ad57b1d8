// Package reachtest is a port that answers as a QUIC server does, for tests of what
// asks such ports.
package reachtest

import (
	"encoding/binary"
	"net"
	"testing"
)

// QUIC returns the address of a UDP port that answers package reach as a QUIC server
// does, packets up to largest; mangle, if it is not nil, may spoil the answer.
func QUIC(t *testing.T, largest int, mangle func([]byte) []byte) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	go func() {
		defer close(done)
		b := make([]byte, 65536)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			if n < 1200 || n > largest || b[0]&0xc0 != 0xc0 || binary.BigEndian.Uint32(b[1:])&0x0f0f0f0f != 0x0a0a0a0a || b[5] != 8 || b[14] != 8 {
				continue
			}
			out := append([]byte{0x80, 0, 0, 0, 0, 8}, b[15:23]...)
			out = append(append(out, 8), b[6:14]...)
			out = binary.BigEndian.AppendUint32(out, 1)
			if mangle != nil {
				out = mangle(out)
			}
			conn.WriteTo(out, from)
		}
	}()
	return conn.LocalAddr().String()
}
