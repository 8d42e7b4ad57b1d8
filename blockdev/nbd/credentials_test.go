package nbd_test

import (
	"context"
	"crypto/tls"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/qrbd/qrbd/blockdev/nbd"
	"github.com/qrbd/qrbd/blockdev/nbd/client"
	"github.com/qrbd/qrbd/blockdev/nbd/testca"
)

// TestRotation: new certificates are used without a restart, and broken ones
// change nothing.
func TestRotation(t *testing.T) {
	s := serveTLS(t, nil)
	old := s.db1()
	open := dial(t, s.server, "crm", client.Options{TLS: old})
	try := func(cfg *tls.Config) error {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		c, err := client.Dial(ctx, s.addr, "crm", client.Options{TLS: cfg})
		if err == nil {
			err = c.Close()
		}
		return err
	}
	must(t, try(old))

	// A certificate whose key has not come yet.
	other := &secured{ca: testca.New(t, "next"), dir: t.TempDir()}
	other.credentials(t)
	copyFile(t, filepath.Join(other.dir, "server-cert.pem"), filepath.Join(s.dir, "server-cert.pem"))
	must(t, try(old))
	must(t, try(old))
	if n := strings.Count(s.log.String(), "cannot be used"); n != 1 {
		t.Errorf("%d complaints about half a change, want 1", n)
	}
	// A file that is gone.
	must(t, os.Remove(filepath.Join(s.dir, "ca-cert.pem")))
	must(t, try(old))
	// All of the next authority.
	copyFile(t, filepath.Join(other.dir, "server-key.pem"), filepath.Join(s.dir, "server-key.pem"))
	other.ca.Trust(s.dir)
	if err := try(old); err == nil {
		t.Error("the old certificate is still let in")
	}
	must(t, try(other.db1()))
	if n := strings.Count(s.log.String(), "read anew"); n != 1 {
		t.Errorf("%d times read anew, want 1", n)
	}
	must(t, open.WriteAt([]byte("on"), 0, 0)) // who was there goes on
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	must(t, err)
	must(t, os.WriteFile(to, b, 0o600))
}

// TestCredentials names what is wrong with the files.
func TestCredentials(t *testing.T) {
	ca, dir := testca.New(t, "authority"), t.TempDir()
	cert, key := ca.Issue(dir, testca.Leaf{CommonName: "alpha", Server: true})
	trust := ca.Trust(dir)
	foreign, _ := ca.Issue(t.TempDir(), testca.Leaf{CommonName: "beta", Server: true})
	empty := filepath.Join(dir, "empty")
	must(t, os.WriteFile(empty, nil, 0o600))
	for name, tt := range map[string]struct {
		cert, key, ca, want string
	}{
		"good":             {cert, key, trust, ""},
		"missing":          {cert, key, dir + "/none", dir + "/none: no such file"},
		"two missing":      {dir + "/a", dir + "/b", trust, "/b: no such file"},
		"not PEM":          {empty, key, trust, "certificate " + empty},
		"of another key":   {foreign, key, trust, "private key does not match public key"},
		"CA without any":   {cert, key, empty, "holds no certificate"},
		"key for the cert": {key, key, trust, "certificate " + key},
	} {
		_, err := nbd.LoadCredentials(tt.cert, tt.key, tt.ca)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want ...%s...", name, err, tt.want)
		}
	}
}
