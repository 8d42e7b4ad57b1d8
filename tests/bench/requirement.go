package main

import "fmt"

// Limits of the requirements that are none of one item.
const (
	footprintRSSMax = 200 << 20 // bytes
	footprintStart  = 2.0       // seconds
	tailMax         = 4.0       // p99 / median of a write, depth 1
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

// target is what a column's figure has to be, as a multiple of another column's.
type target struct {
	item    string
	what    string // the quantity, where it is not the item's own
	of      func(sample) float64
	against string
	atMost  bool // otherwise at least
	limits  map[string]float64
}

// targets in the order in which they are judged. Reads are judged by requests per second, also at depth 1.
var targets = []target{
	{item: "write-4k-d1", of: latency.of, against: "qemu", atMost: true, limits: limits(0.75, 0.55)},
	{item: "flush-4k-d1", of: cycle.of, against: "qemu", atMost: true, limits: limits(0.75, 0.55)},
	{item: "write-4k-d32", of: rate.of, against: "qemu", limits: limits(1.6, 2.5)},
	{item: "write-4k-d32", what: "server CPU", of: serverCPU, against: "qemu", atMost: true, limits: limits(0.75, 0.45)},
	{item: "write-64k-d16", of: bandwidth.of, against: "qemu", limits: limits(0.6, 1.3)},
	{item: "write-1m-d8", of: bandwidth.of, against: "qemu", limits: limits(0.6, 1.3)},
	{item: "mix-8k-d16", of: rate.of, against: "qemu", limits: limits(2, 3)},
	{item: "read-4k-d1", of: rate.of, against: "nbdkit", limits: limits(0.9, 0.9)},
	{item: "read-4k-d32", of: rate.of, against: "nbdkit", limits: limits(0.9, 0.9)},
	{item: "read-64k-d16", of: bandwidth.of, against: "nbdkit", limits: limits(0.9, 0.9)},
	{item: "read-1m-d8", of: bandwidth.of, against: "nbdkit", limits: limits(0.9, 0.9)},
}

// limits over QUIC and over TCP.
func limits(quic, tcp float64) map[string]float64 {
	return map[string]float64{"qrbd": quic, qrbdTCP: tcp}
}

// requirements judges what the result holds; a requirement whose columns or items were not measured is left out.
func requirements(r *result) []verdict {
	var verdicts []verdict
	for _, column := range []string{"qrbd", qrbdTCP} {
		for _, t := range targets {
			verdicts = append(verdicts, t.judge(r, column)...)
		}
		verdicts = append(verdicts, tailOf(r, column)...)
	}
	for _, f := range r.Echo {
		if f.Transport == "quic" {
			verdicts = append(verdicts, hopAndEcho(r, f)...)
		}
	}
	for _, f := range r.Scale {
		verdicts = append(verdicts, f.verdicts()...)
	}
	if r.Footprint != nil {
		verdicts = append(verdicts, r.Footprint.verdicts()...)
	}
	for _, f := range r.Resync {
		verdicts = append(verdicts, f.verdicts()...)
	}
	return append(verdicts, verdictsOfSlow(r.Slow)...)
}

// judge judges one column; nothing if it was not measured.
func (t target) judge(r *result, column string) []verdict {
	it, _ := itemByName(t.item)
	f := figureOf(r.ratios(t.item, column, t.against, t.of))
	if f.n == 0 {
		return nil
	}
	limit, bound, what := t.limits[column], "at least", it.title
	met := f.median >= limit
	if t.atMost {
		bound, met = "at most", f.median <= limit
	}
	if t.what != "" {
		what += ", " + t.what
	}
	own, other := figureOf(r.values(t.item, column, t.of)), figureOf(r.values(t.item, t.against, t.of))
	_, quiet := r.counted(t.item)
	return []verdict{{
		what: what + ", " + column, met: met, doubtful: f.holds(limit) || !quiet,
		measured: fmt.Sprintf("%s, %s %s, ratio %s (%s %.2f)", own.plain(), t.against, other.plain(), f.cell(), bound, limit),
	}}
}

// tailOf judges how far the slowest hundredth of the writes is from the middle one.
func tailOf(r *result, column string) []verdict {
	const item = "write-4k-d1"
	f := figureOf(r.values(item, column, func(s sample) float64 { return s.P99us / s.P50us }))
	if f.n == 0 {
		return nil
	}
	_, quiet := r.counted(item)
	return []verdict{{
		what: "p99 / median of a write, depth 1, " + column, met: f.median < tailMax, doubtful: f.holds(tailMax) || !quiet,
		measured: fmt.Sprintf("ratio %s (under %.0f)", f.cell(), tailMax),
	}}
}

// hopAndEcho compares a write over QUIC with its two unavoidable parts, nbdkit's hop and the bare echo.
func hopAndEcho(r *result, f *echoFigures) []verdict {
	own, hop, echo := figureOf(r.values("write-4k-d1", "qrbd", latency.of)), figureOf(r.values("write-4k-d1", "nbdkit", latency.of)), figureOf(f.P50us)
	if own.n == 0 || hop.n == 0 || echo.n == 0 {
		return nil
	}
	ratio := own.median / (hop.median + echo.median)
	return []verdict{{
		what: "4 KiB write, depth 1, against nbdkit's hop and a bare QUIC echo", met: ratio <= echoSlack,
		doubtful: figure{median: ratio, noise: own.noise + echo.noise}.holds(echoSlack),
		measured: fmt.Sprintf("%s us, %s + %s us, ratio %.2f (at most %.2f)", own.plain(), hop.plain(), echo.cell(), ratio, echoSlack),
	}}
}

// holds tells whether a limit lies within the figure's noise.
func (f figure) holds(limit float64) bool {
	return limit >= f.median*(1-f.noise) && limit <= f.median*(1+f.noise)
}
