package agent

import (
	"errors"
	"testing"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
)

func TestFenceCode(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		disk string
		want int
	}{
		{"outdated", nil, "outdated", 4},
		{"inconsistent", nil, "inconsistent", 3},
		{"failed", nil, "failed", 4},
		{"primary", &volume.Error{Code: protocol.CodeTwoPrimaries, Text: "crm is primary"}, "", 6},
		{"busy", &volume.Error{Code: protocol.CodeBusy, Text: "a change of the role"}, "", 0},
		{"no answer", errors.New("EOF"), "", 0},
	} {
		if got := FenceCode(c.err, c.disk); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}
