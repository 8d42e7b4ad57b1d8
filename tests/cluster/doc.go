// Package cluster runs real qrbd agents as processes on one machine, for tests
// that look at them only from outside: through the command line, NBD clients
// and the backing stores.
//
//	test ── Cluster ── Node alpha ── process: qrbd agent ── alpha/*.img
//	          │          └ CLI: qrbd --config alpha/qrbd.toml …
//	          ├────────── Node beta …
//	          └ wires: loopback ports, or a network namespace per node and a
//	            bridge, so that a link can be cut one way or both
//
// Binaries are built once per test process. Each cluster has its own directory;
// processes, namespaces and directory are gone when the test ends, also when it
// is killed: agents die with the test process, and the next run removes what
// processes left that no longer exist (cleanup.go). When a test fails, the agents'
// logs are printed.
//
// Everything here that can fail ends the test with t.Fatal and says which node
// and which command it was.
//
// Goroutines: one, which starts processes (spawn.go), lives as long as the test
// process; one per running agent waits for its end; one per followed command
// reads its lines.
package cluster
