package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func TestParseFio(t *testing.T) {
	tests := []struct {
		name string
		out  string
		want fioRun
		err  error
	}{
		{
			name: "write with flushes, after the engine's own line",
			out: `fio: connected to NBD server
{"jobs":[{"error":0,"read":{"total_ios":0},
 "write":{"total_ios":100,"iops":50.5,"bw_bytes":2000000,"lat_ns":{"percentile":{"50.000000":25000,"99.000000":70000}}},
 "sync":{"total_ios":99,"lat_ns":{"percentile":{"50.000000":9000,"99.000000":11000}}}}]}`,
			want: fioRun{ops: 100, opsPerSec: 50.5, mbPerSec: 2, p50us: 25, p99us: 70, flushes: 99, flushP50: 9, flushP99: 11},
		},
		{
			name: "reads",
			out:  `{"jobs":[{"read":{"total_ios":7,"iops":7,"bw_bytes":7e6,"lat_ns":{"percentile":{"50.000000":1000}}},"write":{"total_ios":0}}]}`,
			want: fioRun{ops: 7, opsPerSec: 7, mbPerSec: 7, p50us: 1},
		},
		{
			name: "mix is one direction",
			out:  `{"jobs":[{"mixed":{"total_ios":9,"iops":3,"bw_bytes":1e6,"lat_ns":{"percentile":{"50.000000":2000}}}}]}`,
			want: fioRun{ops: 9, opsPerSec: 3, mbPerSec: 1, p50us: 2},
		},
		{name: "connection refused", out: `fio: nbd_connect_uri: Connection refused`, err: errNoOutput},
		{name: "no work", out: `{"jobs":[{"read":{"total_ios":0},"write":{"total_ios":0}}]}`, err: errNoOutput},
		{name: "two jobs", out: `{"jobs":[{},{}]}`, err: errNoOutput},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := parseFio([]byte(test.out))
			if !errors.Is(err, test.err) {
				t.Fatalf("error %v, want %v", err, test.err)
			}
			if got != test.want {
				t.Errorf("got  %+v\nwant %+v", got, test.want)
			}
		})
	}
	if _, err := parseFio([]byte(`{"jobs":[{"error":5,"write":{"total_ios":3}}]}`)); err == nil {
		t.Error("a job that failed with an I/O error is taken for a measurement")
	}
}

func TestWorkArgs(t *testing.T) {
	flush, _ := itemByName("flush-4k-d1")
	mix, _ := itemByName("mix-8k-d16")
	write, _ := itemByName("write-4k-d32")
	tests := []struct {
		item item
		want []string
	}{
		{flush, []string{"--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"}},
		{mix, []string{"--rw=randrw", "--bs=8k", "--iodepth=16", "--rwmixread=70", "--unified_rw_reporting=mixed"}},
		{write, []string{"--rw=randwrite", "--bs=4k", "--iodepth=32"}},
	}
	for _, test := range tests {
		if got := workArgs(test.item); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", test.item.name, got, test.want)
		}
	}
	if got, want := forDuration(300*time.Millisecond, 1<<20), []string{"--time_based", "--runtime=300ms", "--size=1048576"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestParseCPUUse(t *testing.T) {
	got, err := parseCPUUse([]byte("cpu  100 20 300 9999 50 6 7 8 0 0\ncpu0 1 2 3\n"))
	if want := (cpuUse{busy: 4330 * time.Millisecond, stolen: 80 * time.Millisecond}); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if _, err := parseCPUUse([]byte("intr 1 2 3")); err == nil {
		t.Error("another line is taken for the CPU line")
	}
}

func TestCertificatesAreWhatNbdkitAndQemuLookFor(t *testing.T) {
	dir := t.TempDir()
	if err := writeCertificates(dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ca-cert.pem", "server-cert.pem", "server-key.pem", "client-cert.pem", "client-key.pem"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
		} else if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
	}
}
