package agent

import (
	"context"
	"errors"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/qrbd/qrbd/volume"
)

// Run runs a node until ctx ends, then drains it for at most DrainTimeout. Each
// receive from reload is a Reload.
func Run(ctx context.Context, o Options, reload <-chan struct{}) error {
	LimitMemory(o.Config)
	LimitThreads()
	changed := make(chan struct{}, 1)
	next := o.OnEvent
	o.OnEvent = func(e volume.Event) {
		select {
		case changed <- struct{}{}:
		default: // a notice is due already
		}
		if next != nil {
			next(e)
		}
	}
	a, err := Start(o)
	if err != nil {
		return err
	}
	a.log.Info("agent started", "node", o.Config.Node.Name, "listen", o.Config.Node.Listen, "volumes", len(a.slots()), "version", o.Version)
	Notify("READY=1", a.Status())
	alive, stop := watchdog()
	defer stop()
	for running := true; running; {
		select {
		case <-changed:
			Notify("", a.Status())
		case <-alive:
			Notify("WATCHDOG=1", a.Status())
		case <-reload:
			_, _ = a.Reload(ctx) // it says in the log what it did
		case <-ctx.Done():
			running = false
		}
	}
	Notify("STOPPING=1", a.Status())
	a.log.Info("agent stopping", "node", o.Config.Node.Name, "drain", DrainTimeout)
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), DrainTimeout)
	defer cancel()
	err = a.Close(drain)
	if errors.Is(err, context.DeadlineExceeded) {
		a.log.Error("what was in flight was dropped", "err", err)
	}
	return err
}

// watchdog ticks twice as often as systemd wants a sign of life; never where it wants
// none. Each sign has looked at every volume: an agent that hangs gives none.
func watchdog() (alive <-chan time.Time, stop func()) {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil || every == 0 {
		return nil, func() {}
	}
	t := time.NewTicker(every / 2)
	return t.C, t.Stop
}
