// Command qrbd is the one binary: the agent, and the commands that administer
// it. It wires packages together and talks to people; it decides nothing.
//
//	arguments ─► args.go: flags to the front ─► urfave/cli ─► a command
//	                                                            │
//	   agent: agent.Run in the foreground                       ├─► agent
//	   init, identity, config: files only                       ├─► agent/config
//	   all others: one call over the control socket             └─► agent/control
//
// Exit codes: 0 done, 1 refused or failed (a line on stderr that says what to
// do), 2 wrong usage. Only main calls os.Exit.
//
// Output for people is laid out in 80 columns (screen.go, status.go, explain.go)
// and coloured on a terminal only; --json prints the control API's objects.
//
// Goroutines: the signal handler of the agent command, and the key reader of
// status --watch, which ends with the process.
package main
