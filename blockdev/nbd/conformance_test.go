package nbd_test

import (
	"testing"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/blockdevtest"
	"github.com/qrbd/qrbd/blockdev/nbd"
	"github.com/qrbd/qrbd/blockdev/nbd/client"
)

// TestConformance: a device behind the server and the client is still a device.
func TestConformance(t *testing.T) {
	for name, o := range map[string]client.Options{"structured": {}, "simple": {Simple: true}} {
		t.Run(name, func(t *testing.T) {
			blockdevtest.Run(t, func(t *testing.T) blockdev.Device {
				q := blockdev.Async(blockdev.NewMemory(4<<20), 4)
				t.Cleanup(func() { q.Close() })
				s := serve(t, nbd.Options{Exports: newExports(&nbd.Export{Name: "crm", Device: q})})
				return dial(t, s, "", o)
			})
		})
	}
}
