// Package e2e tests qrbd from outside: real agents as processes, real clients,
// real signals, links cut in network namespaces. What it knows of qrbd is the
// command line, the status JSON and NBD.
//
//	cluster  two or three nodes as processes       (tests/cluster)
//	ledger   load, and what a disk may hold then   (tests/cluster/ledger)
//
// storeagent is qrbd with other stores: in the one kind, what was not
// flushed lives in the process's memory, so that SIGKILL is a power cut; in the
// other a script file makes requests to the store fail.
//
// Every test runs its own cluster, and most run in parallel. Variables:
// QRBD_E2E_DIR where clusters live, QRBD_E2E_KEEP keep a failed one,
// QRBD_E2E_LOG lines of log it shows,
// QRBD_E2E_RACE agents with the race detector, QRBD_E2E_LONG longer faults.
package e2e
