// Package blockdevtest holds the conformance suite that every blockdev.Device
// passes: the stores, the fault and crash stores, and whatever else claims to be
// a disk.
//
//	blockdevtest.Run(t, func(t *testing.T) blockdev.Device { return blockdev.NewMemory(8 << 20) })
//
// The suite knows the contract only, and compares with a plain []byte. It starts
// goroutines in its tests and waits for them.
package blockdevtest
