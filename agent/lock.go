package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/gofrs/flock"
)

// ErrLocked: another agent (or a command that works without one) has the node's
// state directory.
var ErrLocked = errors.New("the state directory is in use")

// stateLock keeps a second agent off a state directory. The kernel releases it
// with the process, however that ends.
type stateLock struct{ f *flock.Flock }

// lockState makes the directory (0700) if it is not there, and locks it.
func lockState(dir string) (*stateLock, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	path := filepath.Join(dir, "lock")
	f := flock.New(path, flock.SetPermissions(0o600))
	ok, err := f.TryLock()
	if err != nil {
		return nil, fmt.Errorf("locking the state directory %s: %w", dir, err)
	}
	if !ok {
		return nil, fmt.Errorf("%w: another qrbd agent runs with %s; stop it first, or give this node its own node.state", ErrLocked, dir)
	}
	return &stateLock{f: f}, nil
}

func (l *stateLock) release() error {
	if err := l.f.Close(); err != nil {
		return fmt.Errorf("unlocking the state directory: %w", err)
	}
	return nil
}
