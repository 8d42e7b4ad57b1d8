package fault

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/qrbd/qrbd/blockdev"
)

// scriptFile is the text file a device takes its rules from.
type scriptFile struct {
	path string

	mu sync.Mutex // taken before Device.mu
	// Guarded by mu.
	seen fileVersion
	err  error
}

// fileVersion tells one content of a file from the next. The zero value: none.
type fileVersion struct {
	inode uint64
	size  int64
	mtime unix.Timespec
}

// FromFile returns a device over inner whose rules are the script at path. The
// file is looked at before every operation, and every 20 ms by operations that
// hang, and read again when its inode, size or time of change differ. No file: no
// rules. A script that is wrong is an error here; later it leaves the rules as
// they were (see ScriptError). Writers should rename a new file into place.
func FromFile(inner blockdev.Device, path string) (*Device, error) {
	d := New(inner, 0)
	d.script = &scriptFile{path: path}
	d.script.refresh(d)
	if err := d.ScriptError(); err != nil {
		return nil, err
	}
	return d, nil
}

// ScriptError returns why the script was not taken when it was last read, or nil.
func (d *Device) ScriptError() error {
	if d.script == nil {
		return nil
	}
	d.script.mu.Lock()
	defer d.script.mu.Unlock()
	return d.script.err
}

// refresh reads the script again if it has changed. Held across the read: no
// operation may start by rules that are known to be old.
func (s *scriptFile) refresh(d *Device) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, err := statVersion(s.path)
	if err != nil {
		s.err = fmt.Errorf("fault script: %w", err)
		return
	}
	if now == s.seen {
		return
	}
	s.seen, s.err = now, nil
	if now == (fileVersion{}) {
		d.Set()
		return
	}
	rules, err := readScript(s.path)
	if err != nil {
		s.err = err
		return
	}
	d.Set(rules...)
}

// statVersion returns the file's version, zero when there is no file.
func statVersion(path string) (fileVersion, error) {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	if errors.Is(err, fs.ErrNotExist) {
		return fileVersion{}, nil
	}
	if err != nil {
		return fileVersion{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return fileVersion{inode: st.Ino, size: st.Size, mtime: st.Mtim}, nil
}

func readScript(path string) ([]Rule, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("fault script: %w", err)
	}
	defer f.Close()
	return Parse(f)
}
