package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/qrbd/qrbd/protocol/session"
)

// errMissing says that a program needed for the chosen columns is not installed.
var errMissing = errors.New("missing program")

// options is what the command line asks for.
type options struct {
	rounds     int           // interleaved rounds, at least 1; 5 and more for a figure to be quoted
	runtime    time.Duration // of one sample
	warmUp     time.Duration // of one sample of the round that is thrown away
	sizeBytes  int64         // of the volume
	budget     time.Duration // for the rounds; noisy samples are repeated as far as it allows
	foreignPct float64       // share of all CPUs that others may use during a sample before it is repeated
	columns    []columnKind
	items      []item
	footprint  bool
	pairTests  []string // of pairItems
	transports []string // of their pairs
	pairBytes  int64    // of the volume that a resync copies
	quick      bool
	strict     bool   // a requirement that is not met is an error
	dir        string // tmpfs for backing files
	qrbd       string // program under test
	out        string // file for the raw results
	compare    string // earlier results to compare with, or empty
	show       string // results to print instead of measuring, or empty
	perf       string // directory for CPU profiles of the servers, or empty
}

// parseOptions reads the command line. -quick sets defaults that the other options override.
func parseOptions(args []string, stderr io.Writer) (options, error) {
	o := options{rounds: 5, runtime: 800 * time.Millisecond, warmUp: 300 * time.Millisecond, sizeBytes: 1 << 30, budget: 5 * time.Minute}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.BoolVar(&o.quick, "quick", false, "under two minutes: short samples of a small volume, no footprint test unless named")
	rounds := fs.Int("rounds", 0, "interleaved rounds (default 5)")
	runtime := fs.Duration("runtime", 0, "length of one sample (default 800ms, quick 300ms)")
	sizeMiB := fs.Int64("size", 0, "size of the volume in MiB (default 1024, quick 256)")
	itemList := fs.String("item", "", "only these items, comma-separated, * at the end for all that begin so: "+strings.Join(itemNames(), ", "))
	columnList := fs.String("column", "", "only these columns, comma-separated: nbdkit, qemu, qrbd, qrbd-tcp")
	fs.Float64Var(&o.foreignPct, "foreign", 10, "repeat a sample during which other processes used more than this percentage of the CPUs")
	fs.BoolVar(&o.strict, "strict", false, "fail if a requirement is not met")
	fs.StringVar(&o.dir, "dir", "/dev/shm", "tmpfs for the backing files")
	fs.StringVar(&o.qrbd, "qrbd", "bin/qrbd", "the program under test")
	fs.StringVar(&o.out, "out", "", "file for the raw results (default bin/bench/DATE-TIME.json)")
	fs.StringVar(&o.compare, "compare", "", "compare with the results in this file")
	fs.StringVar(&o.show, "show", "", "print the results in this file, measure nothing")
	transports := fs.String("transport", "quic,tcp", "what the pairs of echo, scale, resync and slow talk over, comma-separated")
	resyncMiB := fs.Int64("resync-size", 4096, "size in MiB of the volume that a resync copies")
	fs.StringVar(&o.perf, "perf", "", "afterwards take a CPU profile of the servers per item, reports into this directory")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	o.transports, o.pairBytes = strings.Split(*transports, ","), *resyncMiB<<20
	for _, t := range o.transports {
		if _, err := session.ParseTransport(t); err != nil {
			return o, err
		}
	}
	if o.pairBytes < linkVolume {
		return o, fmt.Errorf("a resync of %d MiB: at least %d, or it ends before the clients beside it do", *resyncMiB, linkVolume>>20)
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if o.quick {
		o.runtime, o.warmUp, o.sizeBytes, o.budget = 300*time.Millisecond, 100*time.Millisecond, 256<<20, 100*time.Second
	}
	var columnErr, itemErr error
	o.columns, columnErr = chooseColumns(*columnList)
	o.items, o.footprint, itemErr = chooseItems(*itemList)
	if err := errors.Join(columnErr, itemErr, o.override(*rounds, *runtime, *sizeMiB)); err != nil {
		return o, err
	}
	if *itemList == "" && (o.quick || !o.has("qrbd")) {
		o.footprint = false
	}
	for _, test := range pairItems {
		if names(*itemList, test) && (*itemList != "" || test != slowItem && !o.quick && o.has("qrbd")) {
			o.pairTests = append(o.pairTests, test)
		}
	}
	if o.out == "" {
		o.out = filepath.Join("bin", "bench", time.Now().Format("20060102-150405")+".json")
	}
	qrbd, err := filepath.Abs(o.qrbd)
	if err != nil {
		return o, fmt.Errorf("path of %s: %w", o.qrbd, err)
	}
	o.qrbd = qrbd
	return o, nil
}

// override replaces defaults by what was given; 0 means not given.
func (o *options) override(rounds int, runtime time.Duration, sizeMiB int64) error {
	if rounds < 0 || runtime < 0 || sizeMiB < 0 || (sizeMiB > 0 && sizeMiB < 64) {
		return fmt.Errorf("rounds %d, runtime %v, size %d MiB: must be positive, the size at least 64", rounds, runtime, sizeMiB)
	}
	if rounds > 0 {
		o.rounds = rounds
	}
	if runtime > 0 {
		o.runtime = runtime
	}
	if sizeMiB > 0 {
		o.sizeBytes = sizeMiB << 20
	}
	return nil
}

// has tells whether a column was chosen.
func (o options) has(column string) bool {
	for _, k := range o.columns {
		if k.name == column {
			return true
		}
	}
	return false
}

// checkPrograms looks for every program that the chosen columns need and reports all that are missing at once, each with
// what to do about it.
func (o options) checkPrograms() error {
	var faults []error
	need := func(program, advice string) {
		if _, err := exec.LookPath(program); err != nil {
			faults = append(faults, fmt.Errorf("%w: %s: %s", errMissing, program, advice))
		}
	}
	need("fio", "apt install fio")
	if len(o.items) > 0 && (o.has("nbdkit") || o.has("qemu")) {
		need("nbdkit", "apt install nbdkit, or choose with -column")
	}
	if len(o.items) > 0 && o.has("qemu") {
		need("qemu-storage-daemon", "apt install qemu-system-common, or choose with -column")
	}
	if o.has("qrbd") || o.has(qrbdTCP) || o.footprint || len(o.pairTests) > 0 {
		need(o.qrbd, "run `make build`, or leave it out with -column nbdkit,qemu")
	}
	if o.perf != "" {
		need("perf", "apt install linux-perf, or leave out -perf")
	}
	if len(faults) == 0 {
		if engines, err := exec.Command("fio", "--enghelp").Output(); err != nil || !strings.Contains(string(engines), "nbd") {
			faults = append(faults, fmt.Errorf("%w: fio has no nbd engine (fio --enghelp): it needs libnbd", errMissing))
		}
	}
	if info, err := os.Stat(o.dir); err != nil || !info.IsDir() {
		faults = append(faults, fmt.Errorf("%s is no directory: name a tmpfs with -dir", o.dir))
	}
	return errors.Join(faults...)
}
