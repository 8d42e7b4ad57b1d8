// Package metrics shows a node to monitoring systems: Prometheus metrics on
// /metrics, and on /healthz whether every volume is as it should be.
//
//	Prometheus ──► GET /metrics ──► collector ──┐
//	                                            ├──► Source: the status that the control
//	load balancer ► GET /healthz ──► Health ────┘    API shows, and what the volumes counted
//
// Nothing is kept here between two scrapes: a scrape takes one status and turns it
// into samples. What must be counted is counted by package volume, without locks.
//
// A state is a set of gauges, one for each value that it can have, of which one is 1:
//
//	qrbd_resource_role{name="crm",qrbd_resource_role="primary"} 1
//	qrbd_resource_role{name="crm",qrbd_resource_role="secondary"} 0
//
// Names and labels follow the Prometheus exporter of drbd-reactor where the meaning is
// the same, with qrbd_ for drbd_: the label name is the volume, conn_name the peer.
// Source of those: drbd-reactor, doc/prometheus.md.
//
// The server answers a bounded number of connections and scrapes at a time, none of
// which can hold it up: reads and writes have time limits. It has no authentication
// and shows no secret; it belongs on loopback or on a network of one's own.
//
// Goroutines: one that accepts, and the HTTP server's; Close ends them.
package metrics
