// Command storeagent is `qrbd agent` with other stores under it, for tests that
// kill it.
//
//	storeagent volatile --config F        what is not flushed lives in this process only
//	storeagent volatile-meta --config F   what of the metadata is not synced does
//	storeagent fault --config F           nothing does
//
// With volatile, SIGKILL is a power cut: data and metadata that were written and
// not synced are lost, all of them. With volatile-meta it is one that by chance
// spares all data. In volatile and fault each backing store obeys the script at
// PATH.faults, as blockdev/fault describes it; without a file it works. Syncing
// metadata takes QRBD_META_SYNC longer than it does.
package main
