package meta

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/qrbd/qrbd/blockdev"
)

// Wipe makes the file one that nothing can be recovered from: both slots of the
// superblock are zeroes, durably, before it returns. The file stays, so that what else
// belongs to the volume can be removed first; see Remove. An agent that has it open is
// ErrBusy. A file that was wiped already is wiped again.
func Wipe(path string) error {
	f, err := openLocked(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("metadata: %w", err)
	}
	if _, err := f.WriteAt(make([]byte, min(pairSize, info.Size())), 0); err != nil {
		return fmt.Errorf("wiping metadata %s: %w", path, err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("wiping metadata %s: %w", path, err)
	}
	return nil
}

// Remove wipes the file and removes it, durably.
func Remove(path string) error {
	if err := Wipe(path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("removing metadata: %w", err)
	}
	return blockdev.SyncDir(filepath.Dir(path))
}

// Look returns the superblock of a file that no agent has open.
func Look(path string) (s Super, err error) {
	st, err := OpenStorage(path)
	if err != nil {
		return Super{}, err
	}
	file, state, err := Open(st)
	if err != nil {
		return Super{}, errors.Join(err, st.Close())
	}
	return state.Super, file.Close()
}
