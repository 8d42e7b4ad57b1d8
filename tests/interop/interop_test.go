package interop_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/nbd"
	"github.com/qrbd/qrbd/tests/interop"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type one struct{ e *nbd.Export }

func (o one) List() []string { return []string{o.e.Name} }

func (o one) Open(name string) (*nbd.Export, error) {
	if name == "" || name == o.e.Name {
		return o.e, nil
	}
	return nil, nbd.ErrUnknownExport
}

// TestServer runs the foreign clients against the server over a file, by a Unix
// socket, and over memory, by TCP.
func TestServer(t *testing.T) {
	t.Run("file, unix", func(t *testing.T) {
		dir := t.TempDir()
		f, err := blockdev.CreateFile(filepath.Join(dir, "disk"), interop.MinSize, false)
		if err != nil {
			t.Fatal(err)
		}
		interop.Run(t, serve(t, f, "unix:"+filepath.Join(dir, "s"), "a name & more"))
	})
	t.Run("memory, tcp", func(t *testing.T) {
		interop.Run(t, serve(t, blockdev.NewMemory(interop.MinSize), "tcp:127.0.0.1:0", "crm"))
	})
}

func serve(t *testing.T, d blockdev.Device, addr, name string) interop.Target {
	t.Helper()
	l, err := nbd.Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	if l.Addr().Network() == "tcp" {
		addr = "tcp:" + l.Addr().String()
	}
	q := blockdev.Async(d, 8)
	s := nbd.NewServer(nbd.Options{Exports: one{&nbd.Export{Name: name, Device: q}}})
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		q.Close()
		d.Close()
	})
	return interop.Target{Addr: addr, Export: name}
}
