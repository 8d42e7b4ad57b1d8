package attach

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Method is how a volume becomes a block device.
type Method string

// The methods.
const (
	MethodNBD  Method = "nbd"  // the kernel's own NBD client
	MethodFUSE Method = "fuse" // a file through FUSE, and a loop device on it
)

// Record is what is remembered of an attached volume.
type Record struct {
	Volume string `json:"volume"`
	Method Method `json:"method"`
	Device string `json:"device"` // "/dev/loop3"; "" while it is being made
	Link   string `json:"link"`   // the stable name that leads to Device
	Size   int64  `json:"size"`   // bytes
	// Token is the right to be served: see package agent.
	Token string    `json:"token"`
	Since time.Time `json:"since"`
	Boot  string    `json:"boot"` // the kernel's boot id: a record of an earlier boot has no device
	// Leaving: it is being detached, and gets no new connections.
	Leaving bool `json:"leaving,omitempty"`

	// Of method fuse.
	Mount  string  `json:"mount,omitempty"`   // where the file is served
	FileFS uint64  `json:"file_fs,omitempty"` // the device number of that file system
	Helper Process `json:"helper,omitzero"`   // who serves it
}

// Process is a process that cannot be mistaken for a later one with its id.
type Process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks after boot
}

// ErrNotAttached: there is no record of that volume or device.
var ErrNotAttached = errors.New("not attached")

// Dir is the directory of the records below a state directory.
func Dir(state string) string { return filepath.Join(state, "attach") }

func recordPath(state, volume string) string { return filepath.Join(Dir(state), volume+".json") }
func helperPath(state, volume string) string { return filepath.Join(Dir(state), volume+".helper") }

// ServicePath is the file in which the agent keeps whether it can vouch for the data
// that a device was attached to.
func ServicePath(state, volume string) string { return filepath.Join(Dir(state), volume+".serving") }

// Service is what is in it. Its states and their meaning are package agent's.
type Service struct {
	Token string `json:"token"` // "": nothing is attached
	State string `json:"state"`
	// Generation, in state Resuming, is the one that the volume had when it was last
	// primary here.
	Generation string `json:"generation,omitempty"`
	Reason     string `json:"reason,omitempty"` // of Revoked
}

// States of a Service.
const (
	Serving  = "serving"
	Resuming = "resuming"
	Revoked  = "revoked"
)

// LogPath is the file that a volume's helper logs to.
func LogPath(state, volume string) string { return filepath.Join(Dir(state), volume+".log") }

// Load returns the record of a volume, or ErrNotAttached.
func Load(state, volume string) (Record, error) {
	var r Record
	err := ReadJSON(recordPath(state, volume), &r)
	if errors.Is(err, fs.ErrNotExist) {
		return r, fmt.Errorf("volume %s is %w", volume, ErrNotAttached)
	}
	return r, err
}

// loadAll returns every record that can be read, by volume, and the errors of others.
func loadAll(state string) ([]Record, error) {
	entries, err := os.ReadDir(Dir(state)) // sorted
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("attached volumes: %w", err)
	}
	var all []Record
	var errs []error
	for _, e := range entries {
		volume, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			continue
		}
		r, err := Load(state, volume)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all = append(all, r)
	}
	return all, errors.Join(errs...)
}

func (r *Record) save(state string) error { return WriteJSON(recordPath(state, r.Volume), r) }

func (r *Record) remove(state string) error {
	err := os.Remove(recordPath(state, r.Volume))
	if rest := os.Remove(helperPath(state, r.Volume)); !errors.Is(rest, fs.ErrNotExist) {
		err = errors.Join(err, rest)
	}
	return err
}

// Live reports whether the device can exist: it was attached since the host started,
// and whoever serves it is alive.
func (r *Record) Live() bool {
	switch {
	case r.Boot != BootID():
		return false
	case r.Method == MethodNBD:
		return r.Device != "" && nbdAttached(r.Device)
	}
	return r.Helper.alive()
}

func (p Process) alive() bool {
	start, err := startTime(p.PID)
	return err == nil && start == p.Start
}

// startTime returns when a process began. Source: proc(5), field 22 of stat; the name in
// field 2 may hold anything.
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("process %d: %w", pid, err)
	}
	_, rest, _ := strings.Cut(string(b[max(0, strings.LastIndexByte(string(b), ')')):]), " ")
	fields := strings.Fields(rest) // from field 3 on
	if len(fields) < 20 || fields[0] == "Z" {
		return 0, fmt.Errorf("process %d has ended", pid)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// ProcessOf identifies a process that is there now.
func ProcessOf(pid int) (Process, error) {
	start, err := startTime(pid)
	return Process{PID: pid, Start: start}, err
}

// BootID names this boot of the host.
func BootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}

// ReadJSON reads what WriteJSON wrote.
func ReadJSON(path string, into any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// WriteJSON replaces a file, durably and as a whole, making its directory (0700).
func WriteJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	temp := path + ".new"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(temp, path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
