// Package watch holds what deploy/ gives to monitoring systems against real agents
// and the real tools.
//
//	alpha, beta: qrbd agent ◄── scrape ── prometheus ◄── queries ── the test
//	                                        │
//	                     deploy/prometheus/qrbd.rules.yml, without its waiting times
//
// A Prometheus scrapes two agents that replicate a volume: every expression of the
// dashboard and of the alerts must be understood and name metrics that agents export,
// nothing must be firing while all is well, and the right alerts must fire when a node
// is killed. promtool checks the rules, their unit tests and the metrics themselves.
package watch
