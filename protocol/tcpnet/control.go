package tcpnet

import (
	"errors"
	"io"
	"time"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/session"
)

// control is the control stream as the session sees it: without Close, which is the
// transport's business, and for as long as the connection lives.
type control struct{ c *conn }

// Read implements session.Carrier.
func (k *control) Read(p []byte) (int, error) {
	n, err := k.c.ctlRead.Read(p)
	return n, k.ours(err)
}

// Write implements session.Carrier.
func (k *control) Write(p []byte) (int, error) {
	if err := k.ended(); err != nil {
		return 0, err
	}
	n, err := k.c.ctl.Write(p)
	return n, k.ours(err)
}

// TryWrite implements session.Carrier.
func (k *control) TryWrite(p []byte) (ok bool, err error) {
	if err := k.ended(); err != nil {
		return false, err
	}
	ok, err = k.c.ctl.TryWrite(p)
	return ok, k.ours(err)
}

// ended returns the connection's cause if it has ended.
func (k *control) ended() error { return k.c.orCause(nil) }

// ours: what happens to the control stream happens to the connection. pump finds out.
func (k *control) ours(err error) error {
	if err == nil {
		return nil
	}
	return k.c.orCause(err)
}

// SetReadDeadline implements session.Carrier.
func (k *control) SetReadDeadline(t time.Time) error { return k.c.ctlRead.SetReadDeadline(t) }

// SetWriteDeadline implements session.Carrier.
func (k *control) SetWriteDeadline(t time.Time) error { return k.c.ctl.SetWriteDeadline(t) }

// SetKind implements session.Carrier. The control stream has none.
func (k *control) SetKind(protocol.StreamKind) {}

// SetShare implements session.Carrier. The control stream has none.
func (k *control) SetShare(bool) {}

// Close implements session.Carrier.
func (k *control) Close() error { return k.ours(k.c.ctl.Close()) }

// Abort implements session.Carrier: there is no session without it.
func (k *control) Abort(protocol.Code) { k.c.lost(session.ErrAborted) }

// pump reads the control stream until it ends, and hands to the session what is not
// the transport's own. After the connection's end it reads on for a while, so that
// the peer's kernel has no reason for a reset before the peer has read why.
func (c *conn) pump() {
	err := c.pumpFrames()
	switch {
	case errors.Is(err, io.EOF): // in order, which is for the session to judge
		c.ctlPump.Close()
		<-c.done
	case isGone(err), errors.Is(err, session.ErrAborted):
		c.lost(session.ErrLost)
	default:
		c.lost(err)
	}
	c.mu.Lock()
	parting := c.parting
	c.mu.Unlock()
	if parting == nil {
		c.ctl.end(abortive)
		return
	}
	c.ctl.net.SetReadDeadline(time.Now().Add(lingerMax))
	io.Copy(io.Discard, c.ctl.net)
	<-parting
	c.ctl.end(graceful)
}

// pumpFrames returns when the stream, or the connection, has ended.
func (c *conn) pumpFrames() error {
	buf := make([]byte, protocol.HeaderLen+session.ControlBodyMax)
	for {
		head := buf[:protocol.HeaderLen]
		if n, err := io.ReadFull(c.ctl, head); err != nil {
			return c.pumpRest(head[:n], err)
		}
		h, err := protocol.ParseHeader(head)
		if err != nil || h.BodyLen > session.ControlBodyMax || h.PayloadLen > 0 {
			return c.pumpRest(head, nil)
		}
		body := buf[protocol.HeaderLen : protocol.HeaderLen+h.BodyLen]
		if n, err := io.ReadFull(c.ctl, body); err != nil {
			return c.pumpRest(buf[:protocol.HeaderLen+n], err)
		}
		if h.Type == protocol.TypeClose {
			if m, err := new(protocol.Decoder).Decode(h, head, body, nil); err == nil {
				said := m.(*protocol.Close)
				return &session.CloseError{Code: said.Code, Text: said.Text}
			}
		}
		if _, err := c.ctlPump.Write(buf[:protocol.HeaderLen+h.BodyLen]); err != nil {
			return session.ErrClosed // the connection has ended
		}
	}
}

// pumpRest hands over what is no frame: the session is to judge it. err is what
// ended the stream behind it.
func (c *conn) pumpRest(b []byte, err error) error {
	if len(b) > 0 {
		if _, err := c.ctlPump.Write(b); err != nil {
			return session.ErrClosed
		}
	}
	if errors.Is(err, io.ErrUnexpectedEOF) { // io.ReadFull's, of a stream that ended in order
		return io.EOF
	}
	if err != nil {
		return err
	}
	if _, err := io.Copy(c.ctlPump, c.ctl); err != nil {
		return c.orCause(err)
	}
	return io.EOF
}
