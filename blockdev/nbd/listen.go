package nbd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrInUse: somebody answers on the socket.
var ErrInUse = errors.New("address is in use")

// Listen opens the address of an export:
//
//	unix:/path       a socket that only its owner may use (mode 0600); see ListenUnix
//	tcp:host:port    TCP; off loopback the server needs Credentials, or anybody
//	                 on the network may read and write
//
// A missing directory of a Unix socket is created. A socket that is left over
// from a dead process is replaced; one that somebody answers on is ErrInUse, and
// a file of another kind is an error. Closing the listener removes the socket.
func Listen(addr string) (net.Listener, error) {
	network, rest, _ := strings.Cut(addr, ":")
	switch {
	case network == "unix" && rest != "":
		return ListenUnix(rest, Private())
	case network == "tcp" && rest != "":
		l, err := net.Listen("tcp", rest)
		if err != nil {
			return nil, fmt.Errorf("listening on %s: %w", addr, inUse(err))
		}
		return l, nil
	}
	return nil, fmt.Errorf("listening on %q: want unix:/path or tcp:host:port", addr)
}

// Access is the ownership of a Unix socket. Who may write to it may connect.
type Access struct {
	UID, GID int // -1: those of the process
	Mode     fs.FileMode
}

// Private is the access of nobody but the process's user.
func Private() Access { return Access{UID: -1, GID: -1, Mode: 0o600} }

// grant gives the socket at path, which is private so far, to whom it is for. The
// file is held by a descriptor meanwhile, and no link is followed, so that nothing
// else is given away where others may write to the directory.
func (a Access) grant(path string) error {
	if a == Private() {
		return nil
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return errors.New("the socket was replaced by another file")
	}
	if err := unix.Fchownat(fd, "", a.UID, a.GID, unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("giving the socket to uid %d, gid %d (-1: unchanged): %w; only root may, or a member of the group", a.UID, a.GID, err)
	}
	// chmod takes no descriptor of this kind but under its name in /proc.
	if err := os.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), a.Mode); err != nil {
		return fmt.Errorf("mode %#o of the socket: %w", a.Mode, err)
	}
	return nil
}

// ListenUnix opens a Unix socket at path for a.
func ListenUnix(path string, a Access) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("making the directory of a socket: %w", err)
	}
	if err := removeStale(path); err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		var err error
		// Linux takes a socket file's mode from the socket at bind: the file never
		// exists with a wider one, and no umask of the process is touched.
		if e := rc.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); e != nil {
			return e
		}
		return err
	}}
	l, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, inUse(err))
	}
	if err := a.grant(path); err != nil {
		l.Close()
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	return l, nil
}

// removeStale removes the socket at path if nobody answers on it.
func removeStale(path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("the file there is not a socket (%v)", st.Mode())
	}
	c, err := net.DialTimeout("unix", path, 2*time.Second)
	if err == nil {
		c.Close()
		return ErrInUse
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err // a full backlog, say: somebody is there
	}
	return os.Remove(path)
}

func inUse(err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%w: %w", ErrInUse, err)
	}
	return err
}
