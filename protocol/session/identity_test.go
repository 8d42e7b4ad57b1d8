package session

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestIdentityIsKept(t *testing.T) {
	dir := t.TempDir()
	if _, err := LoadIdentity(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("identity of an empty directory: %v", err)
	}
	first, err := LoadOrCreateIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	again, err := LoadOrCreateIdentity(dir)
	if err != nil || again.PublicKey() != first.PublicKey() {
		t.Fatalf("%v, %v", again, err)
	}
	if first.Derive("a") != again.Derive("a") || first.Derive("a") == first.Derive("b") {
		t.Error("derived secrets")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != KeyFile {
		t.Fatalf("%v, %v", entries, err)
	}
	if info, err := entries[0].Info(); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := first.save(dir); !errors.Is(err, fs.ErrExist) {
		t.Errorf("saved over a key: %v", err)
	}
	if _, err := LoadOrCreateIdentity(filepath.Join(dir, "absent")); err == nil {
		t.Error("created a key in a directory that is not there")
	}
}

func TestBadKeyFiles(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		data string
		mode fs.FileMode
		want string
	}{
		{"empty", "", 0o600, "no PEM block"},
		{"not PEM", "hello", 0o600, "no PEM block"},
		{"not PKCS 8", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", 0o600, "asn1"},
		{"RSA", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), 0o600, "want an Ed25519 key"},
		{"large", strings.Repeat("x", 5000), 0o600, "5000 bytes"},
		{"readable", "", 0o640, "chmod 600"},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, KeyFile)
		if err := os.WriteFile(path, []byte(c.data), c.mode); err != nil {
			t.Fatal(err)
		}
		_, err := LoadOrCreateIdentity(dir)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", c.name, err)
		}
		if data, _ := os.ReadFile(path); string(data) != c.data {
			t.Errorf("%s: the file was changed", c.name)
		}
	}
}

func TestKeyText(t *testing.T) {
	// The text form is a contract with people's configuration files.
	seed := make([]byte, ed25519.SeedSize)
	id := &Identity{key: ed25519.NewKeyFromSeed(seed)}
	const want = "qk1hnvcppgow2sc2yvdvdicu3ynonsteflxdxrehjr2ybekdc2z3iu3c5q"
	text := id.PublicKey()
	if text != want {
		t.Errorf("key %s, want %s", text, want)
	}
	key, err := ParseKey(text)
	if err != nil || !key.Equal(id.Public()) {
		t.Fatalf("%x, %v", key, err)
	}
	for _, bad := range []string{"", "qk1", text[3:], text[:len(text)-1], text + "a", strings.ToUpper(text), " " + text,
		"qk2" + text[3:], text[:10] + "1" + text[11:], strings.Repeat("a", 1<<16)} {
		if _, err := ParseKey(bad); !errors.Is(err, ErrKeyText) {
			t.Errorf("%.70q: %v", bad, err)
		}
	}
	// One character wrong, or two neighbours swapped.
	for i := 3; i < len(text); i++ {
		for _, r := range "abcdefghijklmnopqrstuvwxyz234567" {
			typo := text[:i] + string(r) + text[i+1:]
			if _, err := ParseKey(typo); err == nil && typo != text {
				t.Errorf("%s accepted for %s", typo, text)
			}
		}
		swapped := []byte(text)
		swapped[i-1], swapped[i] = swapped[i], swapped[i-1]
		if _, err := ParseKey(string(swapped)); err == nil && string(swapped) != text {
			t.Errorf("%s accepted for %s", swapped, text)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add(FormatKey(make(ed25519.PublicKey, ed25519.PublicKeySize)))
	f.Add("qk1")
	f.Fuzz(func(t *testing.T, s string) {
		if key, err := ParseKey(s); err == nil && FormatKey(key) != s {
			t.Fatalf("%q is a second text of %x", s, key)
		}
	})
}

func TestCertificate(t *testing.T) {
	id := newIdentity(t)
	now := time.Now()
	cert, err := id.Certificate(now)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	if !leaf.PublicKey.(ed25519.PublicKey).Equal(id.Public()) || leaf.NotAfter.Before(now.AddDate(19, 0, 0)) ||
		leaf.NotBefore.After(now.AddDate(-20, 0, 0)) {
		t.Errorf("key %x from %v to %v", leaf.PublicKey, leaf.NotBefore, leaf.NotAfter)
	}
}

func newIdentity(t testing.TB) *Identity {
	id, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}
