package agent

import (
	"context"
	"errors"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/volume"
)

// Run runs a node until ctx ends, then drains it for at most DrainTimeout. Each
// receive from reload checks the configuration file anew.
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
	a.log.Info("agent started", "node", o.Config.Node.Name, "listen", o.Config.Node.Listen, "volumes", len(a.slots), "version", o.Version)
	Notify("READY=1", a.Status())
	for running := true; running; {
		select {
		case <-changed:
			Notify("", a.Status())
		case <-reload:
			a.checkReload()
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

// checkReload answers SIGHUP. Nothing is applied while the agent runs: it says
// so instead of pretending.
func (a *Agent) checkReload() {
	if _, err := config.Load(a.cfg.File); err != nil {
		a.log.Error("the configuration has faults; the agent goes on with the one it started with", "file", a.cfg.File, "err", err)
		return
	}
	a.log.Warn("the configuration is valid, but changes to it need a restart of the agent", "file", a.cfg.File)
}
