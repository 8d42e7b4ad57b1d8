package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/nbd"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
	"github.com/qrbd/qrbd/volume/archive"
)

// archiveWorkers read for an archive's clients.
const archiveWorkers = 4

// openArchives reads a volume's archives, of which its metadata vouch for one. The directory of all volumes is made only
// where it is the default: another may be a file system that is not mounted.
func (a *Agent) openArchives(v *config.Volume, vouched uint64, store archive.Base) (*archive.Dir, error) {
	if a.cfg.Node.ArchiveDir == "" && v.Archive != config.ArchiveOff {
		if err := os.Mkdir(a.cfg.ArchiveRoot(), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("archives: %w", err)
		}
	}
	d, err := archive.OpenDir(archive.Options{Shelf: archive.Directory(a.cfg.ArchivePath(v.Name)), Volume: v.Name, Node: a.cfg.Node.Name, Size: v.Size,
		Limit: v.ArchiveLimit, Vouched: vouched, Now: time.Now, Rand: random}, store)
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", v.Name, err)
	}
	return d, nil
}

func archiveMode(a config.Archive) volume.ArchiveMode {
	switch a {
	case config.ArchiveAlways:
		return volume.ArchiveAlways
	case config.ArchiveOff:
		return volume.ArchiveOff
	case config.ArchiveSplitBrain:
	}
	return volume.ArchiveSplitBrain
}

// Archives implements control.Node.
func (a *Agent) Archives(name string) ([]volume.ArchiveInfo, error) {
	_, vol, err := a.findOpen(name)
	if err != nil {
		return nil, err
	}
	return vol.ListArchives()
}

// RemoveArchive implements control.Node.
func (a *Agent) RemoveArchive(_ context.Context, name, id string) error {
	_, vol, err := a.findOpen(name)
	if err != nil {
		return err
	}
	return vol.RemoveArchive(id)
}

// RestoreArchive implements control.Node.
func (a *Agent) RestoreArchive(ctx context.Context, name, id string, progress func(done, total int64)) error {
	_, vol, end, err := a.findIdle(name)
	if err != nil {
		return err
	}
	defer end()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(a.ctx, cancel)()
	a.log.Info("restoring an archive", "volume", name, "archive", id)
	if err := vol.RestoreArchive(ctx, id, progress); err != nil {
		return err
	}
	a.log.Info("archive restored", "volume", name, "archive", id)
	return nil
}

// ExportArchive implements control.Node.
func (a *Agent) ExportArchive(ctx context.Context, name, id string, r control.ExportRequest, serving func(address string)) error {
	_, vol, err := a.findOpen(name)
	if err != nil {
		return err
	}
	if !filepath.IsAbs(r.Socket) || r.ForSeconds < 0 {
		return &volume.Error{Code: protocol.CodeNotAllowed, Text: fmt.Sprintf("%q is not an absolute path for a Unix socket, or %g s no length of time", r.Socket, r.ForSeconds)}
	}
	view, err := vol.ViewArchive(id)
	if err != nil {
		return err
	}
	queue := blockdev.Async(view, archiveWorkers)
	err = a.serveArchive(ctx, name, id, queue, r, serving)
	return cmp.Or(err, queue.Close(), view.Close())
}

// serveArchive runs an NBD server for one export until its time is over.
func (a *Agent) serveArchive(ctx context.Context, name, id string, dev blockdev.Submitter, r control.ExportRequest, serving func(string)) error {
	address := "unix:" + r.Socket
	l, err := nbd.Listen(address)
	if err != nil {
		return &volume.Error{Code: protocol.CodeNotAllowed, Text: fmt.Sprintf("export of archive %s: %v", id, err)}
	}
	log := a.log.With("volume", name, "archive", id)
	server := nbd.NewServer(nbd.Options{Exports: oneExport{&nbd.Export{Name: name, Description: "archive " + id, Device: dev, ReadOnly: true,
		MinBlock: 1, PreferredBlock: blockdev.BlockSize}}, Log: log, Pool: a.clientPool})
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(a.ctx, cancel)()
	if r.ForSeconds > 0 {
		t := time.AfterFunc(time.Duration(r.ForSeconds*float64(time.Second)), cancel)
		defer t.Stop()
	}
	log.Info("archive exported", "export", address)
	serving(address)
	select {
	case err = <-ended:
	case <-ctx.Done():
		short, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastTimeout)
		defer cancel()
		_ = server.Shutdown(short) // clients that are still there are dropped
		err = <-ended
	}
	log.Info("export of the archive ended", "export", address)
	return err
}

// oneExport serves one device under its name.
type oneExport struct{ e *nbd.Export }

// List implements nbd.Exports.
func (x oneExport) List(nbd.Caller) []string { return []string{x.e.Name} }

// Open implements nbd.Exports.
func (x oneExport) Open(name string, _ nbd.Caller) (*nbd.Export, error) {
	if name != "" && name != x.e.Name {
		return nil, nbd.ErrUnknownExport
	}
	return x.e, nil
}
