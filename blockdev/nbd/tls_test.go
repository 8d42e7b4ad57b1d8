package nbd_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/nbd"
	"github.com/qrbd/qrbd/blockdev/nbd/client"
	"github.com/qrbd/qrbd/blockdev/nbd/testca"
)

// secured is a server that demands TLS, and its authority.
type secured struct {
	*server
	ca  *testca.CA
	dir string // certificates of the server
	d   *disk
}

// serveTLS serves "crm" over TLS as the host "alpha".
func serveTLS(t testing.TB, change func(*nbd.Options)) *secured {
	t.Helper()
	s := &secured{ca: testca.New(t, "authority"), dir: t.TempDir(), d: newDisk(size)}
	o := nbd.Options{Exports: newExports(&nbd.Export{Name: "crm", Device: s.d}), TLS: s.credentials(t)}
	if change != nil {
		change(&o)
	}
	s.server = serve(t, o)
	return s
}

func (s *secured) credentials(t testing.TB) *nbd.Credentials {
	t.Helper()
	cert, key := s.ca.Issue(s.dir, testca.Leaf{CommonName: "alpha", DNSNames: []string{"alpha"}, Server: true})
	c, err := nbd.LoadCredentials(cert, key, s.ca.Trust(s.dir))
	must(t, err)
	return c
}

// db1 is a client that is let in.
func (s *secured) db1() *tls.Config { return s.ca.Client(testca.Leaf{CommonName: "db1"}, "alpha") }

// startTLS greets and starts TLS.
func (s *secured) startTLS(t testing.TB, cfg *tls.Config) *client.Handshake {
	t.Helper()
	h := greet(t, s.server, bothFlags)
	must(t, h.StartTLS(t.Context(), cfg))
	return h
}

func (s *secured) alive(t testing.TB) {
	t.Helper()
	c := dial(t, s.server, "crm", client.Options{TLS: s.db1()})
	must(t, c.ReadAt(make([]byte, 512), 0))
	must(t, c.Close())
}

// TestTLS moves data of all sizes, several requests at once, and ends in order.
func TestTLS(t *testing.T) {
	s := serveTLS(t, func(o *nbd.Options) {
		o.Exports = newExports(&nbd.Export{Name: "crm", Device: newDisk(40 << 20)})
	})
	c := dial(t, s.server, "crm", client.Options{TLS: s.db1()})
	data := make([]byte, 33<<20)
	for i := range data {
		data[i] = byte(i >> 9)
	}
	must(t, c.WriteAt(data, 1, blockdev.FUA))
	got := make([]byte, len(data))
	ended := make(chan error, 8)
	for i := range 8 {
		go func() {
			part := got[len(got)/8*i:][:len(got)/8]
			ended <- c.ReadAt(part, int64(1+len(got)/8*i))
		}()
	}
	for range 8 {
		must(t, <-ended)
	}
	if !bytes.Equal(got, data) {
		t.Error("other bytes come back")
	}
	must(t, c.Close())
	for _, end := range [][]byte{request(nbd.CmdDisc, 0, 1, 0, 0), client.AppendOption(nil, nbd.OptAbort, nil)} {
		h := greet(t, s.server, bothFlags)
		wire := &tapped{Conn: h.Conn}
		h.Conn = wire
		must(t, h.StartTLS(t.Context(), s.db1()))
		if end[0] == 0x25 {
			outcome(h, nbd.OptGo, client.InfoData("crm"))
		}
		_, err := h.Conn.Write(end)
		must(t, err)
		_, err = io.Copy(io.Discard, h)
		must(t, err)
		// The last record is an encrypted alert: 2 bytes, type 1, tag 16.
		if goodbye := []byte{0x17, 3, 3, 0, 19}; wire.got.Len() < 24 || !bytes.HasPrefix(wire.got.Bytes()[wire.got.Len()-24:], goodbye) {
			t.Error("TLS ends without close_notify, as if it was cut")
		}
	}
	eventually(t, "the client has left", func() bool { return s.Clients("crm") == 0 })
	if log := s.log.String(); !strings.Contains(log, "certificate=[db1]") || !strings.Contains(log, "the client disconnected") {
		t.Errorf("log:\n%s", log)
	}
}

// tapped keeps what is received.
type tapped struct {
	net.Conn
	got bytes.Buffer
}

func (c *tapped) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.got.Write(p[:n])
	return n, err
}

// TestTLSRequired: line 12, before TLS there is nothing but STARTTLS and ABORT.
func TestTLSRequired(t *testing.T) {
	s := serveTLS(t, nil)
	crm := client.InfoData("crm")
	for _, tt := range []struct {
		name string
		step step
	}{
		{"LIST", step{nbd.OptList, nil, "TLS required"}},
		{"INFO", step{nbd.OptInfo, crm, "TLS required"}},
		{"GO", step{nbd.OptGo, crm, "TLS required"}},
		{"GO malformed", step{nbd.OptGo, []byte{1}, "TLS required"}},
		{"GO too long", step{nbd.OptGo, make([]byte, 70<<10), "TLS required"}},
		{"STRUCTURED_REPLY", step{nbd.OptStructuredReply, nil, "TLS required"}},
		{"LIST_META_CONTEXT", step{nbd.OptListMetaContext, client.ContextData("crm"), "TLS required"}},
		{"SET_META_CONTEXT", step{nbd.OptSetMetaContext, client.ContextData("crm", "base:allocation"), "TLS required"}},
		{"EXTENDED_HEADERS", step{nbd.OptExtendedHeaders, nil, "TLS required"}},
		{"unknown", step{99, []byte("x"), "TLS required"}},
		{"STARTTLS with data", step{nbd.OptStartTLS, []byte("x"), "invalid"}},
		{"EXPORT_NAME", step{nbd.OptExportName, []byte("crm"), "closed"}},
		{"EXPORT_NAME too long", step{nbd.OptExportName, make([]byte, 5000), "closed"}},
		{"ABORT", step{nbd.OptAbort, nil, "ack"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := greet(t, s.server, bothFlags)
			got, l := outcome(h, tt.step.id, tt.step.data)
			if got != tt.step.want || len(l) != 0 {
				t.Fatalf("%s with %d replies, want %s", got, len(l), tt.step.want)
			}
			if got == "closed" || tt.step.id == nbd.OptAbort {
				return
			}
			must(t, h.StartTLS(t.Context(), s.db1())) // and then it goes on
			if got, l := outcome(h, nbd.OptList, nil); got != "ack" || len(l) != 1 {
				t.Errorf("LIST over TLS: %s, %d replies", got, len(l))
			}
			if got, _ := outcome(h, nbd.OptStartTLS, nil); got != "invalid" {
				t.Errorf("second STARTTLS: %s", got)
			}
		})
	}
	if n := len(s.d.requests()); n != 0 || s.Clients("crm") != 0 {
		t.Errorf("%d requests, %d clients in plaintext", n, s.Clients("crm"))
	}
}

// TestNoTLS: line 12, a server without certificates never speaks of TLS.
func TestNoTLS(t *testing.T) {
	s, _ := serveDisk(t)
	h := greet(t, s, bothFlags)
	if got, _ := outcome(h, nbd.OptStartTLS, nil); got != "unsup" {
		t.Errorf("STARTTLS: %s", got)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var refused *client.OptionError
	if _, err := client.Dial(ctx, s.addr, "crm", client.Options{TLS: &tls.Config{ServerName: "alpha"}}); !errors.As(err, &refused) || refused.Option != nbd.OptStartTLS {
		t.Errorf("a client that demands TLS: %v, want the refusal of STARTTLS", err)
	}
	if s.Clients("crm") != 0 {
		t.Error("it fell back to plaintext")
	}
}

// TestNothingSurvivesSTARTTLS: line 13, what came in plaintext has no effect over
// TLS, neither options before STARTTLS nor bytes behind it.
func TestNothingSurvivesSTARTTLS(t *testing.T) {
	s := serveTLS(t, nil)
	t.Run("options before", func(t *testing.T) {
		h := greet(t, s.server, bothFlags)
		outcome(h, nbd.OptStructuredReply, nil)
		outcome(h, nbd.OptSetMetaContext, client.ContextData("crm", "base:allocation"))
		must(t, h.StartTLS(t.Context(), s.db1()))
		if got, _ := outcome(h, nbd.OptSetMetaContext, client.ContextData("crm", "base:allocation")); got != "invalid" {
			t.Errorf("SET_META_CONTEXT: %s, structured replies survived", got)
		}
		outcome(h, nbd.OptGo, client.InfoData("crm"))
		_, err := h.Conn.Write(request(nbd.CmdBlockStatus, 0, 7, 0, 512))
		must(t, err)
		simple := make([]byte, 16) // a structured reply would be longer
		_, err = io.ReadFull(h, simple)
		must(t, err)
		if e := nbd.Errno(binary.BigEndian.Uint32(simple[4:])); binary.BigEndian.Uint32(simple) != nbd.MagicReply || e != nbd.EINVAL {
			t.Errorf("BLOCK_STATUS: % x, want a simple reply with EINVAL", simple)
		}
	})
	eventually(t, "the server has seen that client go", func() bool { return s.Clients("crm") == 0 })
	injected := map[string][]byte{
		"an option":     client.AppendOption(nil, nbd.OptStructuredReply, nil),
		"an export":     client.AppendOption(nil, nbd.OptGo, client.InfoData("crm")),
		"half a header": []byte("IHAVEOPT\x00\x00"),
		"one byte":      {0x16},
	}
	for name, bytes := range injected {
		t.Run(name+" behind", func(t *testing.T) {
			h := greet(t, s.server, bothFlags)
			_, err := h.Conn.Write(append(client.AppendOption(nil, nbd.OptStartTLS, nil), bytes...))
			must(t, err)
			if r, err := h.Reply(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) { // one write to a Unix socket is read as one
				t.Errorf("%v %v, want the connection closed", r, err)
			}
		})
	}
	if s.Clients("crm") != 0 || len(s.d.requests()) != 0 {
		t.Error("an injected option had an effect")
	}
	s.alive(t)
}

// TestWhoIsLetIn: a certificate of the authority, for clients, that has not
// expired, with TLS 1.3. The rest is told by an alert and logged.
func TestWhoIsLetIn(t *testing.T) {
	s := serveTLS(t, nil)
	other := testca.New(t, "authority")
	own := func(l testca.Leaf) func() *tls.Config { return func() *tls.Config { return s.ca.Client(l, "alpha") } }
	for _, tt := range []struct {
		name   string
		cfg    func() *tls.Config
		client string // part of the client's error
		server string // part of the server's log
	}{
		{"good", own(testca.Leaf{CommonName: "db1"}), "", ""},
		{"with an RSA key", own(testca.Leaf{CommonName: "db1", RSA: true}), "", ""},
		{"only alternative names", own(testca.Leaf{DNSNames: []string{"db1"}, IPs: []net.IP{{10, 0, 0, 9}}}), "", ""},
		{"no certificate", func() *tls.Config { return &tls.Config{RootCAs: s.ca.Pool(), ServerName: "alpha"} },
			"certificate required", "client didn't provide a certificate"},
		{"of another authority", func() *tls.Config {
			cfg := other.Client(testca.Leaf{CommonName: "db1"}, "alpha")
			cfg.RootCAs = s.ca.Pool()
			return cfg
		}, "bad certificate", "certificate signed by unknown authority"},
		{"expired", own(testca.Leaf{CommonName: "db1", Expired: true}), "bad certificate", "has expired"},
		{"a server's", own(testca.Leaf{CommonName: "db1", Server: true}), "bad certificate", "incompatible key usage"},
		{"TLS 1.2", func() *tls.Config {
			cfg := s.db1()
			cfg.MaxVersion = tls.VersionTLS12
			return cfg
		}, "protocol version not supported", "unsupported versions"},
		{"server of another name", func() *tls.Config { return s.ca.Client(testca.Leaf{CommonName: "db1"}, "beta") },
			"valid for alpha, not beta", "bad certificate"},
		{"server of another authority", func() *tls.Config {
			cfg := s.db1()
			cfg.RootCAs = other.Pool()
			return cfg
		}, "signed by unknown authority", "bad certificate"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &secured{ca: s.ca, dir: t.TempDir(), d: newDisk(size)}
			s.server = serve(t, nbd.Options{Exports: newExports(&nbd.Export{Name: "crm", Device: s.d}), TLS: s.credentials(t)})
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			c, err := client.Dial(ctx, s.addr, "crm", client.Options{TLS: tt.cfg()})
			if tt.client == "" {
				must(t, err)
				must(t, c.Close())
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.client) {
				t.Errorf("client: %v, want ...%s...", err, tt.client)
			}
			eventually(t, "it is logged: "+tt.server, func() bool {
				log := s.log.String()
				return strings.Contains(log, "level=WARN") && strings.Contains(log, tt.server)
			})
			if s.Clients("crm") != 0 {
				t.Error("it is a client")
			}
		})
	}
}

// byName lets callers in by the names in their certificates.
type byName struct {
	*exports
	allowed map[string]string // export by name of a client
}

func (x byName) List(c nbd.Caller) []string {
	var l []string
	for _, n := range c.Names() {
		l = append(l, x.allowed[n])
	}
	return l
}

func (x byName) Open(name string, c nbd.Caller) (*nbd.Export, error) {
	if !slices.Contains(x.List(c), name) {
		return nil, &nbd.DeniedError{Text: "export " + name + " is not for " + strings.Join(c.Names(), ", ")}
	}
	return x.exports.Open(name, c)
}

// TestClientNames: a client sees and opens what its certificate allows, and is
// told otherwise; that is logged once a minute.
func TestClientNames(t *testing.T) {
	s := serveTLS(t, func(o *nbd.Options) {
		o.Exports = byName{newExports(&nbd.Export{Name: "crm", Device: newDisk(size)}, &nbd.Export{Name: "hr", Device: newDisk(size)}),
			map[string]string{"db1": "crm", "db2.example": "hr"}}
	})
	db2 := s.ca.Client(testca.Leaf{CommonName: "db2", DNSNames: []string{"db2.example"}}, "alpha")
	for range 3 {
		h := s.startTLS(t, db2)
		if got, l := outcome(h, nbd.OptList, nil); got != "ack" || len(l) != 2 || string(l[1].Data[4:]) != "hr" {
			t.Errorf("LIST: %s %v", got, l)
		}
		for _, id := range []uint32{nbd.OptInfo, nbd.OptGo} {
			_, err := h.Ask(id, client.InfoData("crm"))
			if outcomeOf(err) != "policy" || !strings.Contains(err.Error(), "export crm is not for db2, db2.example") {
				t.Errorf("option %d to crm: %v", id, err)
			}
		}
		if got, _ := outcome(h, nbd.OptGo, client.InfoData("hr")); got != "ack" {
			t.Errorf("GO to hr: %s", got)
		}
	}
	if got, _ := outcome(s.startTLS(t, db2), nbd.OptExportName, []byte("crm")); got != "closed" {
		t.Errorf("EXPORT_NAME crm: %s", got)
	}
	if n := strings.Count(s.log.String(), "NBD client refused"); n != 1 {
		t.Errorf("%d refusals were logged, want 1 of this host a minute", n)
	}
}
