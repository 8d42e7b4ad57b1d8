package cluster

import (
	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/nbd/client"
)

// Disk is an NBD connection to a node's export. It satisfies ledger.Disk. Safe
// for concurrent use.
type Disk struct{ c *client.Client }

// TryDial connects to the volume's export.
func (n *Node) TryDial(volume string) (*Disk, error) {
	ctx, cancel := n.c.within(Timeout)
	defer cancel()
	c, err := client.Dial(ctx, n.Config.Volume(volume).Export, volume, client.Options{})
	if err != nil {
		return nil, err
	}
	return &Disk{c}, nil
}

// Dial connects to the volume's export, which has to succeed.
func (n *Node) Dial(volume string) *Disk {
	n.t.Helper()
	d, err := n.TryDial(volume)
	if err != nil {
		n.t.Fatalf("%s: connect to the export of %s: %v", n.Name, volume, err)
	}
	return d
}

// ReadAt fills p from off.
func (d *Disk) ReadAt(p []byte, off int64) error { return d.c.ReadAt(p, off) }

// WriteAt writes p at off. fua: it is stable on return.
func (d *Disk) WriteAt(p []byte, off int64, fua bool) error {
	return d.c.WriteAt(p, off, flags(fua))
}

// Zero makes the range read as zeroes.
func (d *Disk) Zero(off, n int64) error { return d.c.Zero(off, n, 0) }

// Trim gives the range up.
func (d *Disk) Trim(off, n int64) error { return d.c.Trim(off, n, 0) }

// Flush makes every acknowledged write stable.
func (d *Disk) Flush() error { return d.c.Flush() }

// Close ends the connection in order, waiting for what is in flight.
func (d *Disk) Close() { _ = d.c.Close() } // fails only if it was closed before

// Abort cuts the connection.
func (d *Disk) Abort() { d.c.Abort() }

func flags(fua bool) blockdev.Flags {
	if fua {
		return blockdev.FUA
	}
	return 0
}
