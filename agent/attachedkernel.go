package agent

import (
	"context"
	"time"

	"github.com/qrbd/qrbd/attach"
)

// kernelPause is how often devices of the kernel's own client are looked at. A restart
// of the agent takes longer.
const kernelPause = 200 * time.Millisecond

// tendKernel gives the kernel's client new connections for those that are gone: it keeps
// requests, but does not connect. They were lost with the last agent, were ended by this
// one, or the kernel gave them up after its timeout.
func (a *Agent) tendKernel(ctx context.Context) {
	var failing kernelFaults
	for {
		select {
		case <-time.After(kernelPause):
		case <-ctx.Done():
			return
		}
		for _, s := range a.slots() {
			failing.note(a, s, a.tendSlot(ctx, s))
		}
	}
}

// tendSlot tends one device, if its volume may be served.
func (a *Agent) tendSlot(ctx context.Context, s *slot) error {
	sv := s.served()
	if sv.State != attach.Serving || a.attachDoor == nil {
		return nil
	}
	lacks := attach.KernelConns - a.attachDoor.server.Clients(s.cfg.Name)
	if lacks <= 0 {
		return nil
	}
	r, err := attach.Load(a.cfg.Node.State, s.cfg.Name)
	if err != nil || r.Method != attach.MethodNBD || r.Token != sv.Token || r.Leaving || !r.Live() {
		return nil // of another method, or on its way in or out
	}
	if _, err := openExport(s); err != nil {
		return nil // it is not primary just now
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return r.Reconnect(ctx, a.cfg.AttachSocket(), lacks, s.live().AttachTimeout)
}

// kernelFaults are the volumes whose device cannot be tended, so that each is told once.
type kernelFaults map[string]bool

func (f *kernelFaults) note(a *Agent, s *slot, err error) {
	name := s.cfg.Name
	if *f == nil {
		*f = kernelFaults{}
	}
	switch was := (*f)[name]; {
	case err != nil && !was:
		a.log.Error("the attached device cannot be connected again", "volume", name, "err", err)
	case err == nil && was:
		a.log.Info("the attached device is connected again", "volume", name)
	}
	(*f)[name] = err != nil
}
