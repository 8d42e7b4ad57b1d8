package nbd

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"
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
		// Not RequireAndVerifyClientCert with ClientCAs, which verify would repeat:
		// that sends the names of the CA, and of its RSA certificates GnuTLS 3.7
		// (libnbd and qemu of Debian 12) then finds none that it may use under TLS
		// 1.3, and presents none at all.
		ClientAuth:       tls.RequireAnyClientCert,
		VerifyConnection: func(s tls.ConnectionState) error { return verify(s.PeerCertificates, pool) },
		// A resumed session would outlive a certificate that was replaced; NBD
		// connections are long, so nothing is lost.
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true,
	}
	return nil
}

// verify checks a client's certificate, with the intermediate ones behind it,
// against the CA. That the client has its key is checked by TLS.
func verify(chain []*x509.Certificate, ca *x509.CertPool) error {
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: ca, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err
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
