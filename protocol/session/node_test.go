package session

import "testing"

// TestCalm: nobody waits awake on one transport's socket while another's are open.
func TestCalm(t *testing.T) {
	for _, c := range []struct {
		name          string
		calm          func() bool
		several, want bool
	}{
		{"not said", nil, false, false},
		{"calm", func() bool { return true }, false, true},
		{"not calm", func() bool { return false }, false, false},
		{"calm, two transports", func() bool { return true }, true, false},
	} {
		n := &Node{options: Options{Calm: c.calm}}
		n.several.Store(c.several)
		if got := n.calm(); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
