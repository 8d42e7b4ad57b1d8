package main

import "fmt"

// Limits of the requirements.
const (
	mirrorLatencyMax = 1.0       // qrbd's time / the mirror's at depth 1
	floorReadsMin    = 0.8       // qrbd's reads / nbdkit's
	footprintRSSMax  = 200 << 20 // bytes
	footprintStart   = 2.0       // seconds
)

// verdict is one requirement and what was measured about it.
type verdict struct {
	what     string
	met      bool
	doubtful bool // the limit lies within the noise, or the machine was not quiet
	measured string
}

// String is a line for people: yes or no first.
func (v verdict) String() string {
	answer := "no "
	if v.met {
		answer = "yes"
	}
	doubt := ""
	if v.doubtful {
		doubt = " (in doubt: within the noise, or the machine was busy)"
	}
	return fmt.Sprintf("%s  %s: %s%s", answer, v.what, v.measured, doubt)
}

// requirements judges what the result holds; a requirement whose columns or items were not measured is left out.
func requirements(r *result) []verdict {
	var verdicts []verdict
	for _, column := range []string{"qrbd", qrbdTCP} {
		for _, name := range []string{"write-4k-d1", "flush-4k-d1"} {
			verdicts = append(verdicts, noSlowerThanMirror(r, column, name)...)
		}
		for _, name := range []string{"read-4k-d1", "read-4k-d32", "read-1m-d8"} {
			verdicts = append(verdicts, readsLikeFloor(r, column, name)...)
		}
	}
	if r.Footprint != nil {
		verdicts = append(verdicts, r.Footprint.verdicts()...)
	}
	for _, f := range r.Resync {
		verdicts = append(verdicts, f.verdicts()...)
	}
	return verdicts
}

// noSlowerThanMirror judges a depth-1 item by time per request.
func noSlowerThanMirror(r *result, column, name string) []verdict {
	it, _ := itemByName(name)
	f := figureOf(r.ratios(name, column, "qemu", it.metric.of))
	if f.n == 0 {
		return nil
	}
	qrbd, qemu := figureOf(r.values(name, column, it.metric.of)), figureOf(r.values(name, "qemu", it.metric.of))
	_, quiet := r.counted(name)
	return []verdict{{
		what: it.title + " no slower than the mirror", met: f.median <= mirrorLatencyMax, doubtful: f.holds(mirrorLatencyMax) || !quiet,
		measured: fmt.Sprintf("%s %s us, qemu %s us, ratio %s (at most %.2f)", column, qrbd.plain(), qemu.plain(), f.cell(), mirrorLatencyMax),
	}}
}

// readsLikeFloor judges a read item by requests per second, also at depth 1.
func readsLikeFloor(r *result, column, name string) []verdict {
	it, _ := itemByName(name)
	f := figureOf(r.ratios(name, column, "nbdkit", rate.of))
	if f.n == 0 {
		return nil
	}
	qrbd, nbdkit := figureOf(r.values(name, column, rate.of)), figureOf(r.values(name, "nbdkit", rate.of))
	_, quiet := r.counted(name)
	return []verdict{{
		what: fmt.Sprintf("%s at least %.1f of nbdkit's", it.title, floorReadsMin), met: f.median >= floorReadsMin, doubtful: f.holds(floorReadsMin) || !quiet,
		measured: fmt.Sprintf("%s %s /s, nbdkit %s /s, ratio %s", column, qrbd.plain(), nbdkit.plain(), f.cell()),
	}}
}

// holds tells whether a limit lies within the figure's noise.
func (f figure) holds(limit float64) bool {
	return limit >= f.median*(1-f.noise) && limit <= f.median*(1+f.noise)
}
