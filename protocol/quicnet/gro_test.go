package quicnet

import (
	"bytes"
	"encoding/binary"
	"net"
	"testing"
	"unsafe"

	"github.com/quic-go/quic-go"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

var _ quic.OOBCapablePacketConn = (*groSocket)(nil)

// segmented is the control message that makes the kernel cut a write into
// datagrams of size bytes.
func segmented(size uint16) []byte {
	b := make([]byte, unix.CmsgSpace(2))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(b[unix.CmsgSpace(0):], size)
	return b
}

// TestGROKeepsDatagrams: what was sent as datagrams comes out as the same
// datagrams, whether the kernel joined them or not.
func TestGROKeepsDatagrams(t *testing.T) {
	udp, err := listenUDP("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g, ok := newGROSocket(udp, nil).(*groSocket)
	if !ok {
		udp.Close()
		t.Skip("this kernel has no UDP_GRO")
	}
	defer g.Close()
	sender, err := net.DialUDP("udp", nil, udp.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()

	var want [][]byte
	fill := byte(0)
	send := func(total int, size uint16) {
		data := make([]byte, total)
		for i := range data {
			data[i] = fill + byte(i/int(max(size, 1)))
		}
		fill += 50
		var oob []byte
		if size > 0 {
			oob = segmented(size)
			for rest := data; len(rest) > 0; rest = rest[min(int(size), len(rest)):] {
				want = append(want, rest[:min(int(size), len(rest))])
			}
		} else {
			want = append(want, data)
		}
		if _, _, err := sender.WriteMsgUDP(data, oob, nil); err != nil {
			t.Fatal(err)
		}
	}
	send(20*1200, 1200)
	send(1, 0)
	send(0, 0)
	send(5*1400+17, 1400)
	send(1452, 0)
	send(40*1452, 1452)

	ms := make([]ipv4.Message, 8)
	for i := range ms {
		ms[i].Buffers, ms[i].OOB = [][]byte{make([]byte, 1452)}, make([]byte, 128)
	}
	joined := false
	for len(want) > 0 {
		n, err := g.ReadBatch(ms, 0)
		if err != nil || n == 0 {
			t.Fatal(n, err)
		}
		joined = joined || n > 1
		for _, m := range ms[:n] {
			if !bytes.Equal(m.Buffers[0][:m.N], want[0]) {
				t.Fatalf("%d bytes, want %d", m.N, len(want[0]))
			}
			if m.Addr.String() != sender.LocalAddr().String() {
				t.Fatalf("from %v", m.Addr)
			}
			want = want[1:]
		}
	}
	if !joined {
		t.Error("no datagrams came joined: UDP_GRO does nothing")
	}
}
