package pacemaker

import (
	"path/filepath"
	"time"

	"github.com/qrbd/qrbd/tests/cluster"
)

// equal compares the replicas byte for byte. REQUIRES: the users rest. What the file
// system itself still writes now and then ends the same on both.
func (s *site) equal(what string) {
	s.t.Helper()
	replicas := s.replicas()
	first := filepath.Join(replicas[0].top, "data/crm.img")
	for _, m := range replicas[1:] {
		s.until(what+": equal replicas", 30*time.Second, func() (string, bool) {
			diff, err := cluster.Diff(first, filepath.Join(m.top, "data/crm.img"))
			if err != nil {
				return err.Error(), false
			}
			if len(diff) > 0 {
				return "they differ in " + m.name, false
			}
			return "", true
		})
	}
}
