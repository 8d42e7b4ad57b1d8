package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/attach"
	"github.com/qrbd/qrbd/protocol"
)

// host is where this node's devices are.
func (c call) host(cfg *config.Config) *attach.Host {
	return &attach.Host{
		State:  cfg.Node.State,
		Run:    cfg.AttachRun(),
		Links:  cfg.Node.Devices,
		Socket: cfg.AttachSocket(),
		Spawn: func(ctx context.Context, volume string) (int, error) {
			return spawnHelper(ctx, cfg, volume)
		},
	}
}

func runAttach(c call) error {
	return attachHere(c, attach.Request{
		Volume: c.volumeName(), Device: c.Args().Get(1), Method: attach.Method(c.String("method")),
	})
}

func attachHere(c call, r attach.Request) error {
	cfg, err := c.config()
	if err != nil {
		return err
	}
	if err := mustBePrimary(c, r.Volume); err != nil {
		return err
	}
	h := c.host(cfg)
	if v := cfg.Volume(r.Volume); v != nil {
		h.DeadTime = v.AttachTimeout
	}
	rec, err := h.Attach(c.Context.Context, r)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.t.out, rec)
	}
	fmt.Fprintf(c.t.out, "volume %s is %s (%s), by method %s\n", rec.Volume, rec.Link, rec.Device, rec.Method)
	return nil
}

// mustBePrimary says early, and in the agent's words, what would be found out late.
func mustBePrimary(c call, volume string) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	st, err := client.Status(c.Context.Context)
	if err != nil {
		return err
	}
	for _, v := range st.Volumes {
		if v.Name != volume {
			continue
		}
		if v.Role == protocol.Primary.String() {
			return nil
		}
		for _, p := range v.Peers {
			if p.Role == protocol.Primary.String() {
				return fmt.Errorf("volume %s is secondary here and its primary is %s: attach it there, or hand it over with qrbd switchover %s --to %s there", volume, p.Name, volume, st.Node)
			}
		}
		return fmt.Errorf("volume %s is secondary here: only a primary can be attached; run qrbd promote %s --attach", volume, volume)
	}
	return fmt.Errorf("there is no volume %q on this node", volume)
}

func runDetach(c call) error {
	cfg, err := c.config()
	if err != nil {
		return err
	}
	rec, err := c.host(cfg).Detach(c.Args().First(), c.Bool("force"))
	if err != nil {
		return err
	}
	fmt.Fprintf(c.t.out, "volume %s is detached\n", rec.Volume)
	return nil
}

func runAttached(c call) error {
	cfg, err := c.config()
	if err != nil {
		return err
	}
	list, err := attach.List(cfg.Node.State)
	if c.Bool("json") {
		return errors.Join(printJSON(c.t.out, list), err)
	}
	if len(list) > 0 {
		w := tabwriter.NewWriter(c.t.out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "VOLUME\tDEVICE\tNAME\tMETHOD\tSTATE\tUSE")
		for _, i := range list {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", i.Volume, i.Device, i.Link, i.Method, i.State, i.Use)
		}
		err = errors.Join(err, w.Flush())
	}
	return err
}

// helperName is the command that spawnHelper starts. It is no operator's.
const helperName = "attach-helper"

func helperCommand(t *terminal) *cli.Command {
	c := command(t, helperName, "VOLUME", "serve an attached volume (started by qrbd attach)", 1, 1, nil, runHelper)
	c.Hidden = true
	return c
}

// helperReady is the descriptor on which a helper says that it serves (an empty message)
// or why not.
const helperReady = 3

// helperStart bounds how long a helper takes to serve.
const helperStart = 20 * time.Second

// spawnHelper starts a helper that outlives this command and its terminal.
func spawnHelper(ctx context.Context, cfg *config.Config, volume string) (pid int, err error) {
	path, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("starting the helper: %w", err)
	}
	log, err := os.OpenFile(attach.LogPath(cfg.Node.State, volume), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return 0, fmt.Errorf("log of the helper: %w", err)
	}
	defer log.Close()
	told, tells, err := os.Pipe()
	if err != nil {
		return 0, fmt.Errorf("starting the helper: %w", err)
	}
	defer told.Close()
	file, err := filepath.Abs(cfg.File)
	if err != nil {
		return 0, fmt.Errorf("configuration: %w", err)
	}
	cmd := exec.Command(path, helperName, volume, "--config", file)
	cmd.Dir = "/" // keeps no directory busy
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, []*os.File{tells}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	tells.Close()
	if err != nil {
		return 0, fmt.Errorf("starting the helper: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	if err := told.SetReadDeadline(time.Now().Add(helperStart)); err != nil {
		return 0, fmt.Errorf("starting the helper: %w", err)
	}
	said, err := io.ReadAll(told)
	switch {
	case err == nil && string(said) == helperServes:
		pid := cmd.Process.Pid
		return pid, cmd.Process.Release()
	case err == nil && len(said) > 0:
		err = errors.New(string(said))
	case err == nil:
		err = fmt.Errorf("the helper ended before it served; see %s", log.Name())
	default:
		err = fmt.Errorf("waiting for the helper: %w; see %s", err, log.Name())
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // how it ended is of no interest
	return 0, err
}

// helperServes is what a helper says when it does.
const helperServes = "serves"

// prepareHelper makes the memory of a helper safe, first of all.
func prepareHelper(args []string) {
	if len(args) < 2 || args[1] != helperName {
		return
	}
	runtime.GOMAXPROCS(max(1, runtime.NumCPU()/2)) // as the agent
	if err := attach.PrepareMemory(args); err != nil {
		fmt.Fprintf(os.Stderr, "qrbd: under memory pressure this helper may be in trouble: %v\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
}

func runHelper(c call) error {
	cfg, err := c.config()
	if err != nil {
		return err
	}
	name := c.volumeName()
	v := cfg.Volume(name)
	if v == nil {
		return fmt.Errorf("there is no volume %q in %s", name, cfg.File)
	}
	answer := os.NewFile(helperReady, "ready")
	ready := func(err error) {
		text := helperServes
		if err != nil {
			text = err.Error()
		}
		_, _ = io.WriteString(answer, text) // a starter that is gone needs no answer
		_ = answer.Close()
	}
	return attach.RunHelper(c.Context.Context, attach.HelperOptions{
		State: cfg.Node.State, Volume: name, Socket: cfg.AttachSocket(), DeadTime: v.AttachTimeout,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}, ready)
}
