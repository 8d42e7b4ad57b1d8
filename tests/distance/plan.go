package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// plan is what the host's process tells both guests, in the shared directory.
type plan struct {
	Shared     string        `json:"shared"` // the directory
	Qrbd       string        `json:"qrbd"`   // the program
	Runtime    time.Duration `json:"runtime"`
	Rounds     int           `json:"rounds"`
	Conditions []condition   `json:"conditions"`
	Columns    []string      `json:"columns"`
	Pause      bool          `json:"pause"` // before each condition, until the host's process has a line of input
	DRBD       bool          `json:"drbd"`  // there is one
}

const (
	planFile    = "plan.json"
	cellsFile   = "cells.json" // what alpha found
	volumeBytes = 64 << 20
	filePoll    = 20 * time.Millisecond
)

// kinds returns the columns that the plan names, in the table's order.
func (p *plan) kinds() []columnKind {
	var list []columnKind
	for _, k := range columnKinds {
		for _, name := range p.Columns {
			if k.name == name {
				list = append(list, k)
			}
		}
	}
	return list
}

// agents returns one column per agent that the plan's columns need: those that differ only in the protocol share one.
func (p *plan) agents() []columnKind {
	var list []columnKind
	seen := map[string]bool{}
	for _, k := range p.kinds() {
		if k.transport != "" && !seen[k.agent()] {
			seen[k.agent()] = true
			list = append(list, k)
		}
	}
	return list
}

// writeJSON writes v so that a reader sees all of it or nothing.
func writeJSON(path string, v any) error {
	text, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := os.WriteFile(path+".new", append(text, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// readJSON reads what writeJSON wrote.
func readJSON(path string, v any) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// await returns when there is a file of that name in the shared directory.
func (p *plan) await(ctx context.Context, name string) error {
	for {
		_, err := os.Stat(filepath.Join(p.Shared, name))
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		select {
		case <-time.After(filePoll):
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", name, context.Cause(ctx))
		}
	}
}

// tell makes a file of that name in the shared directory.
func (p *plan) tell(name string) error {
	return os.WriteFile(filepath.Join(p.Shared, name), nil, 0o600)
}
