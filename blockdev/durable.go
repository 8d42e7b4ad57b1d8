package blockdev

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// SyncData makes a file's content durable, and what of its metadata is needed to read
// that again: the length, new blocks (fdatasync). After an error nothing is known of
// the writes since the last one that succeeded: it is not tried again (P9).
func SyncData(f *os.File) error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) { // a signal before anything was done
			return fmt.Errorf("fdatasync %s: %w", f.Name(), err)
		}
	}
}

// SyncDir makes the entries of a directory durable: files made, renamed, removed.
func SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
