package agent

import (
	"context"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestWatchdog: systemd gets signs of life twice as often as it wants them, each after a
// look at every volume.
func TestWatchdog(t *testing.T) {
	c := testConfig(t)
	o := Options{Config: c, Log: slog.New(slog.DiscardHandler),
		network:    func(*Agent) (network, error) { return noNetwork{}, nil },
		openVolume: func(_ *Agent, s *slot) (running, error) { return newFakeVolume(s.cfg.Name), nil }}
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: c.Node.Control + ".notify", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	t.Setenv("NOTIFY_SOCKET", c.Node.Control+".notify")
	t.Setenv("WATCHDOG_USEC", "40000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, o, nil) }()
	if err := systemd.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for signs := 0; signs < 3; {
		b := make([]byte, 4096)
		n, err := systemd.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		if text := string(b[:n]); strings.HasPrefix(text, "WATCHDOG=1\n") {
			signs++
			if !strings.Contains(text, "crm") || !strings.Contains(text, "web") {
				t.Errorf("a sign of life without the volumes: %q", text)
			}
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
