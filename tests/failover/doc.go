// Package failover runs what docs/FAILOVER.md configures: two nodes and a witness in
// network namespaces, PostgreSQL on an attached device, started and moved by the agents
// themselves, while clients commit and faults fall.
//
//	clients ──► commits.Ledger (outside)       cluster.Watcher: who serves, every 50 ms
//	   │
//	   ▼ unix sockets
//	alpha: agent ─ device ─ ext4 ─ PostgreSQL ◄──► beta: the same ◄──► gamma: witness
//
// After each fault: at no moment two primaries that serve, no acknowledged commit lost,
// both replicas equal. QRBD_FAILOVER=all runs every fault, and ten deaths for the figures.
package failover
