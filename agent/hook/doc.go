// Package hook runs the commands that an administrator has configured for
// events of a volume.
//
//	Fire(command, event) ──► queue of the volume ──► one at a time per volume, four at
//	                         (64; full: dropped)     a time per node ──► exec, log
//	Ask(command, event)  ─────────────────────────► exec at once, its error is the answer
//
// A command is started without a shell, in a process group of its own, with the
// event in QRBD_ variables. What is left of it when its time is up is killed. What
// it prints is logged.
//
// Invariant: Fire never waits, and nothing that a command does or fails to do
// holds up the caller, another volume's data or the end of the agent.
//
// Goroutines: one per volume while its queue is not empty, and those that package
// exec starts for a command. Close returns when all have ended.
package hook
