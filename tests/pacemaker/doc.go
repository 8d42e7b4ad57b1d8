// Package pacemaker tests the resource agent and the fencing hook in real clusters of
// corosync and Pacemaker, configured by docs/PACEMAKER.md itself:
//
//	test ── site ── machine alpha: init (process namespace) ── qrbd agent, corosync, pacemakerd
//	  │       │       └ root: an overlay on this host's; /dev, /run and /tmp of its own;
//	  │       │         /var/lib/qrbd on the test's memory, which a power cut leaves as it is
//	  │       ├───── machine beta …
//	  │       ├───── wires: two bridges in a namespace, for replication and for the cluster
//	  │       └───── power switch: a directory in all machines; stonith asks for a machine's
//	  │              death in it, and the test kills its init
//	  ├── users: commits to the database's address from outside, each noted before it counts
//	  └── watcher: asks every agent for its role every 50 ms
//
// Without QRBD_PACEMAKER=all one machine of one cluster is killed. Needs root, namespaces,
// FUSE, loop devices and the packages in tests/deps.txt; elsewhere tests are skipped and
// say what is missing.
//
// Invariant: machines die with the test process; namespaces, loop devices and directories
// go with the test, and what a killed test process left with the next one.
//
// Goroutines: one per machine waits for its end, one per site serves the power switch, one
// watches, and the users'.
package pacemaker
