package tcpnet

import (
	"crypto/ed25519"
	"testing"

	"github.com/qrbd/qrbd/protocol"
)

// joined returns both ends of a stream between two places.
func joined(t *testing.T, kind protocol.StreamKind) (out, in *stream) {
	t.Helper()
	ida, idb := newIdentity(t), newIdentity(t)
	alpha, beta := place(t, ida, idb), place(t, idb, ida)
	a, err := alpha.Dial(t.Context(), beta.Addr().String(), []ed25519.PublicKey{idb.Public()})
	if err != nil {
		t.Fatal(err)
	}
	b, err := beta.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s, err := a.Open(t.Context(), kind)
	if err != nil {
		t.Fatal(err)
	}
	c, err := b.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return s.(*stream), c.(*stream)
}

// TestWritesDoNotAllocate: in steady state a write costs no memory, whether it may wait
// or not. (A read costs crypto/tls 24 bytes for each record.)
func TestWritesDoNotAllocate(t *testing.T) {
	out, in := joined(t, protocol.StreamWrite)
	ended := make(chan struct{})
	go func() { // takes the bytes as they are
		defer close(ended)
		buf := make([]byte, 256<<10)
		for {
			if _, err := in.net.Read(buf); err != nil {
				return
			}
		}
	}()
	defer func() {
		out.Abort(0)
		<-ended
	}()
	small, large := make([]byte, 4096+50), make([]byte, 256<<10)
	for _, c := range []struct {
		name  string
		write func() error
	}{
		{"TryWrite", func() error { _, err := out.TryWrite(small); return err }},
		{"Write of 4 KiB", func() error { _, err := out.Write(small); return err }},
		{"Write of 256 KiB", func() error { _, err := out.Write(large); return err }},
	} {
		if n := testing.AllocsPerRun(500, func() {
			if err := c.write(); err != nil {
				t.Fatal(err)
			}
		}); n >= 1 { // a collection in between empties crypto/tls's pool
			t.Errorf("%s: %v allocations", c.name, n)
		}
	}
}

// TestReadTakesAllThatCame: several frames of one write, in several records, come with one Read,
// so that one acknowledgement serves them all.
func TestReadTakesAllThatCame(t *testing.T) {
	out, in := joined(t, protocol.StreamWrite)
	sent := make([]byte, 40<<10) // three records
	if _, err := out.Write(sent); err != nil {
		t.Fatal(err)
	}
	// The kernel may cut it once while it comes: not twice.
	buf, reads := make([]byte, 256<<10), 0
	for n := 0; n < len(sent); reads++ {
		m, err := in.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		n += m
	}
	if reads > 2 {
		t.Errorf("%d reads for what came at once", reads)
	}
}
