package nbd

import (
	"context"
	"encoding/binary"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/nbd/testca"
)

// FuzzOption: the option parsers neither panic nor accept what breaks the
// protocol's limits.
func FuzzOption(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x03crm\x00\x02\x00\x00\x00\x03"))
	f.Add([]byte("\x00\x00\x00\x03crm\x00\x00\x00\x01\x00\x00\x00\x0fbase:allocation"))
	f.Add([]byte("\xff\xff\xff\xffcrm\xff\xff"))
	f.Add([]byte("\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if o, bad := parseInfo(b); bad == nil && (len(o.name) > MaxString || len(o.name)+6 > len(b)) {
			t.Errorf("name of %d bytes from an option of %d", len(o.name), len(b))
		}
		for _, list := range []bool{false, true} {
			o, bad := parseContexts(b, list)
			if bad == nil && (len(o.name) > MaxString || len(o.name)+8 > len(b)) {
				t.Errorf("name of %d bytes from an option of %d", len(o.name), len(b))
			}
			if bad == nil && o.allocation && !list && len(b) < len(o.name)+8+4+len(ContextBaseAllocation) {
				t.Error("base:allocation selected without being named")
			}
		}
	})
}

// FuzzRequest: whatever passes the check is inside the device and of a known
// command, so that no device sees nonsense.
func FuzzRequest(f *testing.F) {
	for cmd := range uint16(9) {
		f.Add(AppendRequest(nil, RequestHeader{RequestMagic: MagicRequest, CommandFlags: 1, Type: cmd, Handle: 7, Offset: 4096, Length: 4096}), int64(1<<20), uint8(7))
		f.Add(AppendRequest(nil, RequestHeader{RequestMagic: MagicRequest, CommandFlags: 0, Type: cmd, Handle: 7, Offset: 1<<64 - 512, Length: 1<<32 - 1}), int64(1<<40), uint8(2))
	}
	f.Fuzz(func(t *testing.T, b []byte, size int64, bits uint8) {
		if len(b) < requestLen || size < 0 {
			return
		}
		h := DecodeRequest((*[requestLen]byte)(b))
		if string(AppendRequest(nil, h)) != string(b[:requestLen]) {
			t.Fatal("header does not survive encoding")
		}
		tm := terms{size: size, readOnly: bits&1 != 0, structured: bits&2 != 0, allocation: bits&4 != 0, align: 1 << (bits >> 4)}
		if tm.check(&h) != EOK || h.Type == CmdDisc {
			return
		}
		off, n := int64(h.Offset), int64(h.Length)
		switch {
		case h.Type > CmdBlockStatus:
			t.Errorf("unknown command %d passed", h.Type)
		case off < 0 || off > size || n > size-off:
			t.Errorf("%d bytes at %d of %d passed", n, off, size)
		case (h.Type == CmdRead || h.Type == CmdWrite) && n > MaxPayload:
			t.Errorf("payload of %d bytes passed", n)
		case tm.readOnly && (h.Type == CmdWrite || h.Type == CmdTrim || h.Type == CmdWriteZeroes):
			t.Errorf("command %d passed on a read-only export", h.Type)
		case h.CommandFlags&CmdFlagFastZero != 0 && h.Type != CmdWriteZeroes:
			t.Errorf("FAST_ZERO passed on command %d", h.Type)
		}
	})
}

// sizeOnly executes nothing but succeeds at once.
type sizeOnly int64

func (s sizeOnly) Size() int64                { return int64(s) }
func (s sizeOnly) Submit(r *blockdev.Request) { r.Done(r, nil) }
func (s sizeOnly) Extents(off, n int64, _ int) ([]blockdev.Extent, error) {
	return []blockdev.Extent{{Off: off, Len: n, Hole: true, Zero: true}}, nil
}

type only struct{ e *Export }

func (o only) List(Caller) []string                 { return []string{o.e.Name} }
func (o only) Open(string, Caller) (*Export, error) { return o.e, nil }

// FuzzConnection: any bytes as a whole conversation leave the server able to end,
// over a connection that is no socket.
func FuzzConnection(f *testing.F) {
	flags := []byte{0, 0, 0, 3}
	goTo := binary.BigEndian.AppendUint64(append([]byte(nil), flags...), MagicOption)
	goTo = append(goTo, 0, 0, 0, 7, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0)
	f.Add(append([]byte(nil), flags...))
	f.Add(goTo)
	for cmd := range uint16(9) {
		f.Add(AppendRequest(append([]byte(nil), goTo...), RequestHeader{RequestMagic: MagicRequest, CommandFlags: 0, Type: cmd, Handle: 1, Offset: 0, Length: 64}))
	}
	f.Fuzz(func(t *testing.T, b []byte) { converse(t, b, nil) })
}

// FuzzPlaintext: the same of a server that demands TLS, and no bytes get an export
// out of it.
func FuzzPlaintext(f *testing.F) {
	ca, dir := testca.New(f, "authority"), f.TempDir()
	cert, key := ca.Issue(dir, testca.Leaf{CommonName: "alpha", Server: true})
	credentials, err := LoadCredentials(cert, key, ca.Trust(dir))
	if err != nil {
		f.Fatal(err)
	}
	start := binary.BigEndian.AppendUint64([]byte{0, 0, 0, 3}, MagicOption)
	start = append(start, 0, 0, 0, 5, 0, 0, 0, 0)
	f.Add(start)
	f.Add(append(start[:len(start):len(start)], 22, 3, 1, 0, 5, 1, 0, 0, 1, 3))
	f.Add(append(start[:len(start):len(start)], 21, 3, 3, 0, 2, 2, 0))
	f.Add(append(start[:len(start)-5:len(start)-5], 7, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0))
	f.Add(append(start[:len(start)-5:len(start)-5], 1, 0, 0, 0, 1, 'x'))
	f.Fuzz(func(t *testing.T, b []byte) { converse(t, b, credentials) })
}

// closedExport fails the test when it is opened.
type closedExport struct{ t *testing.T }

func (c closedExport) List(Caller) []string { c.t.Error("listed in plaintext"); return nil }
func (c closedExport) Open(string, Caller) (*Export, error) {
	c.t.Error("opened in plaintext")
	return nil, ErrUnknownExport
}

// converse sends bytes as a whole conversation and waits for the server's end.
func converse(t *testing.T, b []byte, credentials *Credentials) {
	o := Options{Exports: only{&Export{Name: "x", Device: sizeOnly(1 << 20)}}, Log: slog.New(slog.DiscardHandler), TLS: credentials}
	if credentials != nil {
		o.Exports = closedExport{t}
	}
	s := NewServer(o)
	mine, theirs := net.Pipe()
	s.start(theirs)
	go func() {
		mine.SetDeadline(time.Now().Add(5 * time.Second))
		mine.Write(b)
		mine.Close()
	}()
	for p := make([]byte, 64<<10); ; {
		if _, err := mine.Read(p); err != nil {
			break
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
}
