package volume

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
	"github.com/qrbd/qrbd/volume/meta"
)

// Disk is the backing store of a volume and its metadata.
type Disk struct {
	Store blockdev.Device
	Meta  *meta.File
	State *meta.State // what Meta said when it was opened
}

// localDisk is a Disk in use.
type localDisk struct {
	store blockdev.Device
	// nowait serves reads from memory without a worker; nil when the store cannot.
	nowait blockdev.NowaitReader
	meta   *meta.File
	closed sync.Once
}

func (v *Volume) setDisk(store blockdev.Device, m *meta.File) {
	d := &localDisk{store: store, meta: m}
	d.nowait, _ = store.(blockdev.NowaitReader)
	v.disk.Store(d)
}

// close closes the files; a second call does nothing.
func (d *localDisk) close() (err error) {
	d.closed.Do(func() { err = errors.Join(d.store.Close(), d.meta.Close()) })
	return err
}

func (v *Volume) store() blockdev.Device { return v.disk.Load().store }

// replaceWait bounds the wait for what is under way when a disk is to be replaced.
const replaceWait = 5 * time.Second

// ReplaceDisk implements Control.
func (v *Volume) ReplaceDisk(ctx context.Context, fresh func() (Disk, error)) error {
	if err := v.awaitSettled(ctx); err != nil {
		return err
	}
	if err := v.beginReplace(ctx); err != nil {
		return publicError(err)
	}
	// Nothing is committed or read there any more; the files may be locked.
	if err := v.disk.Load().close(); err != nil {
		v.log.Warn("closing the failed disk", "err", err)
	}
	if v.opt.Archives.Live() {
		if err := v.opt.Archives.Seal("the disk was replaced"); err != nil {
			v.log.Error("sealing the archive of a replaced disk", "err", err)
		}
	}
	d, err := fresh()
	v.mu.Lock()
	v.replacing = false
	if err == nil {
		err = v.m.MayReplace(v.now()) // a peer may have been lost meanwhile
	}
	if err != nil {
		v.m.MetaGone()
		v.unlockAndRun()
		if d.Store != nil {
			err = errors.Join(publicError(err), d.Store.Close(), d.Meta.Close())
		}
		return publicError(err)
	}
	if err := v.opt.Archives.Abandon(v.opt.Archives.ID()); err != nil { // the new metadata vouch for none
		v.log.Warn("closing the archive of a replaced disk", "err", err)
	}
	v.setDisk(d.Store, d.Meta)
	v.opt.State = d.State
	v.kept = &d.State.Super
	v.regions = &regions{slots: make([]int, len(v.regions.slots))}
	for i := range v.regions.slots {
		v.regions.slots[i] = i
	}
	v.m.Replaced(v.now())
	v.unlockAndRun()
	return nil
}

// beginReplace waits, for a moment, until nothing uses the failed disk, and keeps it
// so.
func (v *Volume) beginReplace(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, replaceWait)
	defer cancel()
	for {
		v.mu.Lock()
		err := v.m.MayReplace(v.now())
		switch {
		case err != nil:
		case v.m.View().Role != protocol.Primary:
			err = fmt.Errorf("volume %s is not primary here: close it and create it anew", v.opt.Name)
		case v.replacing:
			err = &replica.Refusal{Code: protocol.CodeBusy, Text: "the disk of " + v.opt.Name + " is being replaced already"}
		case v.stuck > 0:
			err = &replica.Refusal{Code: protocol.CodeBusy, Text: fmt.Sprintf(
				"%d requests are still stuck in the failed disk of %s and may yet be written: wait for them, or hand the role over (qrbd switchover %s), restart the agent and try again",
				v.stuck, v.opt.Name, v.opt.Name)}
		default:
			v.replacing = true
			v.mu.Unlock()
			return nil
		}
		v.mu.Unlock()
		var r *replica.Refusal
		if !errors.As(err, &r) || r.Code != protocol.CodeBusy {
			return err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

// checkStore fails a disk that has not ended, within the disk timeout, what a peer
// sent. The machine watches what clients asked for.
func (v *Volume) checkStore() {
	limit := v.tuned.Load().DiskTimeout
	if limit == 0 {
		return
	}
	v.mu.Lock()
	for _, l := range v.applying {
		if l == nil {
			continue
		}
		if at := l.storeAt.Load(); at != 0 && time.Duration(v.now()-at) > limit {
			v.m.StoreHangs(v.now(), fmt.Sprintf("a write from %s has not ended for %v", l.name, limit))
		}
	}
	v.unlockAndRun()
}

// stuckDone takes back what the store was given up with. REQUIRES v.mu.
func (v *Volume) stuckDone(r *replica.Request) {
	if r.Internal() {
		return
	}
	o := r.Tag.(*op)
	if o.answered {
		v.stuck--
	}
	if o.parted {
		o.buf.Release()
	}
}

// answerStuck notes a request that is answered while the store still has it. A read's
// buffer stays with the store, which may write into it.
func (v *Volume) answerStuck(o *op) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.stuck++
	o.answered = true
	if o.r.Op == replica.Read && !o.parted {
		o.parted = true
		o.buf.Retain()
	}
}
