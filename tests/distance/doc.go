// Command distance measures replication over a long and lossy link, beside DRBD 8.4 on the same link under the same
// kernel: two User-Mode Linux machines, joined by a cable, whose packets netem holds up and drops.
//
//	machine alpha                                          machine beta
//	fio ─► agent, volume on tmpfs ─┐                    ┌─ agent, volume on tmpfs
//	fio ─► /dev/drbdN, ramdisk ────┴ eth0─card ══ card─eth0 ┴─ /dev/drbdN, ramdisk
//	                                       cable
//	what arrives at each end: cable ─► netem on card: half of the round trip, the loss ─► eth0
//
// netem sits where packets arrive, since there they are what a wire carries; where they leave, one queued packet
// may be 64 KiB that is cut up later, and a loss would take all of it. Receive offload is off for the same
// reason. Loss is of each packet, independent, in both directions.
//
// All columns are up all the time and idle while another is measured. A cell is one run of fio: 4 KiB random writes one
// at a time, the same with 32 under way, 1 MiB writes with eight under way. The machines have one slow CPU each: figures
// in which no delay dominates (round trip 0, bulk without loss) compare the columns and say nothing of real hosts.
//
// The host's process boots both machines and reads what they leave in a directory that it shares with them: the guests
// are this program again. Goroutines: one per machine, in main.go, ends with it.
package main
