package config

import (
	"errors"
	"strings"
	"testing"
)

const farVolume = quorumNodes + quorumStore + "peers = [\"beta\"]\nprotocol = \"A\"\n"

func TestCongestionFaults(t *testing.T) {
	for _, c := range []struct{ name, text, key, want string }{
		{"word", farVolume + "on_congestion = \"ahead\"\n", "on_congestion", "pull-ahead"},
		{"small buffer", farVolume + "send_buffer = \"4KiB\"\n", "send_buffer", "between 1MiB and 4GiB"},
		{"large buffer", farVolume + "send_buffer = \"5GiB\"\n", "send_buffer", "between 1MiB and 4GiB"},
		{"fill alone", farVolume + "congestion_fill = \"1MiB\"\n", "congestion_fill", "says nothing without"},
		{"fill above the buffer", farVolume + "on_congestion = \"pull-ahead\"\nsend_buffer = \"1MiB\"\ncongestion_fill = \"2MiB\"\n", "congestion_fill", "send_buffer, 1048576 bytes"},
		{"fill above the default", farVolume + "on_congestion = \"pull-ahead\"\ncongestion_fill = \"33MiB\"\n", "congestion_fill", "send_buffer, 33554432 bytes"},
		{"fencing", farVolume + "on_congestion = \"pull-ahead\"\nfencing = \"resource-only\"\n[volume.hooks]\nfence-peer = [\"/bin/fence\"]\n", "on_congestion", "not for a volume with fencing"},
		{"protocol C", quorumNodes + quorumStore + "on_congestion = \"pull-ahead\"\n", "on_congestion", "protocol A"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse("f", []byte(fill(t, c.text)))
			var e *Error
			if !errors.As(err, &e) || len(e.Faults) != 1 {
				t.Fatalf("want one fault, got %v", err)
			}
			if f := e.Faults[0]; f.Key != "volume.crm."+c.key && !strings.HasSuffix(f.Key, c.key) || !strings.Contains(f.Text, c.want) {
				t.Errorf("got %s: %s", f.Key, f.Text)
			}
		})
	}
}

func TestCongestion(t *testing.T) {
	c, err := Parse("f", []byte(fill(t, quorumNodes+quorumStore+"send_buffer = \"256MiB\"\non_congestion = \"pull-ahead\"\ncongestion_fill = \"200MiB\"\n[volume.protocols]\ngamma = \"A\"\n")))
	if err != nil {
		t.Fatal(err)
	}
	v := c.Volumes[0]
	if b, g := v.Peers[0], v.Peers[1]; b.SendBuffer != 0 || b.OnCongestion != CongestionBlock || g.SendBuffer != 256<<20 || g.OnCongestion != CongestionPullAhead || g.CongestionFill != 200<<20 {
		t.Errorf("peers: %+v", v.Peers)
	}
	if n := v.SendBuffers(); n != 256<<20 {
		t.Errorf("%d bytes of buffers", n)
	}
}
