package main

import (
	"fmt"
	"slices"
	"strings"
)

// metric is the figure by which an item is judged.
type metric int

const (
	latency   metric = iota // median time of a request, us; less is better
	cycle                   // mean time of a write and its flush together, us; less is better
	rate                    // requests per second; more is better
	bandwidth               // MB/s (10^6 bytes); more is better
)

// String returns the unit that the metric is printed in.
func (m metric) String() string {
	switch m {
	case latency, cycle:
		return "us"
	case rate:
		return "/s"
	case bandwidth:
		return "MB/s"
	}
	panic(fmt.Sprintf("bench: metric %d", int(m)))
}

// of picks the metric's figure from a sample.
func (m metric) of(s sample) float64 {
	switch m {
	case latency:
		return s.P50us
	case cycle:
		return 1e6 / s.OpsPerSec
	case rate:
		return s.OpsPerSec
	case bandwidth:
		return s.MBPerSec
	}
	panic(fmt.Sprintf("bench: metric %d", int(m)))
}

// item is one kind of work, the same for every column.
type item struct {
	name   string
	title  string
	metric metric
	rw     string // fio's rw
	bs     string // fio's bs
	depth  int    // requests in flight
	flush  bool   // a flush after every write
}

// items in the order of the table. A mix is 70 % reads, 30 % writes, counted together.
var items = []item{
	{name: "write-4k-d1", title: "4 KiB write, depth 1", metric: latency, rw: "randwrite", bs: "4k", depth: 1},
	{name: "flush-4k-d1", title: "4 KiB write + flush, depth 1", metric: cycle, rw: "randwrite", bs: "4k", depth: 1, flush: true},
	{name: "write-4k-d32", title: "4 KiB write, depth 32", metric: rate, rw: "randwrite", bs: "4k", depth: 32},
	{name: "write-64k-d16", title: "64 KiB write, depth 16", metric: bandwidth, rw: "randwrite", bs: "64k", depth: 16},
	{name: "write-1m-d8", title: "1 MiB sequential write, depth 8", metric: bandwidth, rw: "write", bs: "1m", depth: 8},
	{name: "mix-8k-d16", title: "70/30 mix 8 KiB, depth 16", metric: rate, rw: "randrw", bs: "8k", depth: 16},
	{name: "read-4k-d1", title: "4 KiB read, depth 1", metric: latency, rw: "randread", bs: "4k", depth: 1},
	{name: "read-4k-d32", title: "4 KiB read, depth 32", metric: rate, rw: "randread", bs: "4k", depth: 32},
	{name: "read-64k-d16", title: "64 KiB read, depth 16", metric: bandwidth, rw: "randread", bs: "64k", depth: 16},
	{name: "read-1m-d8", title: "1 MiB sequential read, depth 8", metric: bandwidth, rw: "read", bs: "1m", depth: 8},
}

// footprintItem is no fio work of the table but a test of its own: memory and start of agents with a 1 TiB volume.
const footprintItem = "footprint"

// Others: the pace of a resync and what it does to clients; connections, volumes and a wide volume; the transports alone;
// a slow link with and without compression.
const (
	resyncItem = "resync"
	scaleItem  = "scale"
	echoItem   = "echo"
	slowItem   = "slow" // only when it is named
)

// pairItems are the tests of their own that are done once for each transport.
var pairItems = []string{echoItem, scaleItem, resyncItem, slowItem}

// itemByName returns the item, or false if there is none of that name.
func itemByName(name string) (item, bool) {
	i := slices.IndexFunc(items, func(it item) bool { return it.name == name })
	if i < 0 {
		return item{}, false
	}
	return items[i], true
}

// chooseItems returns the items named in a comma-separated list (all if it is empty) and whether the footprint test is
// among them. A name that ends in * stands for all that begin so.
func chooseItems(list string) (chosen []item, footprint bool, err error) {
	if list == "" {
		return items, true, nil
	}
	for want := range strings.SplitSeq(list, ",") {
		found := false
		if matches(want, footprintItem) {
			found, footprint = true, true
		}
		found = found || slices.ContainsFunc(pairItems, func(name string) bool { return matches(want, name) }) // chosen by names
		for _, it := range items {
			if matches(want, it.name) {
				found = true
				if !slices.Contains(chosen, it) {
					chosen = append(chosen, it)
				}
			}
		}
		if !found {
			return nil, false, fmt.Errorf("no item %q: there are %s", want, strings.Join(itemNames(), ", "))
		}
	}
	return chosen, footprint, nil
}

// names reports whether a test of its own is among the items of a list; it is in
// every list that names none.
func names(list, test string) bool {
	for want := range strings.SplitSeq(list, ",") {
		if list == "" || matches(want, test) {
			return true
		}
	}
	return false
}

// matches compares a name with a pattern, which may end in *.
func matches(pattern, name string) bool {
	if prefix, open := strings.CutSuffix(pattern, "*"); open {
		return strings.HasPrefix(name, prefix)
	}
	return pattern == name
}

// itemNames returns every name that -item takes.
func itemNames() []string {
	var all []string
	for _, it := range items {
		all = append(all, it.name)
	}
	return append(append(all, footprintItem), pairItems...)
}
