package tcpnet

import (
	"crypto/ed25519"
	"net"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/qrbd/qrbd/protocol"
)

// option returns a socket option of a connection.
func option(t *testing.T, c net.Conn, level, name int) (v int) {
	t.Helper()
	onSocket(c, func(fd int) {
		var err error
		if v, err = unix.GetsockoptInt(fd, level, name); err != nil {
			t.Error(err)
		}
	})
	return v
}

func congestionOf(t *testing.T, c net.Conn) (name string) {
	t.Helper()
	onSocket(c, func(fd int) {
		var err error
		if name, err = unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION); err != nil {
			t.Error(err)
		}
	})
	return strings.TrimRight(name, "\x00")
}

// TestSocketOptions: every connection of a session has the configured congestion control and
// no delay, a bulk stream is behind the others and keeps little unsent.
func TestSocketOptions(t *testing.T) {
	ida, idb := newIdentity(t), newIdentity(t)
	alpha, beta := place(t, ida, idb), place(t, idb, ida)
	out, err := alpha.Dial(t.Context(), beta.Addr().String(), []ed25519.PublicKey{idb.Public()})
	if err != nil {
		t.Fatal(err)
	}
	in, err := beta.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	write, err := out.Open(t.Context(), protocol.StreamWrite)
	if err != nil {
		t.Fatal(err)
	}
	bulk, err := out.Open(t.Context(), protocol.StreamBulk)
	if err != nil {
		t.Fatal(err)
	}
	taken, err := in.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{out.(*conn).ctl.net, in.(*conn).ctl.net, write.(*stream).net, bulk.(*stream).net, taken.(*stream).net} {
		if got := congestionOf(t, c); got != "reno" {
			t.Errorf("congestion control %q", got)
		}
		if option(t, c, unix.IPPROTO_TCP, unix.TCP_NODELAY) != 1 {
			t.Error("small writes wait for acknowledgements")
		}
	}
	for _, c := range []struct {
		conn net.Conn
		want int
	}{{out.(*conn).ctl.net, priorityControl}, {write.(*stream).net, priorityWrite}, {bulk.(*stream).net, priorityBulk}} {
		if got := option(t, c.conn, unix.SOL_SOCKET, unix.SO_PRIORITY); got != c.want {
			t.Errorf("priority %d, want %d", got, c.want)
		}
	}
	if got := option(t, bulk.(*stream).net, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT); got != unsentMax {
		t.Errorf("%d bytes may wait unsent", got)
	}
	bulk.SetShare(true)
	if got := option(t, bulk.(*stream).net, unix.SOL_SOCKET, unix.SO_PRIORITY); got != priorityShare {
		t.Errorf("priority %d with a share", got)
	}
}

// TestDialsFromListenAddress: a host with several addresses is known by the one that it
// listens on.
func TestDialsFromListenAddress(t *testing.T) {
	for listen, want := range map[string]string{"127.0.0.7:7790": "127.0.0.7:0", "[::1]:7790": "[::1]:0", "0.0.0.0:7790": "", ":7790": "", "localhost:7790": ""} {
		got := ""
		if a := from(listen); a != nil {
			got = a.String()
		}
		if got != want {
			t.Errorf("listening on %s dials from %q, want %q", listen, got, want)
		}
	}
}

// TestCheckCongestion: what this kernel has not is refused with what to do.
func TestCheckCongestion(t *testing.T) {
	if err := checkCongestion("reno"); err != nil {
		t.Error(err)
	}
	if err := checkCongestion("qrbd_none"); err == nil || !strings.Contains(err.Error(), "modprobe tcp_qrbd_none") {
		t.Errorf("%v", err)
	}
}
