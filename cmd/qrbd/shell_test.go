package main

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/qrbd/qrbd/volume"
)

func TestPromotionScore(t *testing.T) {
	peer := func(name, connection, disk string) volume.PeerStatus {
		return volume.PeerStatus{Name: name, Connection: connection, Disk: disk, Replication: "established"}
	}
	beta, lost := peer("beta", "connected", "up-to-date"), peer("beta", "connecting", "unknown")
	votes := func(quorate bool) *volume.QuorumState {
		return &volume.QuorumState{Quorate: quorate, Missing: "beta is not there"}
	}
	behind := beta
	behind.Replication = "behind"
	witness := volume.PeerStatus{Name: "gamma", Witness: true, Connection: "connecting"}
	for _, c := range []struct {
		name  string
		v     volume.Status
		want  int
		words string
	}{
		{"in sync", volume.Status{Disk: "up-to-date", Peers: []volume.PeerStatus{beta}}, 10000, ""},
		{"its peer is primary", volume.Status{Disk: "up-to-date", Primary: "beta", Peers: []volume.PeerStatus{beta}}, 10000, ""},
		{"alone, nothing protects", volume.Status{Disk: "up-to-date", Peers: []volume.PeerStatus{lost}}, 0, "without quorum or fencing"},
		{"alone, fencing protects", volume.Status{Fencing: "resource-only", Disk: "up-to-date", Peers: []volume.PeerStatus{lost}}, 1000, "beta is not there"},
		{"alone, with a vote", volume.Status{Disk: "up-to-date", Quorum: votes(true), Peers: []volume.PeerStatus{lost}}, 1000, "beta"},
		{"alone, without", volume.Status{Disk: "up-to-date", Quorum: votes(false), Peers: []volume.PeerStatus{lost}}, 0, "no quorum; beta is not there"},
		{"alone, the peer is known to be older", volume.Status{Disk: "up-to-date", Peers: []volume.PeerStatus{peer("beta", "connecting", "outdated")}}, 10000, ""},
		{"the witness is away", volume.Status{Disk: "up-to-date", Quorum: votes(true), Peers: []volume.PeerStatus{beta, witness}}, 10000, ""},
		{"primary, alone", volume.Status{Role: "primary", Disk: "up-to-date", Peers: []volume.PeerStatus{lost}}, 10000, ""},
		{"primary, its disk failed", volume.Status{Role: "primary", Disk: "failed", Peers: []volume.PeerStatus{beta}}, 10, "failed"},
		{"a survivor among survivors", volume.Status{Disk: "consistent", Quorum: votes(true), Peers: []volume.PeerStatus{lost}}, 10, "compared"},
		{"outdated", volume.Status{Fencing: "resource-only", Disk: "outdated", Peers: []volume.PeerStatus{beta}}, 0, "outdated"},
		{"being filled", volume.Status{Fencing: "resource-only", Disk: "inconsistent", Peers: []volume.PeerStatus{beta}}, 0, "inconsistent"},
		{"behind", volume.Status{Fencing: "resource-only", Disk: "up-to-date", Peers: []volume.PeerStatus{behind}}, 0, "behind beta"},
		{"a witness", volume.Status{Disk: "diskless", Witness: true, Quorum: votes(true)}, 0, "witness"},
		{"without peers", volume.Status{Disk: "up-to-date"}, 10000, ""},
	} {
		if got, why := promotionScore(c.v); got != c.want || !strings.Contains(why, c.words) {
			t.Errorf("%s: %d (%s), want %d and %q", c.name, got, why, c.want, c.words)
		}
	}
}

// TestStatusShell has a shell evaluate what is printed, of an agent that is there and of
// one that is not.
func TestStatusShell(t *testing.T) {
	b := newBench(t)
	run := func(arguments string) (vars string, code int) {
		code, out, _ := b.run("status --shell --config {config} " + arguments)
		script := out + `echo "$QRBD_AGENT/$QRBD_ROLE/$QRBD_DISK/$QRBD_SCORE/$QRBD_MISSING/$QRBD_IN_SYNC/$QRBD_PRIMARY/$QRBD_DEVICE"`
		got, err := exec.Command("sh", "-ec", script).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s\n%s", err, got, script)
		}
		return strings.TrimSpace(string(got)), code
	}
	if got, code := run("crm"); got != "down///////" || code != exitFailed {
		t.Errorf("without an agent: %q, %d", got, code)
	}
	node := &fakeNode{status: showcase()}
	node.status.Volumes[0].Primary = `it's "$(reboot)"`
	b.agent(node)
	if got, code := run("crm"); got != `up/primary/up-to-date/10000//beta/it's "$(reboot)"/` || code != exitDone {
		t.Errorf("crm: %q, %d", got, code)
	}
	if got, code := run("documents"); got != "up/primary/up-to-date/10000/gamma///" || code != exitDone {
		t.Errorf("documents: %q, %d", got, code)
	}
	if got, code := run("other"); got != "up///////" || code != exitFailed {
		t.Errorf("a volume that does not exist: %q, %d", got, code)
	}
	if got, code := run(""); got != "///////" || code != exitUsage {
		t.Errorf("no volume: %q, %d", got, code)
	}
}
