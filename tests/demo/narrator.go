package main

import (
	"context"
	"fmt"
	"io"
	"time"
)

// narrator prints what happens as it happens, each line with the seconds since the
// start. One goroutine uses it at a time.
type narrator struct {
	w      io.Writer
	broken func() // called when w takes no more
	began  time.Time
}

func newNarrator(w io.Writer, broken func()) *narrator {
	return &narrator{w: w, broken: broken, began: time.Now()}
}

// line prints one line.
func (n *narrator) line(format string, args ...any) {
	_, err := fmt.Fprintf(n.w, "%6.1f s  %s\n", time.Since(n.began).Seconds(), fmt.Sprintf(format, args...))
	if err != nil {
		n.broken()
	}
}

// step announces what, does it, and says what came of it. It does nothing when ctx
// has ended, so that an interrupted story stops between two steps at the latest.
func (n *narrator) step(ctx context.Context, what string, do func(context.Context) (string, error)) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	n.line("%s", what)
	came, err := do(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if came != "" {
		n.line("    %s", came)
	}
	return nil
}

// wait waits for d, and prints status every two seconds meanwhile. It ends early
// with the error that comes from failed, or when ctx ends.
func (n *narrator) wait(ctx context.Context, d time.Duration, failed <-chan error, status func() string) error {
	end := time.NewTimer(d)
	defer end.Stop()
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-end.C:
			return nil
		case <-tick.C:
			n.line("    %s", status())
		case err := <-failed:
			return fmt.Errorf("the load ended early: %w", err)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// count writes a number with a comma at the thousands, for people.
func count[T int | int64](n T) string {
	if n < 0 {
		return "-" + count(-n)
	}
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", count(n/1000), n%1000)
}

func mib(bytes int64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
