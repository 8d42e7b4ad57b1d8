package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// probeWrites is how many writes with a flush each go through the mirror to see that its flushes arrive at the remote side.
const probeWrites = 64

// errFlushLost says that the mirror answers flushes which it did not forward: its figures would be no measure.
var errFlushLost = errors.New("qemu's mirror does not forward flushes")

// buildQemu starts the peer column. Before that it builds the same mirror once with a log at the remote side, sends writes
// with a flush each through it, and refuses to go on unless the remote side saw them all and holds the same data.
func buildQemu(ctx context.Context, s site) (*column, error) {
	probe := site{dir: s.path("probe"), sizeBytes: 64 << 20}
	if err := os.Mkdir(probe.dir, 0o700); err != nil {
		return &column{}, fmt.Errorf("qemu's probe: %w", err)
	}
	if err := probeFlushes(ctx, probe); err != nil {
		return &column{}, err
	}
	if err := os.RemoveAll(probe.dir); err != nil {
		return &column{}, fmt.Errorf("qemu's probe: %w", err)
	}
	return startMirror(s, "")
}

// probeFlushes counts the flushes that reach the remote side of a mirror, and compares its two sides.
func probeFlushes(ctx context.Context, s site) error {
	logFile := s.path("requests")
	c, err := startMirror(s, logFile)
	defer c.close()
	if err != nil {
		return err
	}
	run, err := runFio(ctx, c.uri, "--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1",
		fmt.Sprintf("--size=%d", s.sizeBytes), fmt.Sprintf("--number_ios=%d", probeWrites))
	if err != nil {
		return fmt.Errorf("probing qemu's mirror: %w", err)
	}
	c.close() // the log is complete when its writer has ended
	requests, err := os.ReadFile(logFile)
	if err != nil {
		return fmt.Errorf("probing qemu's mirror: %w", err)
	}
	writes, flushes := strings.Count(string(requests), " Write id="), strings.Count(string(requests), " Flush id=")
	if int64(writes) < run.ops || int64(flushes) < run.flushes || flushes == 0 {
		return fmt.Errorf("%w: the client sent %d writes and %d flushes, the remote side saw %d and %d",
			errFlushLost, run.ops, run.flushes, writes, flushes)
	}
	return c.verify()
}

// startMirror starts nbdkit as the remote side (TLS required, client's certificate verified) and qemu-storage-daemon,
// which writes to a local file and to it and reads from the local file. A write or flush is acknowledged when both have
// done it (vote-threshold=2). requestLog, if not empty, makes the remote side log every request there.
func startMirror(s site, requestLog string) (*column, error) {
	c := &column{name: "qemu"}
	local, err := s.sparseFile("local.img")
	if err != nil {
		return c, err
	}
	remote, err := s.sparseFile("remote.img")
	if err != nil {
		return c, err
	}
	certs := s.path("tls")
	if err := os.Mkdir(certs, 0o700); err != nil {
		return c, fmt.Errorf("qemu's certificates: %w", err)
	}
	if err := writeCertificates(certs); err != nil {
		return c, err
	}
	port, err := freePort("tcp")
	if err != nil {
		return c, err
	}
	nbdkit, err := startProcess(s.dir, "remote", remoteArgs(port, certs, remote, requestLog)...)
	if err != nil {
		return c, err
	}
	c.servers = []*process{nbdkit}
	if err := nbdkit.waitListening("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err != nil {
		return c, err
	}
	socket := s.path("nbd.sock")
	qsd, err := startProcess(s.dir, "qemu-storage-daemon", mirrorArgs(port, certs, local, socket)...)
	if err != nil {
		return c, err
	}
	c.servers = []*process{qsd, nbdkit} // the client of the remote side goes first
	c.uri, c.copies = unixURI(volumeName, socket), [2]string{local, remote}
	return c, qsd.waitListening("unix", socket)
}

// remoteArgs is nbdkit's command line for the remote side. noextents: qemu would otherwise ask for block status.
func remoteArgs(port int, certs, file, requestLog string) []string {
	args := []string{"nbdkit", "--foreground", "--ipaddr", "127.0.0.1", "--port", fmt.Sprint(port),
		"--tls=require", "--tls-certificates=" + certs, "--tls-verify-peer"}
	if requestLog != "" {
		args = append(args, "--filter=log")
	}
	args = append(args, "--filter=noextents", "file", file)
	if requestLog != "" {
		args = append(args, "logfile="+requestLog)
	}
	return args
}

// mirrorArgs is qemu-storage-daemon's command line.
func mirrorArgs(port int, certs, file, socket string) []string {
	return []string{"qemu-storage-daemon",
		"--object", "tls-creds-x509,id=tls,endpoint=client,verify-peer=on,priority=NORMAL:-VERS-ALL:+VERS-TLS1.3,dir=" + filepath.Clean(certs),
		"--blockdev", "driver=file,node-name=local,filename=" + file,
		"--blockdev", fmt.Sprintf("driver=nbd,node-name=remote,server.type=inet,server.host=127.0.0.1,server.port=%d,"+
			"tls-creds=tls,tls-hostname=127.0.0.1", port),
		"--blockdev", "driver=quorum,node-name=mirror,children.0=local,children.1=remote,vote-threshold=2,read-pattern=fifo",
		"--nbd-server", "addr.type=unix,addr.path=" + socket,
		"--export", "type=nbd,id=export,node-name=mirror,writable=on,name=" + volumeName,
	}
}
