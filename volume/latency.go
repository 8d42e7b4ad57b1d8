package volume

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// latencyFirst is the upper bound of the first bucket of a Latency; each following
// one is twice as wide: 25 us, 50 us, ... 13.1 s, and one for all above.
const (
	latencyFirst   = 25 * time.Microsecond
	latencyBuckets = 20
)

// Latency counts durations in fixed buckets. Counting neither allocates nor locks.
// The zero Latency is empty. Safe for concurrent use.
type Latency struct {
	count [latencyBuckets + 1]atomic.Uint64
	sum   atomic.Int64 // ns
}

// Add counts a duration; one below zero, of a clock that was set, counts as zero.
func (l *Latency) Add(d time.Duration) {
	d = max(d, 0)
	l.count[bucketOf(d)].Add(1)
	l.sum.Add(int64(d))
}

// bucketOf returns the first bucket whose bound is not below d: bounds are
// inclusive.
func bucketOf(d time.Duration) int {
	if d <= latencyFirst {
		return 0
	}
	return min(bits.Len64(uint64((d-1)/latencyFirst)), latencyBuckets)
}

// LatencyBounds returns the upper bounds of the buckets, in seconds; the last
// bucket, above them all, has none.
func LatencyBounds() []float64 {
	out := make([]float64, latencyBuckets)
	for i := range out {
		out[i] = (latencyFirst << i).Seconds()
	}
	return out
}

// Histogram is a Latency at one moment.
type Histogram struct {
	Count   uint64  `json:"count"`
	Seconds float64 `json:"seconds"` // of all together
	// Buckets counts by LatencyBounds, each bucket for itself; the last is above
	// them all. Those after the last that is not zero are left out.
	Buckets []uint64 `json:"buckets,omitempty"`
}

// Snapshot returns what was counted so far. Count is the sum of Buckets.
func (l *Latency) Snapshot() Histogram {
	h := Histogram{Seconds: time.Duration(l.sum.Load()).Seconds()}
	all := make([]uint64, len(l.count))
	last := 0
	for i := range l.count {
		all[i] = l.count[i].Load()
		h.Count += all[i]
		if all[i] > 0 {
			last = i + 1
		}
	}
	h.Buckets = all[:last]
	return h
}

// Since returns what was counted between an earlier snapshot of the same Latency
// and this one. One that has begun anew meanwhile counts in full.
func (h Histogram) Since(old Histogram) Histogram {
	if old.Count > h.Count {
		return h
	}
	d := Histogram{Count: h.Count - old.Count, Seconds: h.Seconds - old.Seconds, Buckets: make([]uint64, len(h.Buckets))}
	copy(d.Buckets, h.Buckets)
	for i := range min(len(old.Buckets), len(d.Buckets)) {
		d.Buckets[i] -= min(old.Buckets[i], d.Buckets[i])
	}
	return d
}

// Mean returns the mean duration, zero when nothing was counted.
func (h Histogram) Mean() time.Duration {
	if h.Count == 0 {
		return 0
	}
	return time.Duration(h.Seconds / float64(h.Count) * float64(time.Second))
}

// Quantile returns an upper bound of the q-quantile (0 < q <= 1): the bound of the
// bucket in which it lies; zero when nothing was counted.
func (h Histogram) Quantile(q float64) time.Duration {
	if h.Count == 0 {
		return 0
	}
	need := max(uint64(q*float64(h.Count)), 1)
	seen := uint64(0)
	for i, n := range h.Buckets {
		if seen += n; seen >= need {
			return latencyFirst << min(i, latencyBuckets)
		}
	}
	return latencyFirst << latencyBuckets
}
