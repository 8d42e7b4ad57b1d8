package main

import "fmt"

// What is wanted over distance.
const (
	depth1Max   = 1.1 // times (the round trip plus what a write takes without one)
	cubicFactor = 5.0 // with loss, times DRBD on cubic
)

// verdicts judges each column of protocol C, condition by condition, by what was measured of DRBD under the same.
func (r *result) verdicts() []string {
	var list []string
	say := func(met bool, format string, args ...any) {
		answer := "no  "
		if met {
			answer = "yes "
		}
		list = append(list, answer+fmt.Sprintf(format, args...))
	}
	for _, column := range []string{"qrbd-quic", "qrbd-tcp", "qrbd-bbr"} {
		lan := r.median(condition{}, column, depth1)
		for _, at := range r.conditions() {
			one := r.median(at, column, depth1)
			if at.RTTms == 0 || one == 0 {
				continue
			}
			if at.LossPct == 0 {
				if lan > 0 {
					x := one / (at.RTTms + lan)
					say(x <= depth1Max, "%v: %s at depth 1: %.2f of the round trip plus %.2f ms (at most %.1f)", at, column, x, lan, depth1Max)
				}
				r.compare(say, at, column, "drbd", 1, "at depth 32", depth32)
				r.compare(say, at, column, "drbd", 1, "in bulk", bulk)
				continue
			}
			r.compare(say, at, column, "drbd", cubicFactor, "in bulk", bulk)
			r.compare(say, at, column, "drbd-bbr", 1, "in bulk", bulk)
		}
	}
	return list
}

// compare says whether a column does at least factor times what another does.
func (r *result) compare(say func(bool, string, ...any), at condition, column, other string, factor float64, what string, of func(cell) float64) {
	a, b := r.median(at, column, of), r.median(at, other, of)
	if a > 0 && b > 0 {
		say(a >= factor*b, "%v: %s %s: %.2f of %s (at least %g)", at, column, what, a/b, other, factor)
	}
}
