package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Each case is a volume of three nodes, and the only fault that it must give; "": none.
func TestFencing(t *testing.T) {
	const hooks = "[volume.hooks]\nfence-peer = \"/usr/local/sbin/fence\"\n"
	for _, c := range []struct {
		name, volume, text string
		want               Fencing
	}{
		{"default", "", "", FencingDontCare},
		{"dont-care", "fencing = \"dont-care\"\n", "", FencingDontCare},
		{"resource-only", "fencing = \"resource-only\"\n" + hooks, "", FencingResource},
		{"resource-and-stonith", "fencing = \"resource-and-stonith\"\n" + hooks, "", FencingWithStonith},
		{"a hook that nobody asks", hooks, "", FencingDontCare},
		{"word", "fencing = \"stonith\"\n" + hooks, "resource-and-stonith", 0},
		{"kind", "fencing = true\n" + hooks, "boolean", 0},
		{"no hook", "fencing = \"resource-only\"\n", "needs the hook fence-peer", 0},
		{"hook taken away", "fencing = \"resource-only\"\n[volume.hooks]\nfence-peer = \"\"\n", "needs the hook fence-peer", 0},
		{"with a quorum", "fencing = \"resource-and-stonith\"\nquorum = \"majority\"\n" + hooks, "take fencing away, or quorum", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg, err := Parse("q.toml", []byte(fill(t, quorumNodes+quorumStore+c.volume)))
			if c.text == "" {
				if err != nil || cfg.Volume("crm").Fencing != c.want {
					t.Errorf("got %+v, %v", cfg, err)
				}
				return
			}
			var e *Error
			if !errors.As(err, &e) || len(e.Faults) != 1 || e.Faults[0].Key != "volume.fencing" || !strings.Contains(e.Faults[0].Text, c.text) {
				t.Errorf("got %v, want one fault of fencing with %q", err, c.text)
			}
		})
	}
}

func TestCheckHooks(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"good": 0o755, "plain": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"good": "", "plain": "chmod +x", "none": "no such file", "": "is no file"} {
		for policy, on := range map[string]bool{"dont-care": false, "resource-only": true} {
			c, err := Parse("q.toml", []byte(fill(t, quorumNodes+quorumStore+"fencing = \""+policy+"\"\n[volume.hooks]\nfence-peer = [\""+filepath.Join(dir, name)+"\"]\n")))
			if err != nil {
				t.Fatal(err)
			}
			switch err := c.CheckHooks(); {
			case text == "" || !on:
				if err != nil {
					t.Errorf("%s of %q: %v", policy, name, err)
				}
			case err == nil || !strings.Contains(err.Error(), text) || !strings.HasPrefix(err.Error(), "q.toml:17: volume.fencing"):
				t.Errorf("%s of %q: %v, want %q", policy, name, err, text)
			}
		}
	}
}
