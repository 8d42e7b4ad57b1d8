package nbd

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/qrbd/qrbd/blockdev"
)

// Caller is who asks a server for an export.
type Caller struct {
	// Addr is the client's address, for logs.
	Addr string
	// Certificate is the client's, verified against the CA; nil without TLS.
	Certificate *x509.Certificate
}

// Names returns the names of the caller's certificate: the common name of its
// subject and every alternative name (DNS, e-mail, IP, URI). None without TLS.
func (c Caller) Names() []string {
	cert := c.Certificate
	if cert == nil {
		return nil
	}
	var names []string
	if cert.Subject.CommonName != "" {
		names = append(names, cert.Subject.CommonName)
	}
	names = append(names, cert.DNSNames...)
	names = append(names, cert.EmailAddresses...)
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	for _, u := range cert.URIs {
		names = append(names, u.String())
	}
	return names
}

// Credentials are what a server proves itself with and judges clients by: a
// certificate with its key, and the CA of clients' certificates, all PEM files.
// They are read again when the files have changed; what cannot be used then
// changes nothing. Safe for concurrent use.
type Credentials struct {
	certificate, key, clientCA string

	mu sync.Mutex
	// Guarded by mu.
	stamps [3]stamp // of the files when they were last read
	good   *tls.Config
	leaf   *x509.Certificate
}

// stamp tells versions of a file apart.
type stamp struct {
	ino        uint64
	size       int64
	mtim, ctim syscall.Timespec
}

// LoadCredentials reads the three files.
func LoadCredentials(certificate, key, clientCA string) (*Credentials, error) {
	c := &Credentials{certificate: certificate, key: key, clientCA: clientCA}
	stamps, err := c.stat()
	if err != nil {
		return nil, err
	}
	return c, c.read(stamps)
}

// Expires returns when the server's certificate does.
func (c *Credentials) Expires() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leaf.NotAfter
}

// current returns what to use for a new connection. fresh: the files were read
// anew. An error means that the files have changed and cannot be used; it comes
// once, and what was read before it goes on being used.
func (c *Credentials) current() (cfg *tls.Config, fresh bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	stamps, err := c.stat()
	if stamps == c.stamps {
		return c.good, false, nil
	}
	if err != nil {
		c.stamps = stamps
		return c.good, false, err
	}
	err = c.read(stamps)
	return c.good, err == nil, err
}

// stat looks at the files. One that cannot be looked at has the zero stamp.
func (c *Credentials) stat() (s [3]stamp, err error) {
	for i, path := range []string{c.certificate, c.key, c.clientCA} {
		var st syscall.Stat_t
		if e := syscall.Stat(path, &st); e != nil {
			err = errors.Join(err, &os.PathError{Op: "stat", Path: path, Err: e})
			continue
		}
		s[i] = stamp{ino: st.Ino, size: st.Size, mtim: st.Mtim, ctim: st.Ctim}
	}
	return s, err
}

// read reads the files, which had those stamps before. REQUIRES c.mu, or that
// nobody else knows c yet.
func (c *Credentials) read(stamps [3]stamp) error {
	c.stamps = stamps
	pair, err := tls.LoadX509KeyPair(c.certificate, c.key)
	if err != nil {
		return fmt.Errorf("certificate %s with key %s: %w", c.certificate, c.key, err)
	}
	pem, err := os.ReadFile(c.clientCA)
	if err != nil {
		return fmt.Errorf("CA of the clients: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return fmt.Errorf("CA of the clients: %s holds no certificate in PEM", c.clientCA)
	}
	c.leaf = pair.Leaf
	c.good = &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{pair},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    pool,
		// A resumed session would outlive a certificate that was replaced; NBD
		// connections are long, so nothing is lost.
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true,
	}
	return nil
}

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

// credentials returns the TLS configuration for a new connection.
func (s *Server) credentials() *tls.Config {
	cfg, fresh, err := s.opt.TLS.current()
	switch {
	case err != nil:
		s.opt.Log.Error("changed certificates cannot be used; those read before stay in use", "err", err)
	case fresh:
		s.opt.Log.Info("certificates read anew", "certificate", s.opt.TLS.certificate, "expires", s.opt.TLS.Expires())
	}
	return cfg
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

const (
	complainAgain = time.Minute // about the same host
	complainMax   = 64          // hosts remembered
)

// complaints bounds how often hosts are complained about.
type complaints struct {
	mu sync.Mutex
	// Guarded by mu.
	last map[string]time.Time
	held int // not logged since the last one that was
}

// due says whether to log now, and how many were not since the last time.
func (l *complaints) due(host string, now time.Time) (held int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last == nil {
		l.last = map[string]time.Time{}
	}
	for k, t := range l.last {
		if now.Sub(t) >= complainAgain {
			delete(l.last, k)
		}
	}
	if _, recent := l.last[host]; recent || len(l.last) >= complainMax {
		l.held++
		return 0, false
	}
	l.last[host] = now
	held, l.held = l.held, 0
	return held, true
}

// complain logs a client that was refused, once a minute for each host.
func (s *Server) complain(nc net.Conn, what string, attrs ...any) {
	addr := nc.RemoteAddr().String()
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = addr
	}
	held, ok := s.complaints.due(host, time.Now())
	if !ok {
		return
	}
	attrs = append([]any{"client", addr}, attrs...)
	if held > 0 {
		attrs = append(attrs, "others", held)
	}
	s.opt.Log.Warn(what, attrs...)
}
