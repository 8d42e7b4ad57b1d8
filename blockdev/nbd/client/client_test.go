package client_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"math"
	"net"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/nbd"
	"github.com/qrbd/qrbd/blockdev/nbd/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const limit = 20 * time.Second

// hostile is a server that plays a script: it answers the handshake like a good
// one, unless given another, then sends answer for the first request.
type hostile struct {
	hello  []byte            // greeting; nil: a good one
	option map[uint32][]byte // replies to options, whole; nil: ACK, and a good GO
	answer []byte
	leave  bool // closes behind the answer
}

func reply(id, kind uint32, data []byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, nbd.MagicOptReply)
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint32(b, kind)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

var (
	goodHello, _ = hex.DecodeString("4e42444d4147494349484156454f50540003")
	goodInfo     = append(append(reply(7, 3, []byte{0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0xff}), reply(7, 3, []byte{0, 3, 0, 0, 0, 1, 0, 0, 16, 0, 2, 0, 0, 0})...), reply(7, 1, nil)...)
	goodContext  = append(reply(10, 4, append([]byte{0, 0, 0, 9}, "base:allocation"...)), reply(10, 1, nil)...)
)

// start serves one connection and returns the address.
func (h hostile) start(t testing.TB) string {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(limit))
		h.play(c)
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return "unix:" + path
}

func (h hostile) play(c net.Conn) {
	hello := h.hello
	if hello == nil {
		hello = goodHello
	}
	c.Write(hello)
	r := bufio.NewReader(c)
	r.Discard(4)
	for {
		var b [16]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return
		}
		id := binary.BigEndian.Uint32(b[8:])
		r.Discard(int(binary.BigEndian.Uint32(b[12:])))
		a, ok := h.option[id]
		switch {
		case ok:
		case id == nbd.OptGo:
			a = goodInfo
		case id == nbd.OptSetMetaContext:
			a = goodContext
		default:
			a = reply(id, nbd.RepAck, nil)
		}
		c.Write(a)
		if id == nbd.OptGo {
			break
		}
	}
	var b [28]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return
	}
	c.Write(h.answer)
	if h.leave {
		return
	}
	io.Copy(io.Discard, r)
}

func ctx(t testing.TB) context.Context {
	c, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return c
}

// TestHostileHandshake: sizes of 2^63 and more, wrong lengths, endless replies.
func TestHostileHandshake(t *testing.T) {
	huge := reply(7, 3, nil)
	binary.BigEndian.PutUint32(huge[16:], math.MaxUint32)
	tests := map[string]hostile{
		"greeting":          {hello: []byte("SSH-2.0-OpenSSH_9.2p1")},
		"old style":         {hello: append(goodHello[:17:17], 0)},
		"size of 2^63":      {option: map[uint32][]byte{7: append(reply(7, 3, []byte{0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 1}), reply(7, 1, nil)...)}},
		"no size":           {option: map[uint32][]byte{7: reply(7, 1, nil)}},
		"short export":      {option: map[uint32][]byte{7: append(reply(7, 3, []byte{0, 0, 1}), reply(7, 1, nil)...)}},
		"short information": {option: map[uint32][]byte{7: append(reply(7, 3, []byte{0}), reply(7, 1, nil)...)}},
		"short block size":  {option: map[uint32][]byte{7: append(reply(7, 3, []byte{0, 3, 0}), reply(7, 1, nil)...)}},
		"2^32-1 bytes":      {option: map[uint32][]byte{7: huge}},
		"another option":    {option: map[uint32][]byte{7: reply(6, 1, nil)}},
		"magic":             {option: map[uint32][]byte{8: make([]byte, 20)}},
	}
	for name, h := range tests {
		if c, err := client.Dial(ctx(t), h.start(t), "x", client.Options{}); !errors.Is(err, client.ErrProtocol) {
			t.Errorf("%s: %v, want ErrProtocol", name, err)
			if err == nil {
				c.Abort()
			}
		}
	}
	refused := hostile{option: map[uint32][]byte{7: reply(7, nbd.RepErrPolicy, []byte("the primary is alpha"))}}
	var want *client.OptionError
	if _, err := client.Dial(ctx(t), refused.start(t), "x", client.Options{}); !errors.As(err, &want) || want.Text != "the primary is alpha" {
		t.Errorf("refusal: %v", err)
	}
}

// chunk makes a structured reply to the first request.
func chunk(flags, kind uint16, cookie uint64, n uint32, data ...byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, nbd.MagicStructured)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = binary.BigEndian.AppendUint32(b, n)
	return append(b, data...)
}

func zeros(n int) []byte { return make([]byte, n) }

func off(n uint64, rest ...byte) []byte {
	return append(binary.BigEndian.AppendUint64(nil, n), rest...)
}

// TestHostileReplies: each breaks the protocol, ends the connection with an
// error, and neither writes outside the caller's slice nor allocates by a claim.
func TestHostileReplies(t *testing.T) {
	read := func(c *client.Client) error { return c.ReadAt(make([]byte, 16), 4096) }
	status := func(c *client.Client) error { _, err := c.Extents(4096, 512, 10); return err }
	tests := []struct {
		name   string
		answer []byte
		ask    func(*client.Client) error
	}{
		{"magic", zeros(16), read},
		{"simple reply to a read", append([]byte{0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0}, off(1, zeros(16)...)...), read},
		{"unknown cookie", chunk(1, 0, 77, 0), read},
		{"unknown chunk", chunk(1, 4, 1, 0), read},
		{"none with data", chunk(1, 0, 1, 4, 0, 0, 0, 0), read},
		{"none that is not the last", chunk(0, 0, 1, 0), read},
		{"done without data", chunk(1, 0, 1, 0), read},
		{"data without bytes", chunk(1, 1, 1, 8, off(4096)...), read},
		{"data before the range", chunk(1, 1, 1, 9, off(4095, 1)...), read},
		{"data behind the range", chunk(1, 1, 1, 9, off(4112, 1)...), read},
		{"data over the end", chunk(1, 1, 1, 8+17, off(4096, zeros(17)...)...), read},
		{"data of 4 GiB", chunk(1, 1, 1, math.MaxUint32, off(4096)...), read},
		{"data at 2^64-1", chunk(1, 1, 1, 10, off(math.MaxUint64, 1, 1)...), read},
		{"too little", chunk(1, 1, 1, 9, off(4096, 1)...), read},
		{"twice", append(chunk(0, 1, 1, 8+16, off(4096, zeros(16)...)...), chunk(1, 1, 1, 9, off(4096, 1)...)...), read},
		{"hole of 4 GiB", chunk(1, 2, 1, 12, off(4096, 0xff, 0xff, 0xff, 0xff)...), read},
		{"hole of odd length", chunk(1, 2, 1, 13, off(4096, 0, 0, 0, 16, 0)...), read},
		{"status for a read", chunk(1, 5, 1, 12, 0, 0, 0, 9, 0, 0, 2, 0, 0, 0, 0, 0), read},
		{"error without a number", chunk(1, 1<<15|1, 1, 6, 0, 0, 0, 0, 0, 0), read},
		{"error text longer than the chunk", chunk(1, 1<<15|1, 1, 7, 0, 0, 0, 5, 0, 2, 'x'), read},
		{"error of 4 GiB", chunk(1, 1<<15|1, 1, math.MaxUint32), read},
		{"error too short", chunk(1, 1<<15|1, 1, 2, 0, 5), read},
		{"status of another context", chunk(1, 5, 1, 12, 0, 0, 0, 8, 0, 0, 2, 0, 0, 0, 0, 0), status},
		{"status without extents", chunk(1, 5, 1, 4, 0, 0, 0, 9), status},
		{"status of odd length", chunk(1, 5, 1, 13, zeros(13)...), status},
		{"empty extent", chunk(1, 5, 1, 12, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0), status},
		{"extents behind the end", chunk(1, 5, 1, 20, 0, 0, 0, 9, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0), status},
		{"more extents than 2^20", chunk(1, 5, 1, 16<<20+4), status},
		{"two statuses", append(chunk(0, 5, 1, 12, 0, 0, 0, 9, 0, 0, 2, 0, 0, 0, 0, 0), chunk(1, 5, 1, 12, 0, 0, 0, 9, 0, 0, 2, 0, 0, 0, 0, 0)...), status},
		{"data for a flush", chunk(1, 1, 1, 9, off(0, 1)...), (*client.Client).Flush},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := client.Dial(ctx(t), hostile{answer: tt.answer}.start(t), "x", client.Options{BlockSize: true})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Abort()
			if err := tt.ask(c); !errors.Is(err, client.ErrProtocol) {
				t.Errorf("%v, want ErrProtocol", err)
			}
			if err := c.Flush(); err == nil {
				t.Error("the connection goes on")
			}
		})
	}
}

// TestGoodReplies: what a good server other than ours may send.
func TestGoodReplies(t *testing.T) {
	// Two data chunks in the wrong order, a hole between, an empty last chunk.
	answer := chunk(0, 1, 1, 8+4, off(4108, 'd', 'd', 'd', 'd')...)
	answer = append(answer, chunk(0, 1, 1, 8+4, off(4096, 'a', 'a', 'a', 'a')...)...)
	answer = append(answer, chunk(0, 2, 1, 12, off(4100, 0, 0, 0, 8)...)...)
	answer = append(answer, chunk(1, 0, 1, 0)...)
	c, err := client.Dial(ctx(t), hostile{answer: answer}.start(t), "x", client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Abort()
	p := []byte("................")
	if err := c.ReadAt(p, 4096); err != nil || string(p) != "aaaa\x00\x00\x00\x00\x00\x00\x00\x00dddd" {
		t.Errorf("%q %v", p, err)
	}

	// Extents of one kind are joined; the last may reach beyond the request.
	answer = chunk(1, 5, 1, 28, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0, 8, 0, 0, 0, 3, 0, 1, 0, 0, 0, 0, 0, 0)
	c, err = client.Dial(ctx(t), hostile{answer: answer}.start(t), "x", client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Abort()
	l, err := c.Extents(0, 512, 10)
	if err != nil || len(l) != 2 || l[0] != (blockdev.Extent{Len: 16, Hole: true, Zero: true}) || l[1] != (blockdev.Extent{Off: 16, Len: 496}) {
		t.Errorf("%v %v", l, err)
	}

	// An error chunk with a text and an offset.
	answer = chunk(1, 1<<15|2, 1, 15, append([]byte{0, 0, 0, 5, 0, 1, 'x'}, off(4096)...)...)
	c, err = client.Dial(ctx(t), hostile{answer: answer}.start(t), "x", client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Abort()
	if err := c.ReadAt(p, 4096); !errors.Is(err, nbd.EIO) {
		t.Errorf("%v, want EIO", err)
	}
}

// TestServerGone: what waits for a reply gets an error when the server ends.
func TestServerGone(t *testing.T) {
	c, err := client.Dial(ctx(t), hostile{answer: []byte{0x67}}.start(t), "x", client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() { failed <- c.Flush() }()
	c.Abort()
	if err := <-failed; err == nil {
		t.Error("flush succeeded")
	}
	if _, err := client.Dial(ctx(t), "unix:"+filepath.Join(t.TempDir(), "none"), "x", client.Options{}); err == nil {
		t.Error("dialled nobody")
	}
	for _, bad := range []string{"", "unix", "udp:1"} {
		if _, err := client.Dial(ctx(t), bad, "x", client.Options{}); err == nil {
			t.Errorf("dialled %q", bad)
		}
	}
}

// FuzzReplies: any bytes as replies end or serve the calls, without a panic.
func FuzzReplies(f *testing.F) {
	f.Add(chunk(1, 1, 1, 8+16, off(4096, zeros(16)...)...))
	f.Add(chunk(1, 2, 1, 12, off(4096, 0, 0, 0, 16)...))
	f.Add(chunk(1, 5, 1, 12, 0, 0, 0, 9, 0, 0, 2, 0, 0, 0, 0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		mine, theirs := net.Pipe()
		h := hostile{answer: b, leave: true}
		done := make(chan struct{})
		go func() { h.play(theirs); theirs.Close(); close(done) }()
		c, err := client.New(ctx(t), mine, "x", client.Options{})
		if err != nil {
			t.Fatal(err)
		}
		mine.SetDeadline(time.Now().Add(time.Second))
		c.ReadAt(make([]byte, 16), 4096)
		c.Extents(4096, 512, 4)
		c.Abort()
		<-done
	})
}
