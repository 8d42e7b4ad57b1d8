package agent

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/attach"
	"github.com/qrbd/qrbd/blockdev/nbd"
	"github.com/qrbd/qrbd/blockdev/nbd/client"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
)

// device plays an attached device: a record, and what its helper asks for.
type device struct {
	t   *testing.T
	cfg *config.Config
}

// record writes what a command remembers; named: it has got its device.
func (d device) record(token string, named bool) {
	d.t.Helper()
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		d.t.Fatal(err)
	}
	helper, err := attach.ProcessOf(os.Getpid())
	if err != nil {
		d.t.Fatal(err)
	}
	r := attach.Record{Volume: "crm", Method: attach.MethodFUSE, Token: token, Since: time.Now(), Boot: strings.TrimSpace(string(boot)), Helper: helper}
	if named {
		r.Device = filepath.Join(d.t.TempDir(), "no-such-device")
	}
	if err := attach.WriteJSON(filepath.Join(attach.Dir(d.cfg.Node.State), "crm.json"), r); err != nil {
		d.t.Fatal(err)
	}
}

// served says how the agent receives the helper: "served", "gone" or "wait".
func (d device) served(token string) string {
	d.t.Helper()
	c, err := client.Dial(d.t.Context(), "unix:"+d.cfg.AttachSocket(), attach.ExportName("crm", token), client.Options{Simple: true})
	var refused *client.OptionError
	switch {
	case err == nil:
		c.Close()
		return "served"
	case errors.As(err, &refused) && refused.Reply == nbd.RepErrUnknown:
		return "gone"
	case errors.As(err, &refused) && refused.Reply == nbd.RepErrPolicy:
		return "wait"
	}
	return err.Error()
}

func (d device) want(what, token, want string) {
	d.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		got := d.served(token)
		if got == want {
			return
		}
		if time.Now().After(end) {
			d.t.Fatalf("%s: %s, want %s", what, got, want)
		}
	}
}

// attachedOnce runs an agent with crm primary and its device served, and ends it.
func attachedOnce(t *testing.T) device {
	t.Helper()
	d := device{t, testConfig(t)}
	for i := range d.cfg.Volumes {
		d.cfg.Volumes[i].AttachTimeout = time.Minute
	}
	a, _ := startOn(t, d.cfg, nil, func(v *fakeVolume) { v.role, v.current = "primary", "g1" })
	d.record("t1", false)
	d.want("a new device", "t1", "served")
	d.record("t1", true)
	d.want("a device that comes back", "t1", "served")
	if got := d.served("t2"); got != "gone" {
		t.Errorf("another token: %s", got)
	}
	stop(t, a)
	return d
}

func connected(v *fakeVolume) {
	v.current = "g1"
	v.peers = []volume.PeerStatus{{Name: "beta", Connection: "connected"}, {Name: "gamma", Connection: "connected"}}
}

// again starts the next agent, whose volumes are as made has them.
func (d device) again(made func(*fakeVolume)) (*Agent, *fakeVolume) {
	d.t.Helper()
	a, vols := startOn(d.t, d.cfg, nil, made)
	return a, vols["crm"]
}

func TestAttachedIsPrimaryAgain(t *testing.T) {
	d := attachedOnce(t)
	a, crm := d.again(connected)
	crm.saw(t, "promote {Force:false PeerFenced:false}")
	d.want("after the promotion", "t1", "served")
	if st := a.Status().Volumes[1]; st.Role != "secondary" {
		t.Errorf("web, which is not attached, is %s", st.Role)
	}
}

func TestAttachedWaitsForPeers(t *testing.T) {
	d := attachedOnce(t)
	a, crm := d.again(func(v *fakeVolume) { connected(v); v.peers[1].Connection = "connecting" })
	time.Sleep(100 * time.Millisecond)
	if crm.count("promote") != 0 || d.served("t1") != "wait" {
		t.Errorf("promoted %d times, the device is %s", crm.count("promote"), d.served("t1"))
	}
	if err := a.Promote(t.Context(), "crm", control.PromoteRequest{PeerFenced: true}); err != nil {
		t.Fatal(err)
	}
	d.want("after an operator's word", "t1", "served")
}

// TestAttachedHistoryBroken: each way in which the data may not be those of before.
func TestAttachedHistoryBroken(t *testing.T) {
	apart := func(v *fakeVolume) { connected(v); v.peers[0].Connection = "connecting" }
	tests := map[string]func(t *testing.T, a *Agent, crm *fakeVolume){
		"another generation": func(_ *testing.T, _ *Agent, crm *fakeVolume) {
			crm.mu.Lock()
			defer crm.mu.Unlock()
			connected(crm)
			crm.current = "g2" // it was given what a peer wrote
		},
		"a peer was primary": func(_ *testing.T, a *Agent, _ *fakeVolume) {
			a.event(a.slot("crm"), volume.Event{Peer: "beta", Field: "peer-role", Old: "unknown", New: "primary"})
		},
		"promoted by force": func(t *testing.T, a *Agent, crm *fakeVolume) {
			if err := a.Promote(t.Context(), "crm", control.PromoteRequest{Force: true}); err != nil {
				t.Error(err)
			}
			crm.mu.Lock()
			defer crm.mu.Unlock()
			crm.calls = nil // this one was asked for
		},
	}
	for name, then := range tests {
		t.Run(name, func(t *testing.T) {
			d := attachedOnce(t)
			a, crm := d.again(apart)
			d.want("apart", "t1", "wait")
			then(t, a, crm)
			d.want(name, "t1", "gone")
			if crm.count("promote") != 0 {
				t.Error("it was promoted, for nobody")
			}
			stop(t, a)
			_, crm = d.again(connected) // the next agent knows, too
			time.Sleep(50 * time.Millisecond)
			if crm.count("promote") != 0 {
				t.Error("the next agent promoted it")
			}
			crm.setRole("primary")
			d.want("the next agent", "t1", "gone")
		})
	}
}

// TestAttachedRestartedTwice: the generation that counts is that of the last reign, not
// what the volume had when it was killed in the middle of coming back.
func TestAttachedRestartedTwice(t *testing.T) {
	d := attachedOnce(t)
	apart := func(v *fakeVolume) { connected(v); v.peers[0].Connection = "connecting" }
	a, _ := d.again(apart)
	d.want("apart", "t1", "wait")
	stop(t, a)
	a, _ = d.again(func(v *fakeVolume) { apart(v); v.current = "g-of-a-sync" })
	stop(t, a)
	d.again(connected)
	d.want("in the end", "t1", "served")
}

func TestAttachedMayNotBeLeft(t *testing.T) {
	d := attachedOnce(t)
	a, crm := d.again(connected)
	d.want("resumed", "t1", "served")
	for what, leave := range map[string]func() error{
		"demote":     func() error { return a.Demote(t.Context(), "crm", control.DemoteRequest{}) },
		"switchover": func() error { return a.Switchover(t.Context(), "crm", control.SwitchoverRequest{To: "beta"}) },
	} {
		err := leave()
		if code(t, err) != protocol.CodeBusy || !strings.Contains(err.Error(), "qrbd detach crm first") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := a.Demote(t.Context(), "crm", control.DemoteRequest{Force: true}); err != nil {
		t.Fatal(err)
	}
	crm.setRole("primary") // again
	d.want("by force", "t1", "gone")
}
