package nbd

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/qrbd/qrbd/blockdev"
)

// errPlain: the client asked for an export without TLS.
var errPlain = errors.New("TLS is required")

// plainOption answers an option of a client that has to start TLS first. Nothing
// but STARTTLS and ABORT is looked at, so nothing can be agreed on in plaintext.
func (h *handshake) plainOption(id uint32, n int64) error {
	switch id {
	case OptExportName:
		return fmt.Errorf("%w: EXPORT_NAME in plaintext", errPlain)
	case OptStartTLS:
		return h.startTLS(n)
	}
	if err := h.discard(n); err != nil {
		return err
	}
	return h.refuse(id, tlsRequired)
}

var tlsRequired = &optionError{RepErrTLSReqd, "this server demands TLS with a client certificate"}

// startTLS answers STARTTLS and makes the TLS handshake, within the deadline of
// the whole handshake. What came before it is forgotten: the options, of which
// none was looked at, and the reader's buffer. The client's flags stay, as the
// protocol has no second greeting.
func (h *handshake) startTLS(n int64) error {
	if err := h.discard(n); err != nil {
		return err
	}
	switch {
	case n != 0:
		return h.refuse(OptStartTLS, invalid("option takes no data"))
	case h.c.srv.draining.Load():
		return h.refuse(OptStartTLS, blockdev.ErrShutdown)
	case h.br.Buffered() > 0:
		// A client waits for the answer. Whoever put this here wants it to be
		// taken for something that came through TLS.
		return fmt.Errorf("%w: %d bytes in plaintext behind STARTTLS", errProtocol, h.br.Buffered())
	}
	cfg := h.c.srv.credentials()
	if err := h.send(h.reply(OptStartTLS, RepAck, nil)); err != nil {
		return err
	}
	secure := tls.Server(h.c.nc, cfg)
	if err := secure.Handshake(); err != nil {
		if !cut(err) {
			h.c.srv.complain(h.c.nc, "TLS with an NBD client failed", "err", err)
			h.c.linger()
		}
		return fmt.Errorf("TLS: %w", err)
	}
	h.c.rw, h.c.tls = secure, secure
	h.caller.Certificate = secure.ConnectionState().PeerCertificates[0]
	h.br.Reset(secure)
	h.structured, h.allocation, h.allocationExport = false, false, ""
	return nil
}

// cut says whether the connection ended, not TLS on it: scanners and clients that
// were displaced are no news.
func cut(err error) bool {
	for _, e := range []error{io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, os.ErrDeadlineExceeded, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

const (
	lingerTime  = time.Second
	lingerBytes = 64 << 10
)

// linger ends the sending side and takes what the client still sends, for a
// while: closing over unread bytes would reset the connection, and the client
// would not see the alert that says why.
func (c *conn) linger() {
	if half, ok := c.nc.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
		return
	}
	c.nc.SetReadDeadline(time.Now().Add(lingerTime))
	io.CopyN(io.Discard, c.nc, lingerBytes)
}

// bye ends TLS in order, after everything was sent, so that the client can tell
// the end from a cut.
func (c *conn) bye() {
	if c.tls != nil {
		c.tls.CloseWrite() // waits 5 s at most for a client that does not read
	}
}
