// Package testca is a certificate authority for tests of exports over TLS. It
// writes PEM files under the names that libnbd and qemu look for in a directory
// of certificates: ca-cert.pem, client-cert.pem, client-key.pem, and
// server-cert.pem and server-key.pem beside them.
package testca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// CA signs certificates.
type CA struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Leaf describes a certificate. The zero value, with a name, is a good client's.
type Leaf struct {
	CommonName string
	DNSNames   []string
	IPs        []net.IP
	Server     bool // for a server, not a client
	RSA        bool // with an RSA key, not an ECDSA one
	Expired    bool
}

// New makes an authority.
func New(t testing.TB, name string) *CA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	check(t, err)
	cert, err := x509.ParseCertificate(der)
	check(t, err)
	return &CA{t: t, cert: cert, key: key}
}

// Pool returns the authority as what a client or server trusts.
func (ca *CA) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(ca.cert)
	return p
}

// Trust writes the authority's certificate into dir as ca-cert.pem.
func (ca *CA) Trust(dir string) (path string) {
	path = filepath.Join(dir, "ca-cert.pem")
	write(ca.t, path, "CERTIFICATE", ca.cert.Raw)
	return path
}

// Issue signs a certificate and writes it and its key into dir.
func (ca *CA) Issue(dir string, l Leaf) (certificate, key string) {
	ca.t.Helper()
	own, err := newKey(l.RSA)
	check(ca.t, err)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	check(ca.t, err)
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: l.CommonName}, DNSNames: l.DNSNames, IPAddresses: l.IPs,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	who := "client"
	if l.Server {
		who, template.ExtKeyUsage[0] = "server", x509.ExtKeyUsageServerAuth
	}
	if l.Expired {
		template.NotAfter = time.Now().Add(-time.Minute)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, own.Public(), ca.key)
	check(ca.t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(own)
	check(ca.t, err)
	certificate, key = filepath.Join(dir, who+"-cert.pem"), filepath.Join(dir, who+"-key.pem")
	write(ca.t, certificate, "CERTIFICATE", der)
	write(ca.t, key, "PRIVATE KEY", secret)
	return certificate, key
}

func newKey(ofRSA bool) (crypto.Signer, error) {
	if ofRSA {
		return rsa.GenerateKey(rand.Reader, 2048)
	}
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

// Client issues a certificate and returns what a client uses to reach a server of
// this authority that is called server.
func (ca *CA) Client(l Leaf, server string) *tls.Config {
	ca.t.Helper()
	pair, err := tls.LoadX509KeyPair(ca.Issue(ca.t.TempDir(), l))
	check(ca.t, err)
	return &tls.Config{RootCAs: ca.Pool(), Certificates: []tls.Certificate{pair}, ServerName: server}
}

func write(t testing.TB, path, kind string, der []byte) {
	t.Helper()
	check(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
