package kernel

import (
	"encoding/hex"
	"errors"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/genetlink/genltest"
	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nlenc"
	"golang.org/x/sys/unix"
)

const familyID = 0x1d

// fake answers one command as a driver would: with data, or with an error.
func fake(t *testing.T, got *[]genetlink.Message, answer []byte, fail error) *Client {
	t.Helper()
	conn := genltest.Dial(genltest.ServeFamily(genetlink.Family{ID: familyID, Name: Family, Version: version},
		func(m genetlink.Message, n netlink.Message) ([]genetlink.Message, error) {
			if n.Header.Type != familyID {
				t.Errorf("sent to family %d, want %d", n.Header.Type, familyID)
			}
			*got = append(*got, m)
			if fail != nil {
				return nil, fail
			}
			return []genetlink.Message{{Data: answer}}, nil
		}))
	t.Cleanup(func() { _ = conn.Close() })
	c, err := newClient(conn)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// sockets returns connected Unix stream sockets.
func sockets(t *testing.T, n int) []syscall.Conn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	var list []syscall.Conn
	for range n {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		list = append(list, c.(*net.UnixConn))
	}
	return list
}

func settings(t *testing.T, n int) Settings {
	return Settings{Index: 3, Size: 1 << 30, BlockSize: 4096, Flags: 0x16d, Timeout: 30 * time.Second, DeadTimeout: 600 * time.Second,
		Backend: "crm", Conns: sockets(t, n)}
}

// fds finds the numbers of sockets, which differ from run to run.
var fds = regexp.MustCompile(`08000100([0-9a-f]{8})`)

// TestBytes holds what is sent against the bytes that the driver of Linux 6.1 takes
// (tests/uml shows that it does).
func TestBytes(t *testing.T) {
	index := []byte{8, 0, attrIndex, 0, 3, 0, 0, 0}
	const rest = "0c000200" + "0000004000000000" + // size
		"0c000300" + "0010000000000000" + // block size
		"0c000400" + "1e00000000000000" + // timeout
		"0c000500" + "6d01000000000000" + // transmission flags
		"0c000600" + "0000000000000000" + // client flags
		"0c000800" + "5802000000000000" + // dead connection timeout
		"08000a00" + "63726d00" + // backend
		"1c000780" + "0c000180" + "08000100" + "FFFFFFFF" + "0c000180" + "08000100" + "FFFFFFFF" // sockets
	s := settings(t, 2)
	anyone := s
	anyone.Index = Any
	for _, tt := range []struct {
		name    string
		do      func(*Client) error
		command uint8
		want    string
	}{
		{"connect", func(c *Client) error { _, err := c.Connect(s); return err }, cmdConnect, "0800010003000000" + rest},
		{"connect anywhere", func(c *Client) error { _, err := c.Connect(anyone); return err }, cmdConnect, rest},
		{"reconfigure", func(c *Client) error { return c.Reconfigure(s) }, cmdReconfigure, "0800010003000000" + rest},
		{"resize", func(c *Client) error { return c.Resize(3, 1<<31, "crm") }, cmdReconfigure, "0800010003000000" + "0c000200" + "0000008000000000" + "08000a00" + "63726d00"},
		{"disconnect", func(c *Client) error { return c.Disconnect(3) }, cmdDisconnect, "0800010003000000"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var sent []genetlink.Message
			if err := tt.do(fake(t, &sent, index, nil)); err != nil {
				t.Fatal(err)
			}
			if len(sent) != 1 || sent[0].Header.Command != tt.command || sent[0].Header.Version != 1 {
				t.Fatalf("sent %v, want one command %d", sent, tt.command)
			}
			text := hex.EncodeToString(sent[0].Data)
			head, tail, found := strings.Cut(text, "1c000780") // an index begins like a socket
			if found {
				text = head + "1c000780" + fds.ReplaceAllString(tail, "08000100FFFFFFFF")
			}
			if text != tt.want {
				t.Errorf("sent %s\nwant %s", text, tt.want)
			}
		})
	}
}

// TestSocketsAreThose: the numbers handed over are those of the connections.
func TestSocketsAreThose(t *testing.T) {
	s := settings(t, 2)
	var sent []genetlink.Message
	if _, err := fake(t, &sent, []byte{8, 0, attrIndex, 0, 3, 0, 0, 0}, nil).Connect(s); err != nil {
		t.Fatal(err)
	}
	found := fds.FindAllStringSubmatch(strings.SplitN(hex.EncodeToString(sent[0].Data), "1c000780", 2)[1], -1)
	if len(found) != 2 {
		t.Fatalf("%d sockets were handed over, want 2", len(found))
	}
	for i, c := range s.Conns {
		b, _ := hex.DecodeString(found[i][1])
		raw, _ := c.SyscallConn()
		_ = raw.Control(func(fd uintptr) {
			if got := nlenc.Uint32(b); got != uint32(fd) {
				t.Errorf("socket %d: number %d was handed over, it has %d", i, got, fd)
			}
		})
	}
}

func TestIndexOfAFreeDevice(t *testing.T) {
	s := settings(t, 1)
	s.Index = Any
	var sent []genetlink.Message
	if got, err := fake(t, &sent, []byte{8, 0, attrIndex, 0, 7, 0, 0, 0}, nil).Connect(s); got != 7 || err != nil {
		t.Errorf("Connect returned %d, %v; the driver said 7", got, err)
	}
	if _, err := fake(t, &sent, nil, nil).Connect(s); err == nil {
		t.Error("an answer without a device was taken")
	}
	if _, err := fake(t, &sent, []byte{9, 0, 1}, nil).Connect(s); err == nil {
		t.Error("a broken answer was taken")
	}
}

func TestConnected(t *testing.T) {
	ae := netlink.NewAttributeEncoder()
	ae.Nested(attrDevices, func(list *netlink.AttributeEncoder) error {
		for i, up := range []uint8{1, 0} {
			list.Nested(deviceItem, func(d *netlink.AttributeEncoder) error {
				d.Uint32(deviceIndex, uint32(i))
				d.Uint8(deviceConnected, up)
				return nil
			})
		}
		return nil
	})
	answer, err := ae.Encode()
	if err != nil {
		t.Fatal(err)
	}
	var sent []genetlink.Message
	got, err := fake(t, &sent, answer, nil).Connected()
	if want := map[int]bool{0: true, 1: false}; err != nil || !maps.Equal(got, want) {
		t.Errorf("Connected returned %v, %v; want %v", got, err, want)
	}
}

func TestRefusedBeforehand(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(*Settings)
		want error  // or
		text string // part of it
	}{
		{"no sockets", func(s *Settings) { s.Conns = nil }, ErrNoSockets, ""},
		{"several, and no flush across them", func(s *Settings) { s.Flags &^= flagCanMultiConn }, ErrNoSockets, "does not reach"},
		{"no flush", func(s *Settings) { s.Flags &^= flagSendFlush }, ErrNoFlush, ""},
		{"odd size", func(s *Settings) { s.Size++ }, nil, "cut off its end"},
		{"no size", func(s *Settings) { s.Size = 0 }, nil, "size 0"},
		{"large block", func(s *Settings) { s.BlockSize = 8192 }, nil, "block size 8192"},
		{"odd block", func(s *Settings) { s.BlockSize = 1000 }, nil, "block size 1000"},
		{"no dead time", func(s *Settings) { s.DeadTimeout = 0 }, nil, "dead time"},
		{"part of a second", func(s *Settings) { s.Timeout = 1500 * time.Millisecond }, nil, "whole seconds"},
		{"long name", func(s *Settings) { s.Backend = strings.Repeat("x", 256) }, nil, "255"},
		{"name with a zero", func(s *Settings) { s.Backend = "a\x00b" }, nil, "backend"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := settings(t, 2)
			tt.do(&s)
			var sent []genetlink.Message
			c := fake(t, &sent, nil, nil)
			_, err := c.Connect(s)
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("Connect: %v, want %v %q", err, tt.want, tt.text)
			}
			if err := c.Reconfigure(s); err == nil {
				t.Error("Reconfigure took it")
			}
			if len(sent) > 0 {
				t.Errorf("%d messages were sent", len(sent))
			}
		})
	}
	s := settings(t, 1)
	s.Index = Any
	var sent []genetlink.Message
	if err := fake(t, &sent, nil, nil).Reconfigure(s); !errors.Is(err, ErrNotConnected) {
		t.Errorf("Reconfigure of no device: %v", err)
	}
}

func TestDriversErrors(t *testing.T) {
	for _, tt := range []struct {
		errno unix.Errno
		want  error
	}{
		{unix.EBUSY, ErrBusy}, {unix.ENOENT, ErrNotConnected}, {unix.ENOTCONN, ErrNotConnected}, {unix.EPERM, os.ErrPermission}, {unix.EINVAL, ErrNotConnected},
	} {
		var sent []genetlink.Message
		err := fake(t, &sent, nil, genltest.Error(int(tt.errno))).Reconfigure(settings(t, 1))
		if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), "/dev/nbd3") {
			t.Errorf("%v became %v; want %v, and the device named", tt.errno, err, tt.want)
		}
	}
	var sent []genetlink.Message
	if _, err := fake(t, &sent, nil, genltest.Error(int(unix.EINVAL))).Connect(settings(t, 1)); errors.Is(err, ErrNotConnected) || !errors.Is(err, unix.EINVAL) {
		t.Errorf("EINVAL at Connect became %v", err)
	}
}

func TestNoDriver(t *testing.T) {
	conn := genltest.Dial(func(genetlink.Message, netlink.Message) ([]genetlink.Message, error) {
		return nil, genltest.Error(int(unix.ENOENT))
	})
	defer conn.Close()
	if _, err := newClient(conn); !errors.Is(err, ErrNoDriver) {
		t.Errorf("without the family: %v, want %v", err, ErrNoDriver)
	}
}

// TestClosedSocket: a connection that the caller has closed is named, and nothing sent.
func TestClosedSocket(t *testing.T) {
	s := settings(t, 2)
	_ = s.Conns[1].(*net.UnixConn).Close()
	var sent []genetlink.Message
	if _, err := fake(t, &sent, nil, nil).Connect(s); !errors.Is(err, ErrNoSockets) || len(sent) > 0 {
		t.Errorf("Connect with a closed connection: %v, %d messages", err, len(sent))
	}
}
