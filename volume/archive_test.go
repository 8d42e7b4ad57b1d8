package volume

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume/archive"
)

const archiveSize = 8<<20 + 1536

// archived is a cluster of two whose nodes keep archives; the sync is slow.
func archived(t *testing.T, limit int64, rate int64) *cluster {
	c := newCluster(t, archiveSize, protocol.ModeC)
	c.compress = mostly()
	dir := t.TempDir()
	c.options = func(name string, o *Options) {
		o.SyncRate = rate
		d, err := archive.OpenDir(archive.Options{Shelf: archive.Directory(filepath.Join(dir, name)), Volume: "crm", Node: name, Size: c.size,
			Limit: limit, Vouched: o.State.Super.Archive, Now: time.Now, Rand: randomID}, c.nodes[name].store)
		if err != nil {
			t.Fatal(err)
		}
		o.Archives = d
	}
	c.names = []string{"alpha", "beta"}
	for _, n := range c.names {
		c.create(n)
	}
	for _, n := range c.names {
		c.start(n)
	}
	c.promote("alpha", PromoteOptions{Force: true})
	c.synced("alpha", "beta")
	return c
}

func (c *cluster) image(name string) []byte { return c.imageOf(c.nodes[name].store) }

func (c *cluster) imageOf(d blockdev.Device) []byte {
	c.t.Helper()
	b := make([]byte, c.size)
	if err := d.ReadAt(b, 0); err != nil {
		c.t.Fatal(err)
	}
	return b
}

// split has both nodes write after they parted; beta is left as a secondary.
func (c *cluster) split() {
	c.t.Helper()
	c.randomWrites("alpha", 1, 60)
	c.part("alpha", "beta")
	c.promote("beta", PromoteOptions{PeerFenced: true})
	c.randomWrites("alpha", 2, 60)
	c.randomWrites("beta", 3, 60)
	if err := c.do("beta", &blockdev.Request{Op: blockdev.OpTrim, Off: 4096 * 3, Len: 1 << 20}); err != nil {
		c.t.Fatal(err)
	}
	if err := c.do("alpha", &blockdev.Request{Op: blockdev.OpTrim, Off: 5 << 20, Len: 1 << 20}); err != nil {
		c.t.Fatal(err)
	}
	if err := c.v("beta").Demote(context.Background()); err != nil {
		c.t.Fatal(err)
	}
	c.heal("alpha", "beta")
	c.await("beta", func(s Status) bool { return peerOf(s, "alpha").Connection == "standalone" })
}

func (c *cluster) archivesOf(name string) []ArchiveInfo {
	c.t.Helper()
	list, err := c.v(name).ListArchives()
	if err != nil {
		c.t.Fatal(err)
	}
	return list
}

// viewIs compares the only archive's view with an image.
func (c *cluster) viewIs(name string, want []byte) ArchiveInfo {
	c.t.Helper()
	list := c.archivesOf(name)
	if len(list) != 1 {
		c.t.Fatalf("%s has archives %+v", name, list)
	}
	d, err := c.v(name).ViewArchive(list[0].ID)
	if err != nil {
		c.t.Fatal(err)
	}
	defer d.Close()
	if got := c.imageOf(d); !bytes.Equal(got, want) {
		for i := range got {
			if got[i] != want[i] {
				c.t.Fatalf("%s: the view differs from the lost side at %d (block %d): %+v", name, i, i/4096, list[0])
			}
		}
	}
	return list[0]
}

func (c *cluster) discard(loser, winner string) {
	c.t.Helper()
	if err := c.v(loser).Connect(context.Background(), "", true); err != nil {
		c.t.Fatal(err)
	}
	if err := c.v(winner).Connect(context.Background(), "", false); err != nil {
		c.t.Fatal(err)
	}
}

// The losing side can be read while it is overwritten and after that, through
// crashes, and put back; then the other side loses.
func TestLostSideComesBack(t *testing.T) {
	c := archived(t, 1<<30, 2<<20)
	ctx := context.Background()
	c.split()
	want := c.image("beta")
	c.discard("beta", "alpha")
	syncing := func(s Status) bool {
		return peerOf(s, "alpha").Replication == "sync-target" && peerOf(s, "alpha").SyncDone > 64<<10
	}
	c.await("beta", syncing)
	c.randomWrites("alpha", 4, 20)
	if i := c.viewIs("beta", want); i.Phase != "collecting" || !i.Exact || i.Winner != "alpha" || i.Why != "discard" {
		t.Fatalf("in the middle of the sync: %+v", i)
	}
	for range 2 {
		c.kill("beta")
		c.start("beta")
		c.await("beta", syncing)
		c.viewIs("beta", want)
	}
	c.synced("alpha", "beta")
	c.flush("alpha")
	c.equal("alpha", "beta")
	c.randomWrites("alpha", 5, 60)
	c.flush("alpha")
	c.equal("alpha", "beta")
	if i := c.viewIs("beta", want); i.Phase != "following" || !i.Exact {
		t.Fatalf("after the sync: %+v", i)
	}

	id := c.archivesOf("beta")[0].ID
	refused := func(text string) {
		t.Helper()
		var e *Error
		if err := c.v("beta").RestoreArchive(ctx, id, nil); !errors.As(err, &e) || !strings.Contains(e.Text, text) {
			t.Fatalf("restoring: %v", err)
		}
	}
	refused("qrbd disconnect crm first")
	if err := c.v("beta").Disconnect(ctx, ""); err != nil {
		t.Fatal(err)
	}
	if err := c.v("beta").RestoreArchive(ctx, id, nil); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(c.image("beta"), want) {
		t.Fatal("what was restored is not the lost side")
	}
	refused("was sealed")
	// The other side has diverged, and is told so.
	c.discardRefused(ctx)
	if err := c.v("alpha").Demote(ctx); err != nil {
		t.Fatal(err)
	}
	winner := c.image("alpha")
	c.discard("alpha", "beta")
	c.synced("alpha", "beta")
	c.equal("alpha", "beta")
	if !bytes.Equal(c.image("alpha"), want) {
		t.Fatal("the restored side did not win")
	}
	c.viewIs("alpha", winner)
}

// discardRefused connects the two and sees that they have diverged.
func (c *cluster) discardRefused(ctx context.Context) {
	c.t.Helper()
	if err := c.v("beta").Connect(ctx, "", false); err != nil {
		c.t.Fatal(err)
	}
	if err := c.v("alpha").Connect(ctx, "", false); err != nil {
		c.t.Fatal(err)
	}
	for node, peer := range map[string]string{"alpha": "beta", "beta": "alpha"} {
		c.await(node, func(s Status) bool {
			p := peerOf(s, peer)
			return p.Connection == "standalone" && strings.Contains(p.Reason, "split brain")
		})
	}
}

// A restore in the middle of the sync undoes the decision; one that is interrupted
// keeps everybody away until it is done again.
func TestRestoreInterrupted(t *testing.T) {
	c := archived(t, 1<<30, 1<<20)
	ctx := context.Background()
	c.split()
	want := c.image("beta")
	c.discard("beta", "alpha")
	c.await("beta", func(s Status) bool { return peerOf(s, "alpha").SyncDone > 256<<10 })
	if err := c.v("beta").Disconnect(ctx, ""); err != nil {
		t.Fatal(err)
	}
	id := c.archivesOf("beta")[0].ID
	half, cancel := context.WithCancel(ctx)
	err := c.v("beta").RestoreArchive(half, id, func(done, total int64) {
		if done <= total*3/4 {
			return
		}
		// What a sync brought now would be written over.
		if err := c.v("beta").Connect(ctx, "", true); err == nil || !strings.Contains(err.Error(), "under way") {
			t.Errorf("connect --discard-my-data in the middle of a restore: %v", err)
		}
		if err := c.v("beta").RestoreArchive(ctx, id, nil); err == nil || !strings.Contains(err.Error(), "under way") {
			t.Errorf("a second restore: %v", err)
		}
		cancel()
	})
	cancel()
	if err == nil {
		t.Skip("it was over before it could be interrupted")
	}
	c.kill("beta")
	c.start("beta")
	c.viewIs("beta", want)
	st := c.await("beta", func(s Status) bool { return peerOf(s, "alpha").Connection == "standalone" })
	if st.Disk != "inconsistent" || !strings.Contains(peerOf(st, "alpha").Reason, "archive restore") {
		t.Fatalf("after a restore that was interrupted: %+v", st)
	}
	if err := c.v("beta").Connect(ctx, "", false); err == nil {
		t.Fatal("a half-restored replica connects")
	}
	if err := c.v("beta").Promote(ctx, PromoteOptions{Force: true, PeerFenced: true}); err == nil {
		t.Fatal("a half-restored replica is promoted")
	}
	if err := c.v("beta").RemoveArchive(id); err == nil {
		t.Fatal("half of what it holds is nowhere else")
	}
	if err := c.v("beta").RestoreArchive(ctx, id, nil); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(c.image("beta"), want) {
		t.Fatal("what was restored is not the lost side")
	}
	c.discardRefused(ctx)
}

// Without room nothing begins, and nothing is overwritten.
func TestArchiveWithoutRoom(t *testing.T) {
	c := archived(t, 1<<30, 0)
	ctx := context.Background()
	c.split()
	c.kill("beta")
	dir := t.TempDir()
	shelf := &tightShelf{Shelf: archive.Directory(filepath.Join(dir, "crm"))}
	shelf.free.Store(64<<20 + 100<<10)
	c.options = func(name string, o *Options) {
		d, err := archive.OpenDir(archive.Options{Shelf: shelf, Volume: "crm", Node: name, Size: c.size, Limit: 1 << 20, Vouched: o.State.Super.Archive, Now: time.Now, Rand: randomID}, c.nodes[name].store)
		if err != nil {
			t.Fatal(err)
		}
		o.Archives = d
	}
	c.start("beta")
	want := c.image("beta")
	c.discard("beta", "alpha")
	st := c.await("beta", func(s Status) bool {
		p := peerOf(s, "alpha")
		return p.Connection == "standalone" && strings.Contains(p.Reason, "needs")
	})
	if st.Disk == "inconsistent" || !bytes.Equal(c.image("beta"), want) {
		t.Fatalf("something was overwritten: %+v", st)
	}
	for _, part := range []string{dir, "MiB", "archive_dir", `archive = "off"`, "qrbd connect crm"} {
		if !strings.Contains(peerOf(st, "alpha").Reason, part) {
			t.Errorf("the reason does not say %q: %s", part, peerOf(st, "alpha").Reason)
		}
	}
	shelf.free.Store(1 << 30)
	shelf.full.Store(300 << 10) // and the file system is full after all
	c.discard("beta", "alpha")
	st = c.await("beta", func(s Status) bool {
		p := peerOf(s, "alpha")
		return p.Connection == "standalone" && strings.Contains(p.Reason, "stopped being overwritten")
	})
	c.viewIs2("beta", want)
	shelf.full.Store(0)
	if err := c.v("beta").Connect(ctx, "", false); err != nil {
		t.Fatal(err)
	}
	if err := c.v("alpha").Connect(ctx, "", false); err != nil {
		t.Fatal(err)
	}
	c.synced("alpha", "beta")
	c.equal("alpha", "beta")
	c.viewIs("beta", want)
}

// viewIs2 looks at an archive that has failed, as the next agent would.
func (c *cluster) viewIs2(name string, want []byte) {
	c.t.Helper()
	c.kill(name)
	c.start(name)
	c.viewIs(name, want)
}

// TestArchiveThatCannotBeSealed: where the archives are nothing can be written any more.
// What is overwritten then is not kept, and no restart takes the archive for exact
// because it says "following" still.
func TestArchiveThatCannotBeSealed(t *testing.T) {
	c := archived(t, 1<<30, 0)
	ctx := context.Background()
	c.split()
	c.kill("beta")
	shelf := &tightShelf{Shelf: archive.Directory(filepath.Join(t.TempDir(), "crm"))}
	shelf.free.Store(1 << 40)
	c.options = func(name string, o *Options) {
		d, err := archive.OpenDir(archive.Options{Shelf: shelf, Volume: "crm", Node: name, Size: c.size, Limit: 1 << 30, Vouched: o.State.Super.Archive, Now: time.Now, Rand: randomID}, c.nodes[name].store)
		if err != nil {
			t.Fatal(err)
		}
		o.Archives = d
	}
	c.start("beta")
	want := c.image("beta")
	c.discard("beta", "alpha")
	c.synced("alpha", "beta")
	c.viewIs("beta", want)
	shelf.broken.Store(true)
	for range 2 {
		c.randomWrites("alpha", 5, 60)
		c.flush("alpha")
		c.equal("alpha", "beta")
		if i := c.archivesOf("beta")[0]; i.Exact || i.Reason == "" {
			t.Fatalf("nothing is kept any more: %+v", i)
		}
		c.kill("beta")
		c.start("beta")
		c.synced("alpha", "beta")
	}
	shelf.broken.Store(false)
	c.kill("beta")
	c.start("beta")
	list := c.archivesOf("beta")
	if list[0].Exact || list[0].Phase != "sealed" || list[0].Until == nil {
		t.Fatalf("after a restart: %+v", list)
	}
	if err := c.v("beta").Disconnect(ctx, ""); err != nil {
		t.Fatal(err)
	}
	var e *Error
	if err := c.v("beta").RestoreArchive(ctx, list[0].ID, nil); !errors.As(err, &e) || !strings.Contains(e.Text, "would be mixed") {
		t.Fatalf("restoring: %v", err)
	}
}

// tightShelf has little room.
type tightShelf struct {
	archive.Shelf
	free   atomic.Int64
	full   atomic.Int64 // > 0: files cannot grow beyond
	broken atomic.Bool  // nothing can be written
}

func (s *tightShelf) Free() (int64, error) { return s.free.Load(), nil }

func (s *tightShelf) Create(name string) (archive.Storage, error) {
	f, err := s.Shelf.Create(name)
	return &tightFile{f, s}, err
}

func (s *tightShelf) Open(name string) (archive.Storage, error) {
	f, err := s.Shelf.Open(name)
	if err != nil {
		return nil, err
	}
	return &tightFile{f, s}, nil
}

type tightFile struct {
	archive.Storage
	shelf *tightShelf
}

func (f *tightFile) WriteAt(p []byte, off int64) (int, error) {
	if f.shelf.broken.Load() {
		return 0, errors.New("input/output error")
	}
	if full := f.shelf.full.Load(); full > 0 && off+int64(len(p)) > full {
		n, err := f.Storage.WriteAt(p[:max(0, full-off)], off)
		return n, errors.Join(blockdev.ErrNoSpace, err)
	}
	return f.Storage.WriteAt(p, off)
}
