package volume

import (
	"errors"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/volume/meta"
)

// localDisk is the backing store of a volume and its metadata.
type localDisk struct {
	store blockdev.Device
	// nowait serves reads from memory without a worker; nil when the store cannot.
	nowait blockdev.NowaitReader
	meta   *meta.File
}

func (v *Volume) setDisk(store blockdev.Device, m *meta.File) {
	d := &localDisk{store: store, meta: m}
	d.nowait, _ = store.(blockdev.NowaitReader)
	v.disk.Store(d)
}

func (d *localDisk) close() error { return errors.Join(d.store.Close(), d.meta.Close()) }

func (v *Volume) store() blockdev.Device { return v.disk.Load().store }
