package main

import (
	"bytes"
	"errors"
	"flag"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the expected output anew")

// example is a result of five rounds with figures that are easy to check by hand.
func example(qrbdScale float64) *result {
	r := &result{
		Version: resultVersion, When: time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC), Rounds: 5, QuietPct: 10, Runtime: "2s", SizeBytes: 1 << 30,
		Machine: machineInfo{CPU: "Example CPU", Cores: 2, Kernel: "6.1.0", MemGiB: 8},
	}
	for round, drift := range []float64{1, 1.05, 1.1, 1.15, 1.2} {
		for column, us := range map[string]float64{"nbdkit": 30, "qemu": 150, "qrbd": 100 * qrbdScale} {
			us *= drift
			s := sample{Column: column, Round: round + 1, Attempts: 1, Foreign: 1}
			for _, it := range items {
				s.Item = it.name
				s.OpsPerSec, s.MBPerSec = 1e6/us*float64(it.depth), 1e6/us
				s.P50us, s.P99us, s.CPUus, s.FlushP99 = us, 3*us, us/2, 0
				if it.flush {
					s.OpsPerSec, s.FlushP50, s.FlushP99 = 5e5/us, us, 2*us
				}
				r.Samples = append(r.Samples, s)
			}
		}
	}
	return r
}

func TestReport(t *testing.T) {
	r := example(1)
	r.Footprint = &footprint{
		PeakRSS: map[string]int64{"alpha": 120 << 20, "beta": 210 << 20}, IdleRSS: map[string]int64{"alpha": 60 << 20, "beta": 61 << 20},
		FirstSync: 1.5, Start: 0.4, RestartClean: 0.5, RestartCrash: 0.6, WritesPerSec: 12345, MBPerSec: 300,
	}
	golden(t, "report.txt", func(out *bytes.Buffer) error { return writeReport(out, r) })
}

func TestReportWithoutQrbd(t *testing.T) {
	r := example(1)
	r.Samples = only(r.Samples, func(s sample) bool { return s.Column != "qrbd" && !strings.HasPrefix(s.Item, "read") })
	golden(t, "fixed-points.txt", func(out *bytes.Buffer) error { return writeReport(out, r) })
}

func TestComparison(t *testing.T) {
	before, after := example(1), example(0.5)
	after.Samples = only(after.Samples, func(s sample) bool { return s.Item == "write-4k-d1" || s.Item == "mix-8k-d16" })
	before.Scale, after.Scale = []*scaleFigures{{One: []float64{100, 101, 102}}}, []*scaleFigures{{One: []float64{90, 91, 92}}}
	before.Resync, after.Resync = []*resyncFigures{{VolumeBytes: 1 << 30, IdleMBs: 700}}, []*resyncFigures{{VolumeBytes: 1 << 30, IdleMBs: 770}}
	golden(t, "comparison.txt", func(out *bytes.Buffer) error { return writeComparison(out, before, after) })
}

// only returns the samples that keep says to keep.
func only(samples []sample, keep func(sample) bool) []sample {
	var kept []sample
	for _, s := range samples {
		if keep(s) {
			kept = append(kept, s)
		}
	}
	return kept
}

// golden compares what write prints with testdata/name.
func golden(t *testing.T, name string, write func(*bytes.Buffer) error) {
	t.Helper()
	var out bytes.Buffer
	if err := write(&out); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, out.Bytes(), want)
	}
}

// A ratio is taken within a round: a drift that meets all columns alike leaves it without noise.
func TestRatiosAreTakenWithinARound(t *testing.T) {
	r := example(1)
	ratio := figureOf(r.ratios("write-4k-d1", "qrbd", "qemu", latency.of))
	if ratio.noise > 1e-9 || ratio.n != 5 {
		t.Errorf("ratio %+v, want no noise", ratio)
	}
	r.Samples = only(r.Samples, func(s sample) bool { return s.Column != "qemu" || s.Round != 2 })
	if ratio = figureOf(r.ratios("write-4k-d1", "qrbd", "qemu", latency.of)); ratio.n != 4 || ratio.noise > 1e-9 {
		t.Errorf("ratio %+v with a sample missing in one of five rounds, want 4 without noise", ratio)
	}
}

func TestRoundsThatWereNotQuietAreLeftOut(t *testing.T) {
	disturb := func(r *result, rounds ...int) {
		for i, s := range r.Samples {
			if s.Item == "write-4k-d1" && s.Column == "qemu" && slices.Contains(rounds, s.Round) {
				r.Samples[i].Foreign, r.Samples[i].P50us = 9, 1
				r.Samples[i].Stolen = 2
			}
		}
	}
	tests := []struct {
		disturbed []int
		counted   int
		quiet     bool
		median    float64 // of qemu's 150 us, times the rounds' drift 1, 1.05, 1.1, 1.15, 1.2
	}{
		{nil, 5, true, 165},
		{[]int{1, 5}, 3, true, 165},
		{[]int{1, 2}, 3, true, 172.5},
		{[]int{1, 2, 3}, 5, false, 1},
	}
	for _, test := range tests {
		r := example(1)
		disturb(r, test.disturbed...)
		rounds, quiet := r.counted("write-4k-d1")
		median := figureOf(r.values("write-4k-d1", "qemu", latency.of)).median
		if len(rounds) != test.counted || quiet != test.quiet || math.Abs(median-test.median) > 1e-9 {
			t.Errorf("rounds %v disturbed: %d count, quiet %v, median %v; want %d, %v, %v",
				test.disturbed, len(rounds), quiet, median, test.counted, test.quiet, test.median)
		}
		if n := len(r.values("write-4k-d1", "qrbd", latency.of)); n != test.counted {
			t.Errorf("rounds %v disturbed: %d values of the other column, want %d", test.disturbed, n, test.counted)
		}
	}
	r := example(1)
	r.Samples = only(r.Samples, func(s sample) bool { return s.Round == 1 })
	if _, quiet := r.counted("write-4k-d1"); !quiet {
		t.Error("a single quiet round is called busy")
	}
}

func TestRequirements(t *testing.T) {
	answers := func(r *result) string {
		var all strings.Builder
		for _, v := range requirements(r) {
			all.WriteString(v.String()[:1])
		}
		return all.String()
	}
	tests := []struct {
		name  string
		scale float64 // of qrbd's 100 us; the mirror has 150, nbdkit 30
		want  string
	}{
		// write, flush, d32, CPU, 64 KiB, 1 MiB, mix; four reads; tail
		{"ahead of the mirror by the half, reads slow", 1, "yynyyyn" + "nnnn" + "y"},
		{"at the limit of depth 1", 0.75 * 1.5, "yynyyyn" + "nnnn" + "y"},
		{"above it", 0.76 * 1.5, "nnnnyyn" + "nnnn" + "y"},
		{"bulk at its limit", 1.5 / 0.601, "nnnnyyn" + "nnnn" + "y"},
		{"bulk below it", 1.5 / 0.599, "nnnnnnn" + "nnnn" + "y"},
		{"depth 32 above its limit", 1.5 / 1.61, "yyyyyyn" + "nnnn" + "y"},
		{"the mix, too", 1.5 / 2.01, "yyyyyyy" + "nnnn" + "y"},
		{"reads a little above nine tenths of the floor", 0.3 / 0.91, "yyyyyyy" + "yyyy" + "y"},
		{"reads a little below that", 0.3 / 0.89, "yyyyyyy" + "nnnn" + "y"},
	}
	for _, test := range tests {
		if got := answers(example(test.scale)); got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
	r := example(1)
	for i := range r.Samples {
		r.Samples[i].P99us = 4 * r.Samples[i].P50us
	}
	if list := tailOf(r, "qrbd"); len(list) != 1 || list[0].met {
		t.Errorf("p99 of four medians: %v", list)
	}
	for us, want := range map[float64]bool{52: true, 50: false} { // qrbd's median is 110 us, nbdkit's 33
		if list := hopAndEcho(r, &echoFigures{P50us: []float64{us}}); len(list) != 1 || list[0].met != want {
			t.Errorf("an echo of %v us: %v, want %v", us, list, want)
		}
	}
	good, bad := scaleFigures{One: []float64{100}, Connections: []float64{100}, Volumes: []float64{100}, Narrow: []float64{110}, Wide: []float64{100}},
		scaleFigures{One: []float64{100}, Connections: []float64{99}, Volumes: []float64{99}, Narrow: []float64{111}, Wide: []float64{100}}
	for i := range good.verdicts() {
		if !good.verdicts()[i].met || bad.verdicts()[i].met {
			t.Errorf("%v and %v: want yes and no", good.verdicts()[i], bad.verdicts()[i])
		}
	}
	copied := resyncFigures{BareMBs: 100, IdleMBs: 90, DigestMBs: 450}
	if v := copied.verdicts(); len(v) != 2 || !v[0].met || !v[1].met {
		t.Errorf("at the limits: %v", v)
	}
	copied = resyncFigures{BareMBs: 100, IdleMBs: 89, DigestMBs: 444}
	if v := copied.verdicts(); v[0].met || v[1].met {
		t.Errorf("below the limits: %v", v)
	}
	f := footprint{PeakRSS: map[string]int64{"alpha": 1, "beta": footprintRSSMax}, RestartCrash: 2}
	for _, v := range f.verdicts() {
		if v.met {
			t.Errorf("met at the limit: %v", v)
		}
	}
}

func TestResultFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "result.json")
	r := example(1)
	if err := r.save(path); err != nil {
		t.Fatal(err)
	}
	got, err := loadResult(path)
	if err != nil || !reflect.DeepEqual(got, r) {
		t.Errorf("read back %+v, %v", got, err)
	}
	if err := os.WriteFile(path, []byte(`{"version":99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadResult(path); err == nil || !strings.Contains(err.Error(), "99") {
		t.Errorf("a newer file: %v", err)
	}
}

func TestNumber(t *testing.T) {
	for x, want := range map[float64]string{0: "0", 0.734: "0.73", 27.84: "27.8", 137: "137", 1234: "1,234", 1234567.8: "1,234,568"} {
		if got := number(x); got != want {
			t.Errorf("%v: %s, want %s", x, got, want)
		}
	}
}

func TestOptions(t *testing.T) {
	tests := []struct {
		args  string
		check func(o options) bool
		fails string
	}{
		{args: "", check: func(o options) bool {
			return o.rounds >= 5 && o.footprint && len(o.items) == len(items) && o.has("qrbd")
		}},
		{args: "-quick", check: func(o options) bool { return !o.footprint && o.runtime < time.Second && o.rounds >= 5 }},
		{args: "-quick -runtime 1s", check: func(o options) bool { return o.runtime == time.Second }},
		{args: "-item footprint", check: func(o options) bool { return o.footprint && len(o.items) == 0 }},
		{args: "-item read*,write-4k-d1", check: func(o options) bool { return len(o.items) == 5 && !o.footprint && len(o.pairTests) == 0 }},
		{args: "-column qemu,nbdkit", check: func(o options) bool {
			return len(o.columns) == 2 && o.columns[0].name == "nbdkit" && !o.footprint
		}},
		{args: "-item echo,resync -transport tcp", check: func(o options) bool {
			return len(o.items) == 0 && slices.Equal(o.pairTests, []string{echoItem, resyncItem}) && slices.Equal(o.transports, []string{"tcp"})
		}},
		{args: "-item slow", check: func(o options) bool { return slices.Equal(o.pairTests, []string{slowItem}) }},
		{args: "-transport sctp", fails: "sctp"},
		{args: "-resync-size 511", fails: "512"},
		{args: "-item nonsense", fails: "nonsense"},
		{args: "-column drbd", fails: "drbd"},
		{args: "-size 1", fails: "64"},
		{args: "stray", fails: "stray"},
	}
	for _, test := range tests {
		var errOut bytes.Buffer
		o, err := parseOptions(strings.Fields(test.args), &errOut)
		switch {
		case test.fails != "":
			if err == nil || !strings.Contains(err.Error(), test.fails) {
				t.Errorf("%q: error %v, want one that names %s", test.args, err, test.fails)
			}
		case err != nil:
			t.Errorf("%q: %v", test.args, err)
		case !test.check(o):
			t.Errorf("%q: %+v", test.args, o)
		}
	}
}

func TestMissingProgramIsNamed(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	o, err := parseOptions([]string{"-dir", t.TempDir(), "-qrbd", "nowhere/qrbd"}, &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	err = o.checkPrograms()
	if !errors.Is(err, errMissing) {
		t.Fatalf("error %v", err)
	}
	for _, word := range []string{"fio", "nbdkit", "qemu-storage-daemon", "nowhere/qrbd", "make build"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q does not name %s", err, word)
		}
	}
}

func TestReplicating(t *testing.T) {
	good := func() volumeStatus {
		v := volumeStatus{Name: volumeName, Role: "primary", Disk: "up-to-date"}
		v.Peers = append(v.Peers, peerState{Connection: "connected", Replication: "established", Disk: "up-to-date", Protocol: "C"})
		return v
	}
	if err := good().replicating(); err != nil {
		t.Fatal(err)
	}
	spoil := map[string]func(*volumeStatus){
		"secondary":    func(v *volumeStatus) { v.Role = "secondary" },
		"inconsistent": func(v *volumeStatus) { v.Disk = "inconsistent" },
		"no peer":      func(v *volumeStatus) { v.Peers = nil },
		"connecting":   func(v *volumeStatus) { v.Peers[0].Connection = "connecting" },
		"sync source":  func(v *volumeStatus) { v.Peers[0].Replication = "sync-source" },
		"peer behind":  func(v *volumeStatus) { v.Peers[0].Disk = "inconsistent" },
		"protocol A":   func(v *volumeStatus) { v.Peers[0].Protocol = "A" },
		"out of sync":  func(v *volumeStatus) { v.Peers[0].OutOfSync = 4096 },
	}
	for name, change := range spoil {
		v := good()
		change(&v)
		if err := v.replicating(); !errors.Is(err, errNotReplicating) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
