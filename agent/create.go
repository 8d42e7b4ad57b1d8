package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
	"github.com/qrbd/qrbd/volume/archive"
	"github.com/qrbd/qrbd/volume/meta"
)

// CreateOffline makes a volume's backing store and metadata when no agent runs;
// it holds the node's lock meanwhile (ErrLocked).
func CreateOffline(c *config.Config, name string, force bool) error {
	v := c.Volume(name)
	if v == nil {
		return unknownVolume(c, name)
	}
	lock, err := lockState(c.Node.State)
	if err != nil {
		return err
	}
	return errors.Join(createFiles(c, v, force), lock.release())
}

func unknownVolume(c *config.Config, name string) error {
	text := fmt.Sprintf("volume %q is not configured on this node; there is: %s", name, c.VolumeNames())
	if len(c.Volumes) == 0 {
		text = fmt.Sprintf("volume %q is not configured on this node, nor any other: add a [[volume]] section to %s", name, c.File)
	}
	return &volume.Error{Code: protocol.CodeUnknownVolume, Text: text}
}

// createFiles makes backing store and metadata. Without force whatever is there
// already is a refusal. What is refused changes nothing; a crash, or a store that
// fails on the way, leaves at worst metadata that know of no data. REQUIRES: the
// node's lock.
func createFiles(c *config.Config, v *config.Volume, force bool) error {
	metaPath := c.MetaPath(v.Name)
	if !force {
		switch _, err := os.Lstat(metaPath); {
		case err == nil:
			return fmt.Errorf("volume %s is created already (%s): its data stay as they are; --force starts anew and loses them", v.Name, metaPath)
		case !errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("metadata of volume %s: %w", v.Name, err)
		}
	}
	_, err := os.Lstat(metaPath)
	had := !errors.Is(err, fs.ErrNotExist)
	made := false
	err = createBacking(v, force, func() error {
		if err := meta.Create(metaPath, newSuper(c, v), force); err != nil {
			return fmt.Errorf("metadata of volume %s in %s: %w", v.Name, metaPath, err)
		}
		made = true
		// What an archive lies over is about to go. The new metadata vouch for none; that
		// the archives say so, too, is for those who list them.
		_ = archive.SealAll(archive.Directory(c.ArchivePath(v.Name)), time.Now(), "the replica was created anew")
		return nil
	})
	if err != nil && made && !had {
		os.Remove(metaPath)
	}
	return err
}

// newSuper describes a volume that holds nothing yet.
func newSuper(c *config.Config, v *config.Volume) meta.Super {
	s := meta.Super{Size: v.Size, Node: c.Node.Name, Name: v.Name, Disk: protocol.Inconsistent, Clean: true}
	if v.Witness {
		s.Size, s.Disk = volume.WitnessSize, protocol.Diskless
	}
	for _, p := range v.Peers {
		s.Peers = append(s.Peers, meta.PeerSlot{Name: p.Name})
	}
	return s
}

// createBacking makes a sparse file, or checks that a block device will do. It calls
// describe, which makes the metadata, before anything that the store holds is lost: a
// crash must not leave metadata that call an emptied store a good copy.
func createBacking(v *config.Volume, force bool, describe func() error) error {
	if v.Witness {
		return describe()
	}
	fi, err := os.Stat(v.Backing)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("backing store of volume %s: %w", v.Name, err)
	case fi.Mode()&os.ModeDevice != 0:
		if err := checkBlockDevice(v, force); err != nil {
			return err
		}
		return describe()
	case !fi.Mode().IsRegular():
		return fmt.Errorf("backing store of volume %s: %s is neither a file nor a block device", v.Name, v.Backing)
	case !force:
		return fmt.Errorf("backing store of volume %s: %s exists and may hold data: use --force to overwrite it", v.Name, v.Backing)
	}
	var described error
	store, err := blockdev.CreateFileAfter(v.Backing, v.Size, force, func() error {
		described = describe()
		return described
	})
	if err == nil {
		err = store.Close()
	}
	if err != nil && described == nil {
		err = fmt.Errorf("backing store of volume %s: %w", v.Name, err)
	}
	return err
}

// signatureBytes is the start of a device that is looked at for data: file
// systems, partition tables, LVM and LUKS all have their mark there.
const signatureBytes = 1 << 20

// checkBlockDevice opens the device, which claims it from mounts and others.
func checkBlockDevice(v *config.Volume, force bool) error {
	store, err := blockdev.OpenBlock(v.Backing)
	if err != nil {
		return fmt.Errorf("backing store of volume %s: %w", v.Name, err)
	}
	defer store.Close()
	if store.Size() < v.Size {
		return fmt.Errorf("backing store of volume %s: %s has %d bytes, the volume needs %d: use a larger device or a smaller size",
			v.Name, v.Backing, store.Size(), v.Size)
	}
	if force {
		return nil
	}
	head := make([]byte, min(signatureBytes, store.Size()))
	if err := store.ReadAt(head, 0); err != nil {
		return fmt.Errorf("backing store of volume %s: %w", v.Name, err)
	}
	for _, b := range head {
		if b != 0 {
			return fmt.Errorf("backing store of volume %s: the first MiB of %s is not empty, so it may hold data: use --force to take it", v.Name, v.Backing)
		}
	}
	return nil
}
