package client

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/qrbd/qrbd/blockdev/nbd"
)

// ErrProtocol: the server sent what the protocol does not allow.
var ErrProtocol = errors.New("the NBD server broke the protocol")

// OptionError is a server's refusal of an option.
type OptionError struct {
	Option, Reply uint32
	Text          string
}

func (e *OptionError) Error() string {
	return fmt.Sprintf("NBD option %d refused (%#x): %s", e.Option, e.Reply, e.Text)
}

// OptReply is one reply to an option.
type OptReply struct {
	Option, Type uint32
	Data         []byte
}

// replyMax bounds the data of a reply to an option: a description and a name
// fit.
const replyMax = 64 << 10

// Handshake is a connection before its transmission phase. Methods write and
// read single protocol elements and check nothing that is sent.
type Handshake struct {
	Conn net.Conn
	r    *bufio.Reader
	// Flags are the server's handshake flags.
	Flags uint16
}

// Connect opens a connection to unix:/path or tcp:host:port.
func Connect(ctx context.Context, addr string) (net.Conn, error) {
	network, rest, ok := strings.Cut(addr, ":")
	if !ok || network != "unix" && network != "tcp" {
		return nil, fmt.Errorf("NBD address %q: want unix:/path or tcp:host:port", addr)
	}
	var d net.Dialer
	return d.DialContext(ctx, network, rest)
}

// Greet connects and reads the server's greeting.
func Greet(ctx context.Context, addr string) (*Handshake, error) {
	c, err := Connect(ctx, addr)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	h, err := greet(c)
	if !stop() {
		err = errors.Join(err, ctx.Err())
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return h, nil
}

func greet(c net.Conn) (*Handshake, error) {
	h := &Handshake{Conn: c, r: bufio.NewReaderSize(c, 64<<10)}
	var b [18]byte
	if _, err := io.ReadFull(h.r, b[:]); err != nil {
		return nil, fmt.Errorf("reading the NBD greeting: %w", err)
	}
	if binary.BigEndian.Uint64(b[:]) != nbd.MagicInit || binary.BigEndian.Uint64(b[8:]) != nbd.MagicOption {
		return nil, fmt.Errorf("%w: greeting % x", ErrProtocol, b)
	}
	h.Flags = binary.BigEndian.Uint16(b[16:])
	return h, nil
}

// SendFlags sends the client's flags.
func (h *Handshake) SendFlags(flags uint32) error {
	_, err := h.Conn.Write(binary.BigEndian.AppendUint32(nil, flags))
	return err
}

// StartTLS asks for TLS and goes on over it. After an error the connection is of
// no use; nothing was said but STARTTLS.
func (h *Handshake) StartTLS(ctx context.Context, cfg *tls.Config) error {
	if _, err := h.Ask(nbd.OptStartTLS, nil); err != nil {
		return fmt.Errorf("TLS is demanded: %w", err)
	}
	if n := h.r.Buffered(); n > 0 {
		return fmt.Errorf("%w: %d bytes in plaintext behind the answer to STARTTLS", ErrProtocol, n)
	}
	secure := tls.Client(h.Conn, cfg)
	if err := secure.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS with the NBD server: %w", err)
	}
	h.Conn = secure
	h.r.Reset(secure)
	return nil
}

// AppendOption appends an option to b.
func AppendOption(b []byte, id uint32, data []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, nbd.MagicOption)
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// Send sends an option.
func (h *Handshake) Send(id uint32, data []byte) error {
	_, err := h.Conn.Write(AppendOption(nil, id, data))
	return err
}

// Reply reads one reply.
func (h *Handshake) Reply() (OptReply, error) {
	var b [20]byte
	if _, err := io.ReadFull(h.r, b[:]); err != nil {
		return OptReply{}, err
	}
	r := OptReply{Option: binary.BigEndian.Uint32(b[8:]), Type: binary.BigEndian.Uint32(b[12:])}
	n := binary.BigEndian.Uint32(b[16:])
	if binary.BigEndian.Uint64(b[:]) != nbd.MagicOptReply || n > replyMax {
		return r, fmt.Errorf("%w: option reply % x", ErrProtocol, b)
	}
	r.Data = make([]byte, n)
	_, err := io.ReadFull(h.r, r.Data)
	return r, err
}

// Ask sends an option and returns the replies before the ACK, or the server's
// refusal as an *OptionError.
func (h *Handshake) Ask(id uint32, data []byte) ([]OptReply, error) {
	if err := h.Send(id, data); err != nil {
		return nil, fmt.Errorf("sending NBD option %d: %w", id, err)
	}
	var l []OptReply
	for {
		r, err := h.Reply()
		switch {
		case err != nil:
			return l, fmt.Errorf("reading the reply to NBD option %d: %w", id, err)
		case r.Option != id:
			return l, fmt.Errorf("%w: reply to option %d instead of %d", ErrProtocol, r.Option, id)
		case r.Type == nbd.RepAck:
			return l, nil
		case r.Type&(1<<31) != 0:
			return l, &OptionError{Option: id, Reply: r.Type, Text: string(r.Data)}
		case len(l) == 10000:
			return nil, fmt.Errorf("%w: endless replies to option %d", ErrProtocol, id)
		}
		l = append(l, r)
	}
}

// Read reads bytes that are no option reply, such as the answer to EXPORT_NAME
// and what follows the handshake.
func (h *Handshake) Read(p []byte) (int, error) { return h.r.Read(p) }

// InfoData makes the data of INFO and GO.
func InfoData(export string, infos ...uint16) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(export)))
	b = append(b, export...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(infos)))
	for _, i := range infos {
		b = binary.BigEndian.AppendUint16(b, i)
	}
	return b
}

// ContextData makes the data of LIST_META_CONTEXT and SET_META_CONTEXT.
func ContextData(export string, queries ...string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(export)))
	b = append(b, export...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(queries)))
	for _, q := range queries {
		b = binary.BigEndian.AppendUint32(b, uint32(len(q)))
		b = append(b, q...)
	}
	return b
}
