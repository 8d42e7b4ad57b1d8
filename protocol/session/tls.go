package session

import (
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"github.com/qrbd/qrbd/protocol"
)

// baseTLS is what dialing and accepting have in common. Chains, names and
// tickets are not used: a peer is who has a pinned key, proved in this
// handshake.
func baseTLS(cert tls.Certificate) *tls.Config {
	c := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{ALPN},
		SessionTicketsDisabled: true,
	}
	if cert.PrivateKey != nil {
		c.Certificates = []tls.Certificate{cert}
	}
	return c
}

// ServerTLS accepts any client with a key that allowed knows.
func ServerTLS(cert tls.Certificate, allowed func(ed25519.PublicKey) bool) *tls.Config {
	c := baseTLS(cert)
	c.ClientAuth = tls.RequireAnyClientCert
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		key, err := PresentedKey(cs)
		if err != nil {
			return err
		}
		if !allowed(key) {
			return &Failure{WrongKey, fmt.Errorf("it presents the key %s, which no [[peer]] here has", FormatKey(key))}
		}
		return nil
	}
	return c
}

// ClientTLS accepts a server with one of the keys.
func ClientTLS(cert tls.Certificate, keys []ed25519.PublicKey) *tls.Config {
	c := baseTLS(cert)
	// The chain is not verified because there is none: VerifyConnection compares
	// the key itself, and TLS has checked that the server holds it.
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		key, err := PresentedKey(cs)
		if err != nil {
			return err
		}
		for _, k := range keys {
			if key.Equal(k) {
				return nil
			}
		}
		return &Failure{WrongKey, fmt.Errorf("it presents the key %s, configured is %s", FormatKey(key), FormatKey(keys[0]))}
	}
	return c
}

// PresentedKey returns the key that the other side has proved in a handshake. Errors
// are of the type *Failure.
func PresentedKey(cs tls.ConnectionState) (ed25519.PublicKey, error) {
	if cs.Version != tls.VersionTLS13 || cs.NegotiatedProtocol == "" {
		return nil, &Failure{VersionDiffers, fmt.Errorf("TLS version %#x, protocol %q", cs.Version, cs.NegotiatedProtocol)}
	}
	switch n := len(cs.PeerCertificates); n {
	case 0:
		return nil, &Failure{NoCertificate, errors.New("it presents no certificate")}
	case 1:
	default:
		return nil, &Failure{WrongKey, fmt.Errorf("it presents %d certificates, want one", n)}
	}
	key, ok := cs.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	if !ok {
		return nil, &Failure{WrongKey, fmt.Errorf("it presents a %T, want an Ed25519 key", cs.PeerCertificates[0].PublicKey)}
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
