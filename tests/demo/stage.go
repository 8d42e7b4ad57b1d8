package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/qrbd/qrbd/tests/stack/mount"
	"github.com/qrbd/qrbd/tests/stack/process"
)

// stage is what both stories stand on: two nodes in a directory of their own, and
// the acts that need nothing but them.
type stage struct {
	options
	say         *narrator
	report      *report
	dir         string
	alpha, beta *node
}

// pair makes the nodes and starts them with an empty volume in sync.
func (s *stage) pair(ctx context.Context) error {
	var err error
	if s.dir, err = os.MkdirTemp("", "qrbd-demo-"); err != nil {
		return fmt.Errorf("work directory: %w", err)
	}
	// Database servers run as users of their own and must reach the mount.
	if err := os.Chmod(s.dir, 0o755); err != nil {
		return fmt.Errorf("work directory: %w", err)
	}
	s.say.line("work directory %s", s.dir)
	what := fmt.Sprintf("nodes alpha and beta, a volume of %d MiB between them, protocol C", s.sizeMiB)
	return s.say.step(ctx, what, func(ctx context.Context) (string, error) {
		s.alpha, s.beta, err = newPair(ctx, s.dir, s.qrbd, s.sizeMiB)
		if err != nil {
			return "", err
		}
		for _, n := range []*node{s.alpha, s.beta} {
			if _, err := n.run(ctx, "create", volumeName); err != nil {
				return "", err
			}
			if err := n.start(ctx); err != nil {
				return "", err
			}
		}
		if err := s.alpha.wait(ctx, "connected"); err != nil {
			return "", err
		}
		if _, err := s.alpha.promote(ctx, "--force"); err != nil {
			return "", err
		}
		for _, n := range []*node{s.alpha, s.beta} {
			if err := n.wait(ctx, "up-to-date"); err != nil {
				return "", err
			}
		}
		return "alpha is primary, both are up-to-date", nil
	})
}

// vouch promotes beta on the operator's word that alpha is dead, which it is since
// died.
func (s *stage) vouch(ctx context.Context, died time.Time) (string, error) {
	refusals, err := s.beta.promote(ctx, "--peer-fenced")
	if err != nil {
		return "", err
	}
	text := fmt.Sprintf("primary %s after the death", seconds(time.Since(died)))
	if refusals > 0 {
		text += fmt.Sprintf(", refused %d times while beta still took alpha for alive", refusals)
	}
	return text, nil
}

// rejoin starts alpha's agent again and waits until it has caught up. It claims
// that alpha was seen as the outdated side, and that it got little more than what
// had changed.
func (s *stage) rejoin(ctx context.Context) error {
	return s.say.step(ctx, "alpha comes back", func(ctx context.Context) (string, error) {
		before, err := s.beta.status(ctx)
		if err != nil {
			return "", err
		}
		began := time.Now()
		if err := s.alpha.start(ctx); err != nil {
			return "", err
		}
		for _, n := range []*node{s.beta, s.alpha} {
			for _, state := range []string{"connected", "up-to-date"} {
				if err := n.wait(ctx, state); err != nil {
					return "", err
				}
			}
		}
		took := time.Since(began)
		after, err := s.beta.status(ctx)
		if err != nil {
			return "", err
		}
		if err := s.claimOutdated(ctx); err != nil {
			return "", err
		}
		sent, volume := after.Peers[0].SyncSent, s.sizeMiB<<20
		s.report.claim(sent > 0 && sent < volume/4, "resynced", "%s of a volume of %d MiB, in %s; out of sync at the return: %s",
			mib(sent), s.sizeMiB, seconds(took), mib(before.Peers[0].OutOfSync))
		return fmt.Sprintf("outdated, then up-to-date again after %s; %s resynced, while the load went on", seconds(took), mib(sent)), nil
	})
}

// claimOutdated looks into the events of alpha's new life for the words that say
// that its data were known to be old before any of beta's reached it, and who gave
// the new ones.
func (s *stage) claimOutdated(ctx context.Context) error {
	events, err := s.alpha.events(ctx)
	if err != nil {
		return err
	}
	has := func(field, value string) bool {
		return slices.ContainsFunc(events, func(e event) bool { return e.Field == field && e.New == value })
	}
	old, target := has("disk", "outdated"), has("replication", "sync-target")
	s.report.claim(old && target, "alpha's return", "recognised as outdated: %t; synced from beta: %t", old, target)
	return nil
}

// compareStores stops both agents in order and compares the backing stores.
func (s *stage) compareStores(ctx context.Context) error {
	err := s.say.step(ctx, "stop both agents in order", func(ctx context.Context) (string, error) {
		if err := s.beta.wait(ctx, "up-to-date"); err != nil {
			return "", err
		}
		st, err := s.beta.status(ctx)
		if err != nil {
			return "", err
		}
		if p := st.Peers[0]; p.OutOfSync != 0 || p.Disk != "up-to-date" {
			return "", fmt.Errorf("before the comparison alpha is %s with %d bytes out of sync", p.Disk, p.OutOfSync)
		}
		return "", errors.Join(s.beta.stop(), s.alpha.stop())
	})
	if err != nil {
		return err
	}
	return s.say.step(ctx, "compare the backing stores byte for byte", func(ctx context.Context) (string, error) {
		at, err := differ(ctx, s.alpha.backing(), s.beta.backing())
		if err != nil {
			return "", err
		}
		text := fmt.Sprintf("equal, all %d MiB compared", s.sizeMiB)
		if at >= 0 {
			text = fmt.Sprintf("DIFFERENT, at byte %d first", at)
		}
		s.report.claim(at < 0, "replicas", "%s", text)
		return text, nil
	})
}

// cleanup kills the agents that run and removes the work directory. A directory
// with something still mounted in it is never removed: that would reach into the
// volume.
func (s *stage) cleanup() {
	for _, n := range []*node{s.alpha, s.beta} {
		if n != nil {
			process.Kill(n.agent)
		}
	}
	switch left := mount.Below(s.dir); {
	case s.dir == "":
	case len(left) != 0:
		s.say.line("clean-up: still mounted, and therefore left: %v", left)
	case s.keep:
		s.say.line("kept %s", s.dir)
	default:
		if err := os.RemoveAll(s.dir); err != nil {
			s.say.line("clean-up: %v", err)
		}
	}
}
