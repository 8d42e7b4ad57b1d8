package main

import (
	"fmt"
	"strconv"
	"strings"
)

// condition is what the link is like.
type condition struct {
	RTTms   float64 `json:"rtt_ms"`
	LossPct float64 `json:"loss_pct"` // of each packet, in both directions
}

// String is for people: "10 ms, 0.1 %".
func (c condition) String() string { return fmt.Sprintf("%g ms, %g %%", c.RTTms, c.LossPct) }

// cell is what one column did under one condition. The figures of items that were not measured are 0.
type cell struct {
	condition
	Column    string  `json:"column"`
	Round     int     `json:"round"` // from 1
	Depth1ms  float64 `json:"write_4k_depth_1_ms"`
	Depth1p99 float64 `json:"write_4k_depth_1_p99_ms"`
	Depth32   float64 `json:"write_4k_depth_32_per_s"`
	BulkMBs   float64 `json:"write_1m_depth_8_mb_per_s"`
	Failed    string  `json:"failed,omitempty"` // why there are no figures
}

// work is one of fio's jobs in a cell.
type work struct {
	name  string
	bs    string
	rw    string
	depth int
}

// works in the order in which fio does them.
var works = []work{
	{name: "depth-1", bs: "4k", rw: "randwrite", depth: 1},
	{name: "depth-32", bs: "4k", rw: "randwrite", depth: 32},
	{name: "bulk", bs: "1m", rw: "write", depth: 8},
}

// columnKind is what is measured on the link.
type columnKind struct {
	name      string
	drbd      bool
	nbdkit    bool   // no replication: what a client's way to any server is in such a machine; measured without a round trip only
	transport string // qrbd: quic or tcp
	bbr       bool   // TCP's congestion control; otherwise the kernel's default, cubic
	async     bool   // protocol A: measured without loss only, without bulk
}

// columnKinds in the order of the table.
var columnKinds = []columnKind{
	{name: "nbdkit", nbdkit: true},
	{name: "qrbd-quic", transport: "quic"},
	{name: "qrbd-tcp", transport: "tcp"},
	{name: "qrbd-bbr", transport: "tcp", bbr: true},
	{name: "drbd", drbd: true},
	{name: "drbd-bbr", drbd: true, bbr: true},
	{name: "qrbd-quic-a", transport: "quic", async: true},
	{name: "qrbd-bbr-a", transport: "tcp", bbr: true, async: true},
	{name: "drbd-a", drbd: true, async: true},
}

// kindByName returns the kind, or false.
func kindByName(name string) (columnKind, bool) {
	for _, k := range columnKinds {
		if k.name == name {
			return k, true
		}
	}
	return columnKind{}, false
}

// numbers reads a comma-separated list.
func numbers(list string) ([]float64, error) {
	var all []float64
	for word := range strings.SplitSeq(list, ",") {
		x, err := strconv.ParseFloat(word, 64)
		if err != nil || x < 0 {
			return nil, fmt.Errorf("%q in %q is no number of at least 0", word, list)
		}
		all = append(all, x)
	}
	return all, nil
}
