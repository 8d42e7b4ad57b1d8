package session

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base32"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// KeyFile is the name of the identity key inside the state directory: a PKCS #8
// Ed25519 key in PEM, readable by its owner only.
const KeyFile = "identity.key"

// certificateLife is how long the certificate that is made at each start is
// valid. It carries the key; the pin is what is trusted, so it is long.
const certificateLife = 20 * 365 * 24 * time.Hour

// Identity is a node's key pair. The private key does not leave it.
type Identity struct {
	key ed25519.PrivateKey
	// notAfter overrides the end of the certificate's validity; zero:
	// certificateLife from now.
	notAfter time.Time
}

// LoadOrCreateIdentity reads dir's identity key, or makes one. Durable: a new
// key is on stable storage on return. An existing file is never overwritten.
func LoadOrCreateIdentity(dir string) (*Identity, error) {
	id, err := LoadIdentity(dir)
	if !errors.Is(err, fs.ErrNotExist) {
		return id, err
	}
	id, err = NewIdentity()
	if err != nil {
		return nil, err
	}
	switch err := id.save(dir); {
	case errors.Is(err, fs.ErrExist): // another process was first
		return LoadIdentity(dir)
	case err != nil:
		return nil, fmt.Errorf("creating identity key in %s: %w", dir, err)
	}
	return id, nil
}

// NewIdentity makes a key pair that is stored nowhere.
func NewIdentity() (*Identity, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generating identity key: %w", err)
	}
	return &Identity{key: key}, nil
}

// LoadIdentity reads dir's identity key. fs.ErrNotExist: there is none. A file
// that others may read is refused.
func LoadIdentity(dir string) (*Identity, error) {
	path := filepath.Join(dir, KeyFile)
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("identity key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("identity key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("identity key %s has mode %04o: others may know it; chmod 600 it, or remove it for a new identity",
			path, info.Mode().Perm())
	}
	if info.Size() > 4096 {
		return nil, fmt.Errorf("identity key %s has %d bytes: not a key", path, info.Size())
	}
	data := make([]byte, info.Size())
	if n, err := f.ReadAt(data, 0); err != nil && n < len(data) {
		return nil, fmt.Errorf("identity key %s: %w", path, err)
	}
	key, err := parsePrivateKey(data)
	if err != nil {
		return nil, fmt.Errorf("identity key %s: %w", path, err)
	}
	return &Identity{key: key}, nil
}

func parsePrivateKey(data []byte) (ed25519.PrivateKey, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("no PEM block of type PRIVATE KEY")
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("a %T, want an Ed25519 key", k)
	}
	return key, nil
}

// save writes the key under a temporary name and links it to its own, which
// fails when that exists.
func (id *Identity) save(dir string) error {
	der, err := x509.MarshalPKCS8PrivateKey(id.key)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, KeyFile+".*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := pem.Encode(f, &pem.Block{Type: "PRIVATE KEY", Bytes: der}); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Link(f.Name(), filepath.Join(dir, KeyFile)); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Expiring returns the same identity with certificates that are valid until end. For
// tests.
func (id *Identity) Expiring(end time.Time) *Identity { return &Identity{key: id.key, notAfter: end} }

// Public returns the public key.
func (id *Identity) Public() ed25519.PublicKey { return id.key.Public().(ed25519.PublicKey) }

// PublicKey returns the public key as people exchange it: see FormatKey.
func (id *Identity) PublicKey() string { return FormatKey(id.Public()) }

// Certificate returns a self-signed certificate of the key. Its names mean
// nothing and its start is not checked: clocks of two nodes may differ.
func (id *Identity) Certificate(now time.Time) (tls.Certificate, error) {
	notAfter := id.notAfter
	if notAfter.IsZero() {
		notAfter = now.Add(certificateLife)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126))
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)),
		Subject:      pkix.Name{CommonName: "qrbd"},
		NotBefore:    time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     notAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, id.Public(), id.key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("making the certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: id.key}, nil
}

// Derive returns a secret for one purpose that is the same after a restart.
func (id *Identity) Derive(purpose string) [32]byte {
	mac := hmac.New(sha256.New, id.key.Seed())
	mac.Write([]byte(purpose))
	return [32]byte(mac.Sum(nil))
}

// keyPrefix marks and versions the text form of a public key.
const keyPrefix = "qk1"

var keyEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// ErrKeyText: a text is not a public key, or has a typing error.
var ErrKeyText = errors.New("not a public key as `qrbd identity` prints it")

// FormatKey returns "qk1" and 55 characters: base32 of the key's 32 bytes and of
// the first two bytes of a SHA-256 over them, which catch typing errors.
func FormatKey(key ed25519.PublicKey) string {
	sum := keyChecksum(key)
	return keyPrefix + keyEncoding.EncodeToString(append(key[:len(key):len(key)], sum[:]...))
}

// ParseKey is the inverse of FormatKey. It returns ErrKeyText.
func ParseKey(s string) (ed25519.PublicKey, error) {
	text, ok := strings.CutPrefix(s, keyPrefix)
	if !ok {
		return nil, fmt.Errorf("%.80q does not start with %q: %w", s, keyPrefix, ErrKeyText)
	}
	data, err := keyEncoding.DecodeString(text)
	if err != nil || len(data) != ed25519.PublicKeySize+2 {
		return nil, fmt.Errorf("%.80q is not %d characters of a-z and 2-7: %w", s, len(keyPrefix)+55, ErrKeyText)
	}
	key := ed25519.PublicKey(data[:ed25519.PublicKeySize])
	if FormatKey(key) != s {
		return nil, fmt.Errorf("%.80q has a typing error (the checksum is wrong): %w", s, ErrKeyText)
	}
	return key, nil
}

func keyChecksum(key ed25519.PublicKey) [2]byte {
	sum := sha256.Sum256(append([]byte("qrbd public key 1\x00"), key...))
	return [2]byte(sum[:2])
}
