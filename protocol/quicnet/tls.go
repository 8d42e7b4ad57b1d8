package quicnet

import (
	"crypto/ed25519"
	"crypto/tls"
	"fmt"
	"time"

	"github.com/qrbd/qrbd/protocol"
)

// errKey is why VerifyConnection refused a peer's certificate.
type errKey struct{ text string }

func (e *errKey) Error() string { return e.text }

// baseTLS is what dialing and accepting have in common. Chains, names and
// tickets are not used: a peer is who has a pinned key, proved in this
// handshake.
func baseTLS(cert tls.Certificate) *tls.Config {
	c := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{alpn},
		SessionTicketsDisabled: true,
	}
	if cert.PrivateKey != nil {
		c.Certificates = []tls.Certificate{cert}
	}
	return c
}

// serverTLS accepts any client with a key that allowed knows.
func serverTLS(cert tls.Certificate, allowed func(ed25519.PublicKey) bool) *tls.Config {
	c := baseTLS(cert)
	c.ClientAuth = tls.RequireAnyClientCert
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		key, err := presentedKey(cs)
		if err != nil {
			return err
		}
		if !allowed(key) {
			return &errKey{fmt.Sprintf("it presents the key %s, which no [[peer]] here has", FormatKey(key))}
		}
		return nil
	}
	return c
}

// clientTLS accepts a server with one of the keys.
func clientTLS(cert tls.Certificate, keys []ed25519.PublicKey) *tls.Config {
	c := baseTLS(cert)
	// The chain is not verified because there is none: VerifyConnection compares
	// the key itself, and TLS has checked that the server holds it.
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		key, err := presentedKey(cs)
		if err != nil {
			return err
		}
		for _, k := range keys {
			if key.Equal(k) {
				return nil
			}
		}
		return &errKey{fmt.Sprintf("it presents the key %s, configured is %s", FormatKey(key), FormatKey(keys[0]))}
	}
	return c
}

func presentedKey(cs tls.ConnectionState) (ed25519.PublicKey, error) {
	if cs.Version != tls.VersionTLS13 || cs.NegotiatedProtocol != alpn {
		return nil, fmt.Errorf("TLS version %#x, protocol %q", cs.Version, cs.NegotiatedProtocol)
	}
	if len(cs.PeerCertificates) != 1 {
		return nil, &errKey{fmt.Sprintf("it presents %d certificates, want one", len(cs.PeerCertificates))}
	}
	key, ok := cs.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	if !ok {
		return nil, &errKey{fmt.Sprintf("it presents a %T, want an Ed25519 key", cs.PeerCertificates[0].PublicKey)}
	}
	return key, nil
}

// checkExpiry is separate from the key check: it comes after the TLS handshake,
// so that the peer can be told in words why it is refused.
func checkExpiry(cs tls.ConnectionState, peer string, now time.Time) error {
	end := cs.PeerCertificates[0].NotAfter
	if !now.After(end) {
		return nil
	}
	return &refusal{protocol.CodeCertificate, Expired,
		fmt.Sprintf("the certificate of %s expired on %s; restarting its agent makes a new one", peer, end.UTC().Format(time.RFC3339))}
}
