package volume

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
	"github.com/qrbd/qrbd/resync"
	"github.com/qrbd/qrbd/volume/archive"
)

// ArchiveInfo is what `qrbd archive list` shows of a side that was given up.
type ArchiveInfo struct {
	ID      string     `json:"id"`
	Volume  string     `json:"volume"`
	Time    time.Time  `json:"time"`
	Winner  string     `json:"winner"`
	Why     string     `json:"why"` // the rule that decided
	Phase   string     `json:"phase"`
	Exact   bool       `json:"exact"` // the view is the lost side to the last block
	Until   *time.Time `json:"exact_until,omitempty"`
	Reason  string     `json:"reason,omitempty"` // it is sealed, or cannot be used
	Bytes   int64      `json:"bytes"`            // of the file
	Blocks  int64      `json:"blocks"`           // of 4 KiB that it holds
	Lost    string     `json:"lost"`             // generation
	Kept    string     `json:"kept"`             // generation of the winner
	Damaged bool       `json:"damaged,omitempty"`
}

// ArchiveMode says what is archived before a sync overwrites it.
type ArchiveMode uint8

// The modes.
const (
	// ArchiveSplitBrain: a side that was given up, with writes that were acknowledged.
	ArchiveSplitBrain ArchiveMode = iota
	// ArchiveAlways: also writes that nobody can rely on, under way when a connection
	// or this node was lost, if there is room.
	ArchiveAlways
	// ArchiveOff: nothing; what there is can still be listed, exported and removed.
	ArchiveOff
)

// settleArchive brings the archive that a crash left to where the metadata stands,
// and has the metadata vouch for none that is not kept up.
func (v *Volume) settleArchive(st *replica.Stored) {
	a := v.opt.Archives
	var err error
	switch have := a.Lost(); {
	case v.opt.ArchiveMode == ArchiveOff && !st.Restoring:
		err = a.Seal("archive is off in the configuration")
		err = errors.Join(err, a.Abandon(a.ID()))
		st.Archive = 0
	case have != 0 && have != st.Lost:
		err = a.Complete(have)
	}
	if err != nil {
		v.log.Error("the archive of a side that was given up", "err", err)
	}
	st.NoArchive = a.ID() != st.Archive
}

// disown has the metadata say that an archive which cannot be sealed is not kept up
// any more, and gives it up. With an error nothing may be overwritten.
func (v *Volume) disown(u *archive.UnsealedError) error {
	done := make(chan error, 1)
	v.mu.Lock()
	v.m.Disown(v.now(), u.ID, func(err error) { done <- err })
	v.unlockAndRun()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("%w, nor can the metadata disown it: %w", u, err)
		}
	case <-v.stop:
		return fmt.Errorf("%w: %w", u, blockdev.ErrShutdown)
	}
	v.log.Error("an archive ends, and cannot be sealed; it is not exact any more", "archive", u.Name, "err", errors.Join(u.Err, v.opt.Archives.Abandon(u.ID)))
	return nil
}

// keepAll is Archives.Keep; an archive that can neither take the ranges nor be sealed is
// disowned.
func (v *Volume) keepAll(list ...blockdev.Extent) error {
	for {
		err := v.opt.Archives.Keep(list...)
		var u *archive.UnsealedError
		if !errors.As(err, &u) {
			return err
		}
		if err := v.disown(u); err != nil {
			return err
		}
	}
}

// beside runs fn in a goroutine that Close waits for; not at all once it is closed.
func (v *Volume) beside(fn func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return
	}
	v.fast.Add(1)
	go func() {
		defer v.fast.Done()
		fn()
	}()
}

// archiveJob is a beginning or an end of what is archived.
type archiveJob struct {
	peer    replica.PeerID
	discard *replica.Discard
	begins  bool
}

// archiveLater has a goroutine do the jobs one by one, in the machine's order: the
// end of one side must not be taken for that of the next. REQUIRES v.mu.
func (v *Volume) archiveLater(j archiveJob) {
	if v.closed {
		return
	}
	v.archiveJobs = append(v.archiveJobs, j)
	if len(v.archiveJobs) == 1 {
		v.fast.Add(1)
		go v.archiveAll()
	}
}

func (v *Volume) archiveAll() {
	defer v.fast.Done()
	v.mu.Lock()
	for len(v.archiveJobs) > 0 {
		j := v.archiveJobs[0]
		v.mu.Unlock()
		if j.begins {
			v.beginArchive(j.peer, j.discard)
		} else {
			v.endArchive(j.discard)
		}
		v.mu.Lock()
		v.archiveJobs = v.archiveJobs[1:]
	}
	v.mu.Unlock()
}

// beginArchive prepares to keep what a sync takes from this side, and answers the
// machine.
func (v *Volume) beginArchive(id replica.PeerID, d *replica.Discard) {
	err := v.prepareArchive(d)
	v.mu.Lock()
	if errors.Is(err, errStoreFlush) {
		v.m.PeerApplied(v.now(), id, 0, err)
	}
	if err == nil {
		d.Archive = v.opt.Archives.ID()
	}
	given := v.m.Archived(v.now(), id, d, err)
	v.archiving = d
	v.unlockAndRun()
	if err == nil && !given {
		if err := v.opt.Archives.Seal("the sync did not begin"); err != nil {
			v.log.Error("the archive of what was not given up after all", "lost", d.Lost, "err", err)
		}
	}
}

var errStoreFlush = errors.New("flushing the store before what it holds is archived")

func (v *Volume) prepareArchive(d *replica.Discard) error {
	mode := v.tuned.Load().ArchiveMode
	if v.opt.Archives == nil || mode == ArchiveOff || !d.Diverged && !d.Resumed && mode != ArchiveAlways {
		return replica.ErrNotKept
	}
	// What is kept later must be what a power cut leaves now.
	if err := v.store().Flush(); err != nil {
		return fmt.Errorf("%w: %w", errStoreFlush, err)
	}
	err := v.opt.Archives.Begin(archive.Start{Winner: d.Peer, Rule: string(d.Rule), ID: d.Volume, Lost: d.Lost, Kept: d.Kept, Parent: d.Parent,
		History: d.History, Disk: d.Disk, Full: d.Full, Resumed: d.Resumed, Blocks: d.Blocks})
	var room *archive.RoomError
	if !d.Diverged && !d.Resumed && errors.As(err, &room) {
		v.log.Warn("writes that were under way are not archived", "peer", d.Peer, "err", err)
		return replica.ErrNotKept
	}
	if err == nil {
		v.log.Info("archive begun", "peer", d.Peer, "lost", d.Lost, "kept", d.Kept, "rule", d.Rule, "resumed", d.Resumed)
	}
	return err
}

// endArchive ends what d began, unless another has begun since.
func (v *Volume) endArchive(d *replica.Discard) {
	v.mu.Lock()
	late := d.Peer != "" && d != v.archiving
	v.mu.Unlock()
	if late {
		return
	}
	if err := v.opt.Archives.Complete(d.Lost); err != nil {
		v.log.Error("the archive of what was given up", "lost", d.Lost, "err", err)
	}
}

// keep archives what the ranges hold before they are overwritten for the peer. With
// an error the connection ends and nothing may be overwritten.
func (l *link) keep(list ...blockdev.Extent) error {
	v := l.v
	if !v.opt.Archives.Live() {
		return nil
	}
	err := v.keepAll(list...)
	if err != nil {
		v.mu.Lock()
		if v.links[l.id] == l {
			v.m.ArchiveFailed(v.now(), l.id, err)
		}
		v.unlockAndRun()
	}
	return err
}

// rangeOf returns what an operation is about to overwrite; nothing for a flush.
func rangeOf(d *protocol.Data) []blockdev.Extent {
	if d.Op == protocol.DataFlush {
		return nil
	}
	return []blockdev.Extent{{Off: d.Off, Len: d.Len, Zero: d.Op != protocol.DataWrite}}
}

// keepAhead archives, with one sync, what d and the operations that wait in the read
// buffer behind it are about to overwrite. It only saves time: apply keeps too.
func (l *link) keepAhead(fr *frameReader, d *protocol.Data) error {
	v := l.v
	if !v.opt.Archives.Live() {
		return nil
	}
	var list []blockdev.Extent
	for _, d := range append([]*protocol.Data{d}, fr.ahead()...) {
		for _, e := range rangeOf(d) {
			if blockdev.CheckRange(v.size, e.Off, e.Len) == nil { // else it is refused when its turn comes
				list = append(list, e)
			}
		}
	}
	v.mu.Lock()
	receiving := v.links[l.id] == l && v.m.Receiving(l.id)
	v.mu.Unlock()
	if !receiving || len(list) == 0 {
		return nil
	}
	return l.keep(list...)
}

// keepLocal archives what a client's request is about to overwrite. The client comes
// first: an archive that cannot take it is sealed, or disowned. An error says that the
// metadata cannot be written either: then the disk has failed.
func (v *Volume) keepLocal(r *replica.Request) error {
	if !v.opt.Archives.Live() {
		return nil
	}
	switch r.Op {
	case replica.Write, replica.Zero, replica.Trim:
		err := v.keepAll(blockdev.Extent{Off: r.Off, Len: r.Len, Zero: r.Op != replica.Write})
		if err == nil {
			return nil
		}
		v.log.Error("the archive ends early", "err", err)
		err = v.opt.Archives.Seal(err.Error())
		if u := (*archive.UnsealedError)(nil); errors.As(err, &u) {
			return v.disown(u)
		}
		return err
	case replica.Read, replica.Flush, replica.Pull:
	}
	return nil
}

// waitingRun is a run of a sync whose turn to be applied comes when what it
// overwrites is archived.
type waitingRun struct {
	resync.Run
	buf *blockdev.Buffer // nil: zeroes
}

// waiting is what gather has collected. It belongs to bulkReceive's goroutine.
type waiting struct {
	runs  []waitingRun
	bytes int // of their data
}

// Bounds of what one sync of the archive serves.
const (
	gatherRuns  = 64
	gatherBytes = 4 << 20
)

// gather collects the runs of a sync that discards, as far as they have arrived, so
// that they share a sync of the archive. It takes buf over when it returns true.
func (l *link) gather(t *resync.Target, w *waiting, fr *frameReader, msg protocol.Message, buf *blockdev.Buffer) (gathered bool, err error) {
	v := l.v
	var r waitingRun
	switch m := msg.(type) {
	case *protocol.SyncWrite:
		r = waitingRun{resync.Run{ID: m.ID, Off: m.Off, Len: m.Len}, buf}
		gathered = v.opt.Archives.Live()
	case *protocol.SyncZero:
		r = waitingRun{Run: resync.Run{ID: m.ID, Off: m.Off, Len: m.Len}}
		gathered = v.opt.Archives.Live()
	}
	if !gathered {
		if err := l.applyWaiting(t, w); err != nil {
			releaseBuffer(buf)
			return false, err
		}
		return false, nil
	}
	w.runs = append(w.runs, r)
	w.bytes += len(payload(buf))
	if err := l.allowed(false, r.Off, r.Len); err != nil {
		return true, err
	}
	if len(w.runs) < gatherRuns && w.bytes < gatherBytes && fr.r.Buffered() > 0 && v.roomy() {
		return true, nil // more is on its way
	}
	return true, l.applyWaiting(t, w)
}

func releaseBuffer(b *blockdev.Buffer) {
	if b != nil {
		b.Release()
	}
}

// roomy reports whether a frame's payload can be had without waiting: whoever holds
// buffers must not wait for more.
func (v *Volume) roomy() bool {
	b := v.opt.Pool.TryGet(protocol.PayloadMax)
	releaseBuffer(b)
	return b != nil
}

// applyWaiting archives what the gathered runs overwrite, with one sync, and applies
// them.
func (l *link) applyWaiting(t *resync.Target, w *waiting) error {
	if len(w.runs) == 0 {
		return nil
	}
	defer w.release()
	list := make([]blockdev.Extent, len(w.runs))
	for i, r := range w.runs {
		list[i] = blockdev.Extent{Off: r.Off, Len: r.Len, Zero: r.buf == nil}
	}
	if err := l.keep(list...); err != nil {
		return err
	}
	for _, r := range w.runs {
		if err := l.syncApply(t, r.Run, payload(r.buf)); err != nil {
			return err
		}
	}
	return nil
}

// release gives the buffers of gathered runs back.
func (w *waiting) release() {
	for i := range w.runs {
		releaseBuffer(w.runs[i].buf)
		w.runs[i] = waitingRun{}
	}
	w.runs, w.bytes = w.runs[:0], 0
}

// ListArchives implements Control.
func (v *Volume) ListArchives() ([]ArchiveInfo, error) {
	if v.opt.Archives == nil {
		return nil, v.noArchives()
	}
	list, err := v.opt.Archives.List()
	if err != nil {
		return nil, err
	}
	out := []ArchiveInfo{}
	for i := range list {
		out = append(out, v.archiveInfo(&list[i]))
	}
	return out, nil
}

func (v *Volume) archiveInfo(i *archive.Info) ArchiveInfo {
	a := ArchiveInfo{ID: i.Name, Volume: v.opt.Name, Bytes: i.Bytes, Blocks: i.Blocks}
	if i.Err != nil {
		a.Damaged, a.Reason = true, i.Err.Error()
	}
	h := &i.Header
	if h.File == 0 {
		return a
	}
	a.Time, a.Winner, a.Why, a.Phase, a.Exact = h.Time, h.Winner, h.Rule, i.Phase.String(), i.Exact()
	a.Lost, a.Kept = h.Lost.String(), h.Kept.String()
	if i.Phase == archive.Sealed {
		until := i.Sealed
		a.Until = &until
		if a.Reason == "" {
			a.Reason = i.Why
		}
	}
	return a
}

func (v *Volume) noArchives() error {
	return refuse(protocol.CodeNotAllowed, "volume %s keeps no archives on %s", v.opt.Name, v.opt.Self)
}

// look finds an archive that can be read.
func (v *Volume) look(id string) (*archive.File, error) {
	if v.opt.Archives == nil {
		return nil, v.noArchives()
	}
	f, err := v.opt.Archives.Look(id)
	if err != nil {
		return nil, v.archiveRefusal(id, err)
	}
	return f, nil
}

func (v *Volume) archiveRefusal(id string, err error) error {
	if errors.Is(err, archive.ErrUnknown) {
		return refuse(protocol.CodeNotAllowed, "volume %s has no archive %q on %s: see qrbd archive list %s", v.opt.Name, id, v.opt.Self, v.opt.Name)
	}
	return refuse(protocol.CodeNotAllowed, "archive %s of volume %s: %v", id, v.opt.Name, err)
}

// ViewArchive implements Control.
func (v *Volume) ViewArchive(id string) (blockdev.Device, error) {
	f, err := v.look(id)
	if err != nil {
		return nil, err
	}
	return archive.NewView(f, v.store()), nil
}

// RemoveArchive implements Control.
func (v *Volume) RemoveArchive(id string) error {
	if v.opt.Archives == nil {
		return v.noArchives()
	}
	f, err := v.look(id)
	if err == nil {
		v.mu.Lock()
		held := v.m.GivingUp() == f.Header().Lost && v.opt.Archives.ID() == f.Header().File
		v.mu.Unlock()
		if err := f.Release(); err != nil {
			return v.archiveRefusal(id, err)
		}
		if held { // half of it may be in place, and the other half nowhere else
			return refuse(protocol.CodeNotAllowed, "archive %s of volume %s is in use: the sync that fills it, or the restore that empties it, has not ended", id, v.opt.Name)
		}
	}
	if err := v.opt.Archives.Remove(id); err != nil {
		return v.archiveRefusal(id, err)
	}
	return nil
}

// RestoreArchive implements Control. Every block of the archive is read and checked
// before the first is written.
func (v *Volume) RestoreArchive(ctx context.Context, id string, progress func(done, total int64)) error {
	f, err := v.look(id)
	if err != nil {
		return err
	}
	defer f.Release()
	info := f.Info()
	if !info.Exact() {
		return v.notExact(&info)
	}
	r := restore{v: v, f: f, total: 2 * info.Blocks * blockdev.BlockSize, progress: progress}
	if err := f.Each(func(block int64, data []byte) error { return r.step(ctx) }); err != nil {
		return v.archiveRefusal(id, err)
	}
	if err := v.awaitSettled(ctx); err != nil {
		return err
	}
	given := replica.GivenUp{Lost: info.Header.Lost, Kept: info.Header.Kept, History: info.Header.History}
	// From here on it ends with Restored, however soon who asked loses patience.
	if !v.restoring.CompareAndSwap(false, true) { // its archive must not be sealed by the end of another
		return refuse(protocol.CodeBusy, "a restore of %s is under way on %s", v.opt.Name, v.opt.Self)
	}
	defer v.restoring.Store(false)
	begin := func(done func(error)) { v.beginRestore(f, given, done) }
	if err := v.operate(context.WithoutCancel(ctx), begin); err != nil {
		return err
	}
	if err = f.Each(r.writer(ctx)); err == nil {
		err = v.store().Flush()
	}
	fatal := err != nil && r.failed && !errors.Is(err, blockdev.ErrNoSpace) || errors.Is(err, blockdev.ErrFailed)
	if err != nil {
		err = fmt.Errorf("restoring archive %s of volume %s, which stays inconsistent until that is done again: %w", id, v.opt.Name, err)
	}
	if err := v.operate(context.WithoutCancel(ctx), func(done func(error)) { v.m.Restored(v.now(), given, err, fatal, done) }); err != nil {
		return err
	}
	// Not one that a sync has begun since.
	if err := v.opt.Archives.SealOne(info.Header.File, "restored"); err != nil {
		v.log.Error("sealing a restored archive", "archive", id, "err", err)
	}
	return nil
}

// notExact is the refusal to restore an archive that is sealed, or has failed.
func (v *Volume) notExact(i *archive.Info) error {
	why := i.Why
	if i.Err != nil {
		why = i.Err.Error()
	}
	return refuse(protocol.CodeNotAllowed, "archive %s of volume %s was sealed at %s (%s): what was overwritten since would be mixed with the lost side. "+
		"Export it and copy what you need: qrbd archive export %s %s --socket unix:PATH",
		i.Name, v.opt.Name, i.Sealed.Local().Format(time.DateTime), why, v.opt.Name, i.Name)
}

// beginRestore asks the machine, which lets nobody connect from then on, unless a
// connection that has ended still overwrites or has just sealed the archive.
// REQUIRES v.mu.
func (v *Volume) beginRestore(f *archive.File, given replica.GivenUp, done func(error)) {
	info := f.Info()
	switch l := v.late(); {
	case l != nil:
		done(refuse(protocol.CodeBusy, "a write from %s has not ended on %s: try again in a moment", l.name, v.opt.Self))
	case !info.Exact():
		done(v.notExact(&info))
	default:
		v.m.Restore(v.now(), given, done)
	}
}

// restore is one under way.
type restore struct {
	v           *Volume
	f           *archive.File
	done, total int64
	progress    func(done, total int64)
	failed      bool // the store's error, not the archive's
}

func (r *restore) step(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if r.done += blockdev.BlockSize; r.progress != nil && r.done%(16*blockdev.BlockSize) == 0 {
		r.progress(r.done, r.total)
	}
	return nil
}

// writer returns what writes a block back, and tells of it.
func (r *restore) writer(ctx context.Context) func(block int64, data []byte) error {
	return func(block int64, data []byte) error {
		if err := r.put(block, data); err != nil {
			return err
		}
		return r.step(ctx)
	}
}

func (r *restore) put(block int64, data []byte) (err error) {
	off := block * blockdev.BlockSize
	n := min(blockdev.BlockSize, r.v.size-off)
	if data == nil {
		err = r.v.store().Zero(off, n, 0)
	} else {
		err = r.v.store().WriteAt(data[:n], off, 0)
	}
	r.failed = err != nil
	return err
}
