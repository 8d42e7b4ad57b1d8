package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/qrbd/qrbd/agent"
	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/crash"
	"github.com/qrbd/qrbd/blockdev/fault"
	"github.com/qrbd/qrbd/volume/meta"
)

// cacheMax bounds what a store keeps unflushed, bytes: the volumes flush far
// more often, so reaching it only means that some of it survives a crash.
const cacheMax = 512 << 20

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("usage: storeagent volatile|volatile-meta|fault --config F")
	}
	flags := flag.NewFlagSet("storeagent", flag.ContinueOnError)
	path := flags.String("config", "", "configuration file")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	cfg, err := config.Load(*path)
	if err != nil {
		return err
	}
	o := agent.Options{Config: cfg, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Version: "test"}
	switch args[0] {
	case "volatile":
		o.OpenStore, o.OpenMeta = openVolatile, openVolatileMeta
	case "volatile-meta":
		o.OpenMeta = openVolatileMeta
	case "fault":
		o.OpenStore = openFaulty
	default:
		return fmt.Errorf("no stores named %q", args[0])
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	return agent.Run(ctx, o, nil)
}

func openVolatile(path string) (blockdev.Device, error) {
	inner, err := blockdev.Open(path)
	if err != nil {
		return nil, err
	}
	return fault.FromFile(crash.NewVolatile(inner, cacheMax), path+".faults")
}

func openVolatileMeta(path string) (meta.Storage, error) {
	var delay time.Duration
	if s := os.Getenv("QRBD_META_SYNC"); s != "" {
		var err error
		if delay, err = time.ParseDuration(s); err != nil {
			return nil, fmt.Errorf("QRBD_META_SYNC: %w", err)
		}
	}
	inner, err := meta.OpenStorage(path)
	if err != nil {
		return nil, err
	}
	return newVolatileMeta(path, inner, delay), nil
}

func openFaulty(path string) (blockdev.Device, error) {
	inner, err := blockdev.Open(path)
	if err != nil {
		return nil, err
	}
	return fault.FromFile(inner, path+".faults")
}
