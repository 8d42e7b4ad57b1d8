package e2e

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/cluster"
)

// overTCP names the tests that run over TCP too: a killed primary, a cut link, a paused
// peer, strangers, nonsense, and a resync. All others do with
// QRBD_E2E_TRANSPORT=tcp in the environment.
var overTCP = []string{
	"^TestKillPrimaryAndFailOver$/^(kill|powercut)$/^C$",
	"^(TestCutLink|TestPauseSecondary)$/^C$",
	"^TestWrongKey$",
	"^TestOneSideDistrusts$",
	"^TestRoguePeer$",
	"^TestResyncMovesWhatChanged$/^killed$",
	"^TestTerminate$",
}

// TestOverTCP runs tests of this package again, in processes whose clusters have the other
// transport.
func TestOverTCP(t *testing.T) {
	if os.Getenv(cluster.TransportEnv) != "" {
		t.Skip("the transport is chosen by " + cluster.TransportEnv)
	}
	t.Parallel()
	for _, pattern := range overTCP {
		t.Run(strings.Trim(strings.SplitN(pattern, "/", 2)[0], "^$()"), func(t *testing.T) {
			t.Parallel()
			again := exec.CommandContext(t.Context(), os.Args[0], "-test.run="+pattern, "-test.v", "-test.timeout=2m")
			again.Env = append(os.Environ(), cluster.TransportEnv+"=tcp")
			out, err := again.CombinedOutput()
			text := string(out)
			switch {
			case err != nil:
				t.Errorf("%v\n%s", err, out)
			case strings.Contains(text, "no tests to run"):
				t.Errorf("no test is called %s", pattern)
			case !strings.Contains(text, "--- PASS") && strings.Contains(text, "--- SKIP"):
				t.Skipf("%s", out)
			}
		})
	}
}

// TestTransportsDiffer: when only one side was told to use TCP, both say so and what to do;
// it is put right while the agents run, either way.
func TestTransportsDiffer(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Configure: quick, Transport: "quic"})
	alpha, beta := c.Nodes[0], c.Nodes[1]
	c.Up()
	set := func(n *cluster.Node, transport string) {
		n.Rewrite(func(cfg *cluster.Config) { cfg.Peers[0].Transport = transport })
		n.Must("reload")
	}
	for _, transport := range []string{"tcp", "quic"} {
		set(beta, transport)
		for _, n := range c.Nodes {
			refusing(t, n, n.Config.Peers[0].Name, "transports differ", "write the same transport in [[peer]]")
		}
		write(t, alpha, "crm", pattern(7, mib), mib)
		set(alpha, transport)
		c.WaitInSync("crm", syncWithin)
		write(t, alpha, "crm", pattern(8, mib), 2*mib)
		c.Equal("crm")
		alpha.WaitPeer("crm", "beta", "connected over "+transport, 10*time.Second, func(p cluster.Peer) bool { return p.Connection == "connected" })
		if out := alpha.Must("status"); strings.Contains(out, "sessions over TCP: beta") != (transport == "tcp") {
			t.Errorf("status over %s:\n%s", transport, out)
		}
	}
}
