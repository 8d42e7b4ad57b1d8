package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/volume"
)

func TestVerifyIsDue(t *testing.T) {
	now := time.Date(2026, 3, 4, 2, 30, 0, 0, time.Local)
	night := config.Window{From: 22 * time.Hour, To: 4 * time.Hour}
	day := config.Window{From: 8 * time.Hour, To: 9 * time.Hour}
	rec := func(full time.Duration, next int64, scheduled bool) *verifyRecord {
		r := &verifyRecord{Full: now.Add(-full)}
		r.Len, r.Next, r.Scheduled = 100, next, scheduled
		return r
	}
	cases := []struct {
		name        string
		every       time.Duration
		window      config.Window
		last        *verifyRecord
		run, resume bool
	}{
		{"never", 0, config.Window{}, nil, false, false},
		{"first", time.Hour, config.Window{}, nil, true, false},
		{"fresh", time.Hour, config.Window{}, rec(time.Minute, 100, true), false, false},
		{"old", time.Hour, config.Window{}, rec(2*time.Hour, 100, false), true, false},
		{"in the window", time.Hour, night, nil, true, false},
		{"outside", time.Hour, day, nil, false, false},
		{"interrupted", time.Hour, night, rec(time.Minute, 50, true), true, true},
		{"an operator's, interrupted", time.Hour, night, rec(time.Minute, 50, false), false, false},
	}
	for _, c := range cases {
		run, resume := verifySchedule{every: c.every, window: c.window, size: 100}.due(now, c.last)
		if run != c.run || resume != c.resume {
			t.Errorf("%s: run %v, resume %v", c.name, run, resume)
		}
	}
	if left := night.Left(now); left != 90*time.Minute {
		t.Errorf("the window lasts %v", left)
	}
}

// TestVerifyResumed: an interrupted verify is remembered over a restart, and goes on
// where it was.
func TestVerifyResumed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "crm.verify.json")
	v, err := newVerifier("crm", 1<<20, path)
	if err != nil {
		t.Fatal(err)
	}
	asked := []volume.VerifyOptions{}
	lost := errors.New("beta was lost")
	vol := newFakeVolume("crm")
	defer vol.Close(context.Background())
	vol.verify = func(_ context.Context, o volume.VerifyOptions, progress func(done, total int64)) (volume.VerifyReport, error) {
		asked = append(asked, o)
		if len(asked) == 1 {
			progress(4096, 1<<20)
			return volume.VerifyReport{Peer: "beta", Len: 1 << 20, Next: 8192, Checked: 8192, Bad: 4096, Ranges: []volume.VerifyRange{{Off: 0, Len: 4096}}}, lost
		}
		return volume.VerifyReport{Peer: "beta", Off: o.Off, Len: o.Len, Next: o.Off + o.Len, Checked: o.Len}, nil
	}
	run := verifyRun{VerifyOptions: volume.VerifyOptions{Peer: "beta"}}
	if _, err := v.run(t.Context(), vol, run, nil); err == nil || !strings.Contains(err.Error(), "--resume") {
		t.Errorf("interrupted: %v", err)
	}
	again, err := newVerifier("crm", 1<<20, path)
	if err != nil {
		t.Fatal(err)
	}
	run.resume = true
	r, err := again.run(t.Context(), vol, run, nil)
	if err != nil || asked[1].Off != 8192 || asked[1].Len != 1<<20-8192 {
		t.Fatalf("resumed with %+v: %v", asked[1], err)
	}
	if r.Checked != 1<<20 || r.Bad != 4096 || len(r.Ranges) != 1 || r.Off != 0 || r.Len != 1<<20 {
		t.Errorf("report %+v", r)
	}
	if rec := again.record("beta"); !rec.complete() || rec.Full.IsZero() || rec.Stopped != "" {
		t.Errorf("record %+v", rec)
	}
	if _, err := again.run(t.Context(), vol, run, nil); err == nil {
		t.Error("a complete verify is resumed")
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if v, err := newVerifier("crm", 1<<20, path); err == nil || v.record("beta") != nil {
		t.Errorf("a damaged file: %v", err)
	}
}
