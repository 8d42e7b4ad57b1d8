package nbd_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/nbd"
	"github.com/qrbd/qrbd/blockdev/nbd/client"
)

// BenchmarkServer measures 4 KiB requests over a Unix socket. Its client is
// hand-made and allocates nothing, so what ReportAllocs shows is the server's.
// inline: the device completes inside Submit. async: four workers do.
func BenchmarkServer(b *testing.B) {
	const bytes = 4096
	for _, device := range []string{"inline", "async"} {
		for _, cmd := range []uint16{nbd.CmdRead, nbd.CmdWrite} {
			for _, depth := range []int{1, 32} {
				op := map[uint16]string{nbd.CmdRead: "read", nbd.CmdWrite: "write"}[cmd]
				b.Run(fmt.Sprintf("%s/%s/depth=%d", device, op, depth), func(b *testing.B) {
					conn := benchConn(b, device)
					b.SetBytes(bytes)
					b.ReportAllocs()
					hammer(b, conn, cmd, depth, bytes)
				})
			}
		}
	}
}

// instant completes everything inside Submit without touching a byte.
type instant int64

func (i instant) Size() int64                { return int64(i) }
func (i instant) Submit(r *blockdev.Request) { r.Done(r, nil) }
func (i instant) Extents(off, n int64, _ int) ([]blockdev.Extent, error) {
	return []blockdev.Extent{{Off: off, Len: n}}, nil
}

func benchConn(b *testing.B, device string) net.Conn {
	var d blockdev.Submitter = instant(64 << 20)
	if device == "async" {
		mem := blockdev.NewMemory(64 << 20)
		p := make([]byte, 64<<20)
		for i := range p {
			p[i] = 1
		}
		must(b, mem.WriteAt(p, 0, 0))
		q := blockdev.Async(mem, 4)
		b.Cleanup(func() { q.Close() })
		d = q
	}
	s := serve(b, nbd.Options{Exports: newExports(&nbd.Export{Name: "crm", Device: d})})
	h := greet(b, s, bothFlags)
	if got, _ := outcome(h, nbd.OptGo, client.InfoData("")); got != "ack" {
		b.Fatal(got)
	}
	return h.Conn
}

// hammer keeps depth requests in flight until b.N are answered.
func hammer(b *testing.B, conn net.Conn, cmd uint16, depth, bytes int) {
	req := request(cmd, 0, 0, 0, uint32(bytes))
	in := 16
	if cmd == nbd.CmdWrite {
		req = append(req, make([]byte, bytes)...)
	} else {
		in += bytes
	}
	out, got := make([]byte, 0, depth*len(req)), make([]byte, depth*in)
	tickets := make(chan int, depth+1)
	tickets <- depth
	b.ResetTimer()
	go func() { // reads replies, as many as there are, and returns their tickets
		have := 0
		for left := b.N; left > 0; {
			n, err := conn.Read(got[have:])
			if err != nil {
				return
			}
			have += n
			k := have / in
			for i := range k {
				if binary.BigEndian.Uint32(got[i*in+4:]) != 0 {
					b.Error("error reply")
				}
			}
			copy(got, got[k*in:have])
			have -= k * in
			left -= k
			if k > 0 {
				tickets <- k
			}
		}
		close(tickets)
	}()
	sent := 0
	for k := range tickets {
		out = out[:0]
		for ; k > 0 && sent < b.N; k-- {
			binary.BigEndian.PutUint64(req[16:], uint64(sent%16000)*4096)
			out = append(out, req...)
			sent++
		}
		if len(out) > 0 {
			if _, err := conn.Write(out); err != nil && err != io.EOF {
				b.Error(err)
				return
			}
		}
	}
}
