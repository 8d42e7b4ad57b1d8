package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// volumeName names the volume and with it the NBD export of every column that has names.
const volumeName = "crm"

// compareBytes is the step in which copies are compared.
const compareBytes = 1 << 20

// errCopiesDiffer says that a column's copies are not equal after the measurement.
var errCopiesDiffer = errors.New("the copies differ")

// site is where a column is built: its own directory on tmpfs and what all columns have in common.
type site struct {
	dir       string           // absolute, short: Unix socket paths in it stay under 108 bytes
	sizeBytes int64            // of the volume
	qrbd      string           // path of the program under test
	transport string           // of its pairs; "": its default
	compress  string           // the compression of its pairs; "": its default
	more      map[string]int64 // further volumes of its pairs, with their sizes
}

// path returns a name inside the site's directory.
func (s site) path(name string) string { return filepath.Join(s.dir, name) }

// sparseFile makes a backing file of the volume's size.
func (s site) sparseFile(name string) (string, error) {
	path := s.path(name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return "", fmt.Errorf("backing file: %w", err)
	}
	defer f.Close()
	if err := f.Truncate(s.sizeBytes); err != nil {
		return "", fmt.Errorf("backing file %s of %d bytes: %w", path, s.sizeBytes, err)
	}
	return path, nil
}

// unixURI is the NBD URI of an export on a Unix socket.
func unixURI(export, socket string) string {
	return "nbd+unix:///" + export + "?socket=" + socket
}

// column is a running subject of the measurement.
type column struct {
	name    string
	uri     string       // what fio connects to
	servers []*process   // in the order in which they are to be stopped
	check   func() error // whether it is still in the state to be measured; nil: nothing to ask
	copies  [2]string    // backing files that are equal once the servers have ended; empty without replication
}

// close ends the column's servers. It is safe on a column that was only half built.
func (c *column) close() {
	for _, p := range c.servers {
		p.stop(syscall.SIGTERM)
	}
}

// alive returns an error if a server has ended or the column is no longer in the state to be measured.
func (c *column) alive() error {
	for _, p := range c.servers {
		if err := p.alive(); err != nil {
			return err
		}
	}
	if c.check != nil {
		return c.check()
	}
	return nil
}

// verify compares the copies of a column that has been closed: one that did not replicate everything measured less work
// than it claims.
func (c *column) verify() error {
	if c.copies == [2]string{} {
		return nil
	}
	if err := equalFiles(c.copies[0], c.copies[1]); err != nil {
		return fmt.Errorf("column %s: %w", c.name, err)
	}
	return nil
}

// equalFiles returns an error that wraps errCopiesDiffer and names the first offset, rounded down to compareBytes, at which two files differ.
func equalFiles(a, b string) error {
	fa, err := os.Open(a)
	if err != nil {
		return fmt.Errorf("comparing copies: %w", err)
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return fmt.Errorf("comparing copies: %w", err)
	}
	defer fb.Close()
	bufA, bufB := make([]byte, compareBytes), make([]byte, compareBytes)
	for off := int64(0); ; off += compareBytes {
		na, errA := io.ReadFull(fa, bufA)
		nb, errB := io.ReadFull(fb, bufB)
		if !bytes.Equal(bufA[:na], bufB[:nb]) {
			return fmt.Errorf("%w: %s and %s, from offset %d on", errCopiesDiffer, a, b, off)
		}
		for _, err := range []error{errA, errB} {
			if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
				return fmt.Errorf("comparing copies: %w", err)
			}
		}
		if errA != nil || errB != nil {
			return nil // both ended: equal bytes were read from both
		}
	}
}

// columnKind says how to build a column. build returns what it started also with an error, so that it can be closed.
type columnKind struct {
	name  string
	build func(ctx context.Context, s site) (*column, error)
}

// columnKinds in the order of the table and of each round.
var columnKinds = []columnKind{
	{name: "nbdkit", build: buildNbdkit},
	{name: "qemu", build: buildQemu},
	{name: "qrbd", build: buildQrbd},
	{name: qrbdTCP, build: buildQrbdTCP},
}

// chooseColumns returns the kinds named in a comma-separated list, all if it is empty, in the table's order.
func chooseColumns(list string) ([]columnKind, error) {
	if list == "" {
		return columnKinds, nil
	}
	wanted := strings.Split(list, ",")
	for _, w := range wanted {
		if !slices.ContainsFunc(columnKinds, func(k columnKind) bool { return k.name == w }) {
			return nil, fmt.Errorf("no column %q: there are nbdkit, qemu, qrbd, qrbd-tcp", w)
		}
	}
	var chosen []columnKind
	for _, k := range columnKinds {
		if slices.Contains(wanted, k.name) {
			chosen = append(chosen, k)
		}
	}
	return chosen, nil
}

// buildNbdkit starts the floor: nbdkit's file plugin on a Unix socket.
func buildNbdkit(_ context.Context, s site) (*column, error) {
	c := &column{name: "nbdkit"}
	file, err := s.sparseFile("disk.img")
	if err != nil {
		return c, err
	}
	socket := s.path("nbd.sock")
	p, err := startProcess(s.dir, "nbdkit", "nbdkit", "--foreground", "--unix", socket, "--exportname", "", "file", file)
	if err != nil {
		return c, err
	}
	c.servers = append(c.servers, p)
	c.uri = unixURI("", socket)
	return c, p.waitListening("unix", socket)
}
