package pacemaker

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// power is the switch that stonith uses: a directory that every machine sees.
type power struct {
	dir    string
	cancel context.CancelFunc
	ended  sync.WaitGroup

	mu sync.Mutex
	// Guarded by mu.
	shots []string // machines that stonith has switched off, in order
	lies  bool     // it only says that it has
}

// look is how often the switch is looked at.
const look = 20 * time.Millisecond

// newPower serves requests for the machines until the test ends.
func newPower(t *testing.T, dir string, machines []*machine) *power {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p := &power{dir: dir, cancel: cancel}
	p.ended.Go(func() {
		for ctx.Err() == nil {
			for _, m := range machines {
				for _, action := range []string{"off", "on", "reboot"} {
					if err := p.serve(m, action); err != nil {
						t.Errorf("power switch: %s %s: %v", action, m.name, err)
					}
				}
			}
			select {
			case <-ctx.Done():
			case <-time.After(look):
			}
		}
	})
	return p
}

// serve does what is asked for, if it is. A machine that is to be started again is off
// when the answer is given, and up some time later.
func (p *power) serve(m *machine, action string) error {
	request := filepath.Join(p.dir, m.name+"."+action)
	if err := os.Remove(request); err != nil {
		return nil //nolint:nilerr // nobody has asked
	}
	p.mu.Lock()
	lies := p.lies
	if action != "on" {
		p.shots = append(p.shots, m.name)
	}
	p.mu.Unlock()
	if action != "on" && !lies {
		if err := m.off(); err != nil {
			return err
		}
	}
	if err := os.WriteFile(request+".done", nil, 0o600); err != nil {
		return err
	}
	if action == "off" || lies {
		return nil
	}
	return m.boot()
}

// lie has the switch only say what it has done, or not any more.
func (p *power) lie(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lies = on
}

// shot returns which machines stonith has switched off since the last call.
func (p *power) shot() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := fmt.Sprint(strings.Join(p.shots, " "))
	p.shots = nil
	return s
}

func (p *power) close() {
	p.cancel()
	p.ended.Wait()
}
