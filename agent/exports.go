package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/nbd"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
)

// door is one export address: an NBD server and the volumes behind it.
type door struct {
	export config.Export
	server *nbd.Server
	tls    *nbd.Credentials // nil: none
	ended  chan struct{}    // closed when Serve has returned

	mu    sync.Mutex
	slots []*slot // guarded by mu; replaced, never changed
}

// volumes returns what is behind the door.
func (d *door) volumes() []*slot {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.slots
}

// openDoors listens on every export address of the slots.
func openDoors(slots []*slot, pool *blockdev.Pool, log *slog.Logger) ([]*door, error) {
	var doors []*door
	byAddress := map[config.Export]*door{}
	for _, s := range slots {
		if s.cfg.Witness {
			continue
		}
		d := byAddress[s.cfg.Export]
		if d == nil {
			d = &door{export: s.cfg.Export, ended: make(chan struct{})}
			byAddress[s.cfg.Export] = d
			doors = append(doors, d)
		}
		d.slots = append(d.slots, s)
	}
	for i, d := range doors {
		if err := d.open(pool, log); err != nil {
			for _, open := range doors[:i] {
				open.close(context.Background())
			}
			return nil, err
		}
	}
	return doors, nil
}

// open listens and serves until close.
func (d *door) open(pool *blockdev.Pool, log *slog.Logger) error {
	name := d.slots[0].cfg.Name
	o := nbd.Options{Exports: d, Log: log, Pool: pool}
	if t := d.slots[0].cfg.ExportTLS; t != nil { // the same for all of an address
		var err error
		if o.TLS, err = nbd.LoadCredentials(t.Certificate, t.Key, t.ClientCA); err != nil {
			return fmt.Errorf("export_tls of volume %s: %w", name, err)
		}
		if end := o.TLS.Expires(); time.Now().After(end) {
			log.Warn("the certificate of an export has expired: clients will refuse it; put a new one in its place", "export", d.export.String(), "certificate", t.Certificate, "expired", end)
		}
	}
	d.tls = o.TLS
	l, err := d.listen()
	if err != nil {
		return fmt.Errorf("export of volume %s: %w", name, err)
	}
	d.server = nbd.NewServer(o)
	go func() {
		defer close(d.ended)
		if err := d.server.Serve(l); err != nil {
			log.Error("export ended", "export", d.export.String(), "err", err)
		}
	}()
	return nil
}

// listen opens the address. A Unix socket is its one volume's.
func (d *door) listen() (net.Listener, error) {
	if d.export.Network != "unix" {
		return nbd.Listen(d.export.String())
	}
	a, access := nbd.Private(), d.slots[0].cfg.ExportAccess
	if access.Owner.Name != "" {
		a.UID = access.Owner.ID
	}
	if access.Group.Name != "" {
		a.GID = access.Group.ID
	}
	if access.Mode != 0 {
		a.Mode = access.Mode
	}
	return nbd.ListenUnix(d.export.Address, a)
}

// addDoor exports a volume that was added: behind the door that listens on its address
// already, or behind a new one. REQUIRES a.reloading.
func (a *Agent) addDoor(s *slot) error {
	if d := a.doorOf(s); d != nil {
		if !d.volumes()[0].cfg.ExportTLS.Same(s.cfg.ExportTLS) {
			return fmt.Errorf("%s is open with another export_tls: restart the agent", d.export)
		}
		d.mu.Lock()
		d.slots = append(slices.Clone(d.slots), s)
		d.mu.Unlock()
		return nil
	}
	d := &door{export: s.cfg.Export, ended: make(chan struct{}), slots: []*slot{s}}
	if err := d.open(a.clientPool, a.log); err != nil {
		return err
	}
	doors := append(slices.Clone(a.doors()), d)
	a.doorList.Store(&doors)
	return nil
}

func (d *door) close(ctx context.Context) error {
	err := d.server.Shutdown(ctx)
	<-d.ended
	return err
}

// List implements nbd.Exports.
func (d *door) List(c nbd.Caller) []string {
	var names []string
	for _, s := range d.volumes() {
		if admit(s.live(), c) == nil {
			names = append(names, s.cfg.Name)
		}
	}
	return names
}

// admit refuses a client whose certificate has none of the names that the volume
// lets in. Names are compared without regard to case, as DNS names are.
func admit(v *config.Volume, c nbd.Caller) error {
	if v.ExportTLS == nil {
		return nil
	}
	names := c.Names()
	for _, name := range names {
		if slices.ContainsFunc(v.ExportClients, func(allowed string) bool { return strings.EqualFold(name, allowed) }) {
			return nil
		}
	}
	who := "has no name"
	if len(names) > 0 {
		who = "is of " + strings.Join(names, ", ")
	}
	return &nbd.DeniedError{Text: fmt.Sprintf("the client's certificate %s: volume %s does not let it in (export_tls.clients)", who, v.Name)}
}

// expelUnlisted disconnects clients that the volume no longer lets in.
func (a *Agent) expelUnlisted(s *slot) {
	if d := a.doorOf(s); d != nil {
		d.server.Expel(s.cfg.Name, func(c nbd.Caller) bool { return admit(s.live(), c) != nil })
	}
}

// Open implements nbd.Exports: a volume is exported while it is primary.
func (d *door) Open(name string, c nbd.Caller) (*nbd.Export, error) {
	s := d.find(name)
	if s == nil {
		return nil, nbd.ErrUnknownExport
	}
	if err := admit(s.live(), c); err != nil {
		return nil, err
	}
	return openExport(s)
}

// openExport returns a volume's export, or why it is not to be had now.
func openExport(s *slot) (*nbd.Export, error) {
	vol, err := s.opened()
	if err != nil {
		return nil, &nbd.PolicyError{Text: err.Error()}
	}
	s.mu.Lock()
	leaving := s.leave > 0
	s.mu.Unlock()
	if leaving {
		return nil, &nbd.PolicyError{Text: fmt.Sprintf("volume %s is giving up the primary role here", s.cfg.Name)}
	}
	st := vol.Status()
	if st.Role != protocol.Primary.String() {
		return nil, &nbd.PolicyError{Text: notPrimary(st)}
	}
	return &nbd.Export{Name: s.cfg.Name, Device: vol, MinBlock: 1, PreferredBlock: blockdev.BlockSize}, nil
}

// find returns the slot of that name; "" means the only one.
func (d *door) find(name string) *slot {
	slots := d.volumes()
	if name == "" && len(slots) == 1 {
		return slots[0]
	}
	for _, s := range slots {
		if s.cfg.Name == name {
			return s
		}
	}
	return nil
}

// notPrimary says who is, for a client that came to the wrong node.
func notPrimary(st volume.Status) string {
	for _, p := range st.Peers {
		if p.Role == protocol.Primary.String() {
			return fmt.Sprintf("volume %s is secondary here; its primary is %s", st.Name, p.Name)
		}
	}
	return fmt.Sprintf("volume %s is secondary here and no primary is known; promote one with: qrbd promote %s", st.Name, st.Name)
}

// clients counts the connections that use a volume.
func (a *Agent) clients(s *slot) int {
	n := 0
	for _, srv := range a.serversOf(s) {
		n += srv.Clients(s.cfg.Name)
	}
	return n
}

// serversOf returns the servers that a volume's clients may be at.
func (a *Agent) serversOf(s *slot) []*nbd.Server {
	var l []*nbd.Server
	if d := a.doorOf(s); d != nil {
		l = append(l, d.server)
	}
	if a.attachDoor != nil {
		l = append(l, a.attachDoor.server)
	}
	return l
}

func (a *Agent) doorOf(s *slot) *door {
	for _, d := range a.doors() {
		if d.export == s.cfg.Export {
			return d
		}
	}
	return nil
}

// clear empties a volume of clients before it gives the role up. REQUIRES: the
// door is closed. Without force a volume in use is refused.
func (a *Agent) clear(ctx context.Context, s *slot, force bool) error {
	if n := a.clients(s); n > 0 && !force {
		return &volume.Error{Code: protocol.CodeBusy, Text: fmt.Sprintf(
			"volume %s is in use by %s: unmount and disconnect, or use --force to disconnect them", s.cfg.Name, count(n, "client"))}
	}
	// Also without clients: one may be between Open and its first request.
	for _, srv := range a.serversOf(s) {
		if err := srv.Disconnect(ctx, s.cfg.Name); err != nil {
			return fmt.Errorf("disconnecting the clients of volume %s: %w", s.cfg.Name, err)
		}
	}
	return nil
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// expel disconnects the clients of a volume that has lost the primary role other
// than by an operation here. The door needs no closing: Open looks at the role.
func (a *Agent) expel(s *slot, why string) {
	a.spawn(func(ctx context.Context) {
		select {
		case <-a.ready:
		case <-ctx.Done(): // it did not start
			return
		}
		n := a.clients(s)
		if n == 0 {
			return
		}
		a.log.Warn("disconnecting the volume's clients", "why", why, "volume", s.cfg.Name, "clients", n)
		for _, srv := range a.serversOf(s) {
			if err := srv.Disconnect(ctx, s.cfg.Name); err != nil && !errors.Is(err, context.Canceled) {
				a.log.Error("disconnecting clients", "volume", s.cfg.Name, "err", err)
			}
		}
	})
}
