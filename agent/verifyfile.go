package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// verifyFile is the file of records, JSON. It holds nothing that data depends on:
// what differs is marked in the metadata. A file that is lost or damaged costs one
// verify.
type verifyFile struct {
	Version int             `json:"version"`
	Peers   []*verifyRecord `json:"peers"`
}

const verifyFileVersion = 1

// newVerifier reads what is known. The error says why the file was not taken; the
// verifier works without it.
func newVerifier(name string, size int64, path string) (*verifier, error) {
	v := &verifier{name: name, path: path, records: map[string]*verifyRecord{}}
	v.size.Store(size)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return v, nil
	}
	var f verifyFile
	if err == nil {
		err = json.Unmarshal(data, &f)
	}
	if err == nil && f.Version != verifyFileVersion {
		err = fmt.Errorf("version %d, want %d", f.Version, verifyFileVersion)
	}
	if err != nil {
		return v, fmt.Errorf("records of verifies %s: %w", path, err)
	}
	for _, r := range f.Peers {
		if r != nil && r.Off >= 0 && r.Len > 0 && r.Len <= size-r.Off && r.Next >= r.Off && r.Next <= r.Off+r.Len {
			v.records[r.Peer] = r
		}
	}
	return v, nil
}

// keep makes r the record of its peer, and saves all of them unless that was done
// less than notWithin ago. A file that cannot be written costs a verify after the
// next start; there is nobody to tell whom it would help.
func (v *verifier) keep(r *verifyRecord, notWithin time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if notWithin > 0 && time.Since(v.saved) < notWithin {
		return
	}
	v.records[r.Peer] = r
	v.saved = time.Now()
	if v.path == "" {
		return
	}
	f := verifyFile{Version: verifyFileVersion}
	for _, r := range v.records {
		f.Peers = append(f.Peers, r)
	}
	_ = f.write(v.path)
}

// write replaces the file as a whole.
func (f *verifyFile) write(path string) error {
	data, err := json.MarshalIndent(f, "", "\t")
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(append(data, '\n'))
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		os.Remove(tmp.Name())
	}
	return err
}
