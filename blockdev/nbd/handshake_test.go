package nbd_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"io"
	"net"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/nbd"
	"github.com/qrbd/qrbd/blockdev/nbd/client"
)

// golden is what a writable export without structured replies offers:
// HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, MULTI_CONN, CACHE, FAST_ZERO.
const golden = "0d6d"

// TestGoldenHandshake compares whole conversations byte by byte.
func TestGoldenHandshake(t *testing.T) {
	greeting := "4e42444d41474943" + "49484156454f5054" + "0003"
	opt := func(id uint32, data []byte) string { return hex.EncodeToString(client.AppendOption(nil, id, data)) }
	rep := func(id, kind string, data string) string {
		n := binary.BigEndian.AppendUint32(nil, uint32(len(data)/2))
		return "0003e889045565a9" + id + kind + hex.EncodeToString(n) + data
	}
	tests := []struct{ name, send, want string }{
		{"EXPORT_NAME with zeroes", "00000001" + opt(1, []byte("crm")),
			greeting + "0000000000100000" + golden + strings.Repeat("00", 124)},
		{"EXPORT_NAME with NO_ZEROES", "00000003" + opt(1, []byte("crm")),
			greeting + "0000000000100000" + golden},
		{"EXPORT_NAME of an old client", "00000000" + opt(1, []byte("crm")),
			greeting + "0000000000100000" + golden + strings.Repeat("00", 124)},
		{"GO without zeroes to follow", "00000001" + opt(7, client.InfoData("crm")),
			greeting + rep("00000007", "00000003", "0000"+"0000000000100000"+golden) + rep("00000007", "00000001", "")},
		{"GO with block size and name", "00000003" + opt(7, client.InfoData("crm", 3, 1)),
			greeting + rep("00000007", "00000003", "0000"+"0000000000100000"+golden) +
				rep("00000007", "00000003", "0001"+"63726d") +
				rep("00000007", "00000003", "0003"+"00000001"+"00001000"+"02000000") +
				rep("00000007", "00000001", "")},
		{"structured replies and context", "00000003" + opt(8, nil) + opt(10, client.ContextData("crm", "base:allocation")) + opt(7, client.InfoData("crm")),
			greeting + rep("00000008", "00000001", "") +
				rep("0000000a", "00000004", "00000001"+hex.EncodeToString([]byte("base:allocation"))) + rep("0000000a", "00000001", "") +
				rep("00000007", "00000003", "0000"+"0000000000100000"+"0ded") + rep("00000007", "00000001", "")},
		{"LIST", "00000003" + opt(3, nil), greeting + rep("00000003", "00000002", "00000003"+"63726d") + rep("00000003", "00000001", "")},
		{"ABORT", "00000003" + opt(2, nil), greeting + rep("00000002", "00000001", "")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, _ := serveDisk(t)
			c, err := net.Dial("unix", strings.TrimPrefix(s.addr, "unix:"))
			must(t, err)
			defer c.Close()
			c.SetDeadline(time.Now().Add(limit))
			send, _ := hex.DecodeString(tt.send)
			_, err = c.Write(send)
			must(t, err)
			must(t, c.(*net.UnixConn).CloseWrite())
			got, err := io.ReadAll(c)
			must(t, err)
			if hex.EncodeToString(got) != tt.want {
				t.Errorf("got\n%x\nwant\n%s", got, tt.want)
			}
		})
	}
}

// TestClientFlags: lines 1 and 2.
func TestClientFlags(t *testing.T) {
	tests := []struct {
		flags uint32
		want  string
	}{
		{1, "ack"}, {3, "ack"},
		{0, "closed"}, {2, "closed"}, // not fixed newstyle: EXPORT_NAME only
		{4, "closed"}, {7, "closed"}, {1 << 31, "closed"}, {0xffffffff, "closed"},
	}
	s, _ := serveDisk(t)
	for _, tt := range tests {
		h := greet(t, s, tt.flags)
		if h.Flags != nbd.FlagFixedNewstyle|nbd.FlagNoZeroes {
			t.Errorf("server flags %#x", h.Flags)
		}
		if got, _ := outcome(h, nbd.OptList, nil); got != tt.want {
			t.Errorf("client flags %#x: %s, want %s", tt.flags, got, tt.want)
		}
	}
	alive(t, s)
}

// step is one option of a conversation and what comes of it.
type step struct {
	id   uint32
	data []byte
	want string
}

func u32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

func name(n int) string { return strings.Repeat("n", n) }

// TestOptions holds conversations for lines 3 to 9, 12 (without TLS) and 29.
// After each a LIST must still be understood, unless the connection closed.
func TestOptions(t *testing.T) {
	go_, info := nbd.OptGo, nbd.OptInfo
	set, list := nbd.OptSetMetaContext, nbd.OptListMetaContext
	sr := step{nbd.OptStructuredReply, nil, "ack"}
	crm := client.InfoData("crm")
	tests := []struct {
		name  string
		steps []step
	}{
		{"3 unknown options", []step{{99, nil, "unsup"}, {4, []byte("peek"), "unsup"}, {0xffffffff, make([]byte, 70000), "unsup"}}},
		{"12 STARTTLS", []step{{nbd.OptStartTLS, nil, "unsup"}, {nbd.OptStartTLS, []byte("x"), "unsup"}}},
		{"29 extended headers", []step{{nbd.OptExtendedHeaders, nil, "unsup"}}},
		{"4 name lengths", []step{
			{info, client.InfoData(name(255)), "unknown"}, {info, client.InfoData(name(256)), "unknown"},
			{info, client.InfoData(name(257)), "unknown"}, {info, client.InfoData(name(4095)), "unknown"},
			{info, client.InfoData(name(4096)), "unknown"}, {info, client.InfoData(name(4097)), "too big"},
			{go_, client.InfoData(name(4097)), "too big"}, {info, client.InfoData(name(65000)), "too big"},
		}},
		{"4 bad strings", []step{{info, client.InfoData("a\x00b"), "invalid"}, {go_, client.InfoData("\xff"), "invalid"}}},
		{"4 option over 64 KiB", []step{{info, make([]byte, 64<<10+1), "too big"}, {nbd.OptList, make([]byte, 1<<20), "too big"}}},
		{"5 lengths that do not match", []step{
			{info, nil, "invalid"}, {info, make([]byte, 5), "invalid"}, {go_, u32(0xffffffff), "invalid"},
			{info, append(u32(0xffffffff), "crm\x00\x00"...), "invalid"},
			{info, append(u32(4), "crm\x00\x00"...), "invalid"}, {info, append(u32(4), "crmxx"...), "invalid"}, {info, append(u32(5), "crmxx"...), "invalid"},
			{go_, append(crm[:len(crm)-2:len(crm)-2], 0, 1), "invalid"},
			{info, append(crm[:len(crm):len(crm)], 0, 0), "invalid"},
			{info, append(crm[:len(crm)-2:len(crm)-2], append([]byte{0xff, 0xff}, make([]byte, 2000)...)...), "invalid"},
		}},
		{"5 unknown information is ignored", []step{{info, client.InfoData("crm", 77, 0, 3, 65535), "ack"}}},
		{"5 long list of information", []step{{info, client.InfoData("crm", make([]uint16, 2000)...), "ack"}}},
		{"5 unknown export", []step{{info, client.InfoData("erp"), "unknown"}, {go_, client.InfoData("erp"), "unknown"}}},
		{"5 INFO of one, GO to another", []step{{info, crm, "ack"}, {go_, client.InfoData("erp"), "unknown"}}},
		{"5 policy", []step{{info, client.InfoData("secondary"), "policy"}, {go_, client.InfoData("secondary"), "policy"}}},
		{"5 no default among several", []step{{info, client.InfoData(""), "unknown"}}},
		{"6 EXPORT_NAME unknown", []step{{nbd.OptExportName, []byte("erp"), "closed"}}},
		{"6 EXPORT_NAME refused", []step{{nbd.OptExportName, []byte("secondary"), "closed"}}},
		{"6 EXPORT_NAME of 4097 bytes", []step{{nbd.OptExportName, []byte(name(4097)), "closed"}}},
		{"7 ABORT with data", []step{{nbd.OptAbort, []byte("because"), "ack"}, {nbd.OptList, nil, "closed"}}},
		{"7 LIST with data", []step{{nbd.OptList, []byte("x"), "invalid"}}},
		{"8 STRUCTURED_REPLY with data", []step{{nbd.OptStructuredReply, []byte("x"), "invalid"}, sr, sr}},
		{"9 contexts need structured replies", []step{
			{set, client.ContextData("crm", "base:allocation"), "invalid"}, {list, client.ContextData("crm"), "invalid"},
		}},
		{"9 lengths that do not match", []step{sr,
			{set, nil, "invalid"}, {set, append(u32(0xffffffff), 0, 0, 0, 0), "invalid"},
			{set, append(client.ContextData("crm"), 1), "invalid"},
			{set, append(append(u32(3), "crm"...), u32(0xffffffff)...), "invalid"},
			{set, append(append(append(u32(3), "crm"...), u32(1)...), u32(0xfffffff0)...), "invalid"},
			{set, client.ContextData("crm", name(4097)+":x"), "too big"},
		}},
		{"9 queries", []step{sr,
			{set, client.ContextData("crm", "allocation"), "invalid"}, {set, client.ContextData("crm", ""), "invalid"},
			{set, client.ContextData("crm", ":x"), "invalid"}, {set, client.ContextData("crm", "qemu:dirty-bitmap:x"), "ack"},
			{set, client.ContextData("erp", "base:allocation"), "unknown"}, {set, client.ContextData("secondary"), "policy"},
		}},
	}
	x := newExports(&nbd.Export{Name: "crm", Device: newDisk(size)}, &nbd.Export{Name: "hr", Device: newDisk(size)},
		&nbd.Export{Name: "secondary", Device: newDisk(size)})
	x.set("secondary", &nbd.PolicyError{Text: "primary is alpha" + name(5000)})
	s := serve(t, nbd.Options{Exports: x})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := greet(t, s, bothFlags)
			got := ""
			for i, st := range tt.steps {
				var l []client.OptReply
				got, l = outcome(h, st.id, st.data)
				if got != st.want {
					t.Fatalf("step %d, option %d with %d bytes: %s, want %s", i, st.id, len(st.data), got, st.want)
				}
				if got != "ack" && len(l) > 0 {
					t.Errorf("step %d: %d replies before the refusal", i, len(l))
				}
			}
			if last := tt.steps[len(tt.steps)-1].want; last == "closed" {
				return
			}
			if got, l := outcome(h, nbd.OptList, nil); got != "ack" || len(l) != 3 {
				t.Errorf("LIST afterwards: %s with %d replies", got, len(l))
			}
		})
	}
	alive(t, s)
}

// TestPolicyText: the text reaches the client, cut to a bound.
func TestPolicyText(t *testing.T) {
	x := newExports(&nbd.Export{Name: "crm", Device: newDisk(size)})
	s := serve(t, nbd.Options{Exports: x})
	for _, text := range []string{"the primary is alpha", name(5000)} {
		x.set("crm", &nbd.PolicyError{Text: text})
		_, err := greet(t, s, bothFlags).Ask(nbd.OptGo, client.InfoData(""))
		if want := text[:min(len(text), 1024)]; err == nil || !strings.HasSuffix(err.Error(), ": "+want) {
			t.Errorf("GO: %v, want %q", err, want)
		}
	}
}

// TestSameAnswer: line 5, INFO and GO agree; line 27, block sizes; 14, flags.
func TestSameAnswer(t *testing.T) {
	tests := []struct {
		name     string
		e        nbd.Export
		want     string // flags without structured replies
		min, pre uint32
	}{
		{"plain", nbd.Export{}, golden, 1, 4096},
		{"read-only", nbd.Export{ReadOnly: true}, "050f", 1, 4096},
		{"rotational", nbd.Export{Rotational: true}, "0d7d", 1, 4096},
		{"blocks", nbd.Export{MinBlock: 512, PreferredBlock: 65536}, golden, 512, 65536},
		{"large minimum", nbd.Export{MinBlock: 65536}, golden, 65536, 65536},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := tt.e
			e.Name, e.Description, e.Device = "crm", "accounts", newDisk(size)
			s := serve(t, nbd.Options{Exports: newExports(&e)})
			h := greet(t, s, bothFlags)
			data := client.InfoData("", nbd.InfoBlockSize, nbd.InfoDescription, nbd.InfoName)
			got, first := outcome(h, nbd.OptInfo, data)
			if got != "ack" || len(first) != 4 {
				t.Fatalf("INFO: %s, %d replies", got, len(first))
			}
			if f := hex.EncodeToString(first[0].Data[10:]); f != tt.want {
				t.Errorf("flags %s, want %s", f, tt.want)
			}
			blocks := append(append(u32(tt.min), u32(tt.pre)...), u32(32<<20)...)
			if !slices.ContainsFunc(first, func(r client.OptReply) bool { return bytes.Equal(r.Data, append([]byte{0, 3}, blocks...)) }) {
				t.Errorf("no block sizes %d, %d in %v", tt.min, tt.pre, first)
			}
			got, second := outcome(h, nbd.OptGo, data)
			for i := range second {
				second[i].Option = nbd.OptInfo
			}
			if got != "ack" || !reflect.DeepEqual(first, second) {
				t.Errorf("GO: %s %v, INFO had %v", got, second, first)
			}
		})
	}
}

// TestList: line 7, one reply per export.
func TestList(t *testing.T) {
	s := serve(t, nbd.Options{Exports: newExports(&nbd.Export{Name: "a", Device: newDisk(size)}, &nbd.Export{Name: "b", Device: newDisk(size)})})
	got, l := outcome(greet(t, s, bothFlags), nbd.OptList, nil)
	want := []client.OptReply{
		{Option: nbd.OptList, Type: nbd.RepServer, Data: []byte("\x00\x00\x00\x01a")},
		{Option: nbd.OptList, Type: nbd.RepServer, Data: []byte("\x00\x00\x00\x01b")},
	}
	if got != "ack" || !reflect.DeepEqual(l, want) {
		t.Errorf("%s %v", got, l)
	}
}

// TestContexts: line 9, what a set and a list select, and whether BLOCK_STATUS
// works after GO.
func TestContexts(t *testing.T) {
	set, list := nbd.OptSetMetaContext, nbd.OptListMetaContext
	type ask struct {
		id       uint32
		export   string
		queries  []string
		selected bool
	}
	all := "base:allocation"
	tests := []struct {
		name string
		asks []ask
		goTo string
		want nbd.Errno
	}{
		{"selected", []ask{{set, "crm", []string{"x:y", all}, true}}, "crm", nbd.EOK},
		{"nothing selected", nil, "crm", nbd.EINVAL},
		{"base: selects nothing", []ask{{set, "crm", []string{"base:"}, false}}, "crm", nbd.EINVAL},
		{"unknown leaf", []ask{{set, "crm", []string{"base:depth"}, false}}, "crm", nbd.EINVAL},
		{"list selects nothing", []ask{{list, "crm", nil, true}, {list, "crm", []string{"base:"}, true}, {list, "crm", []string{"qemu:"}, false}}, "crm", nbd.EINVAL},
		{"list keeps the set", []ask{{set, "crm", []string{all}, true}, {list, "crm", []string{"qemu:"}, false}}, "crm", nbd.EOK},
		{"empty set clears", []ask{{set, "crm", []string{all}, true}, {set, "crm", nil, false}}, "crm", nbd.EINVAL},
		{"set for another export", []ask{{set, "hr", []string{all}, true}}, "crm", nbd.EINVAL},
		{"set replaced by another export's", []ask{{set, "crm", []string{all}, true}, {set, "hr", []string{all}, true}}, "crm", nbd.EINVAL},
	}
	s := serve(t, nbd.Options{Exports: newExports(&nbd.Export{Name: "crm", Device: newDisk(size)}, &nbd.Export{Name: "hr", Device: newDisk(size)})})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := greet(t, s, bothFlags)
			outcome(h, nbd.OptStructuredReply, nil)
			for i, a := range tt.asks {
				got, l := outcome(h, a.id, client.ContextData(a.export, a.queries...))
				if got != "ack" || a.selected != (len(l) == 1) {
					t.Errorf("ask %d: %s %v", i, got, l)
				}
			}
			statusAfterGo(t, h, tt.goTo, tt.want)
		})
	}
	t.Run("a failed set clears", func(t *testing.T) {
		for _, bad := range [][]byte{client.ContextData("crm", "nonsense"), client.ContextData("erp", all), {1}} {
			h := greet(t, s, bothFlags)
			outcome(h, nbd.OptStructuredReply, nil)
			outcome(h, set, client.ContextData("crm", all))
			if got, _ := outcome(h, set, bad); got == "ack" {
				t.Errorf("% x was accepted", bad)
			}
			statusAfterGo(t, h, "crm", nbd.EINVAL)
		}
	})
}

// statusAfterGo goes to the export and asks for the status of a block.
func statusAfterGo(t *testing.T, h *client.Handshake, export string, want nbd.Errno) {
	t.Helper()
	if got, _ := outcome(h, nbd.OptGo, client.InfoData(export)); got != "ack" {
		t.Fatalf("GO: %s", got)
	}
	_, err := h.Conn.Write(request(nbd.CmdBlockStatus, 0, 7, 0, 512))
	must(t, err)
	b := make([]byte, 20)
	_, err = io.ReadFull(h, b)
	must(t, err)
	body := make([]byte, binary.BigEndian.Uint32(b[16:]))
	_, err = io.ReadFull(h, body)
	must(t, err)
	got := nbd.EOK
	if kind := binary.BigEndian.Uint16(b[6:]); kind != nbd.ChunkBlockStatus {
		got = nbd.Errno(binary.BigEndian.Uint32(body))
	}
	if got != want {
		t.Errorf("BLOCK_STATUS: %v, want %v", got, want)
	}
}

// request makes a request header.
func request(cmd, flags uint16, cookie, off uint64, n uint32) []byte {
	return nbd.AppendRequest(nil, nbd.RequestHeader{
		RequestMagic: nbd.MagicRequest, CommandFlags: flags, Type: cmd, Handle: cookie, Offset: off, Length: n,
	})
}

// TestOptionBudget: an endless stream of options, or an endless option, ends the
// connection; 2^32-1 bytes are refused and not read.
func TestOptionBudget(t *testing.T) {
	s, _ := serveDisk(t)
	h := greet(t, s, bothFlags)
	n := 0
	for ; n < 5000; n++ {
		if got, _ := outcome(h, 99, nil); got != "unsup" {
			break
		}
	}
	if n != 1024 {
		t.Errorf("%d options were answered, want 1024", n)
	}
	for _, id := range []uint32{nbd.OptGo, 99} {
		h = greet(t, s, bothFlags)
		b := client.AppendOption(nil, id, nil)
		binary.BigEndian.PutUint32(b[12:], 0xffffffff)
		_, err := h.Conn.Write(b)
		must(t, err)
		r, err := h.Reply()
		if err != nil || r.Type != nbd.RepErrTooBig {
			t.Errorf("option %d of 2^32-1 bytes: %#x %v, want TOO_BIG", id, r.Type, err)
		}
		go h.Conn.Write(make([]byte, 8<<20)) // ends with an error when the server has had enough
		if _, err := io.Copy(io.Discard, h); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Error(err)
		}
		h.Conn.Close()
	}
	alive(t, s)
}

// TestExportsThatCannotBeOpened look unknown and are logged.
func TestExportsThatCannotBeOpened(t *testing.T) {
	broken := map[string]*nbd.Export{
		"minimum":   {MinBlock: 3, Device: newDisk(size)},
		"divides":   {MinBlock: 4096, Device: newDisk(size + 512)},
		"too large": {MinBlock: 1 << 17, Device: newDisk(size)},
		"preferred": {PreferredBlock: 256, Device: newDisk(size)},
		"device":    {},
	}
	for name, e := range broken {
		e.Name = "crm"
		s := serve(t, nbd.Options{Exports: newExports(e)})
		if got, _ := outcome(greet(t, s, bothFlags), nbd.OptGo, client.InfoData("crm")); got != "unknown" {
			t.Errorf("%s: %s", name, got)
		}
		if !strings.Contains(s.log.String(), "cannot be opened") {
			t.Errorf("%s: not logged", name)
		}
	}
	x := newExports(&nbd.Export{Name: "crm", Device: newDisk(size)})
	x.set("crm", blockdev.ErrShutdown)
	if got, _ := outcome(greet(t, serve(t, nbd.Options{Exports: x}), bothFlags), nbd.OptGo, client.InfoData("crm")); got != "shutdown" {
		t.Errorf("ErrShutdown: %s", got)
	}
}
