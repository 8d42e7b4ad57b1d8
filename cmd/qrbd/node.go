package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/qrbd/qrbd/agent"
	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/protocol/session"
)

// identity is what `qrbd identity --json` prints.
type identity struct {
	Name string `json:"name"`
	Key  string `json:"key"`
}

func runInit(c call) error {
	node := config.Node{Name: c.String("name"), Listen: c.String("listen"), State: c.String("state"), Control: c.String("control")}
	if node.Name == "" || node.Listen == "" {
		return usage("init: give the node a name and an address for its peers: qrbd init --name alpha --listen 10.0.0.1:7790")
	}
	var err error
	if node.State, err = filepath.Abs(node.State); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	if node.Control, err = filepath.Abs(node.Control); err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	file := c.String("config")
	text := config.Template(node)
	if _, err := config.Parse(file, []byte(text)); err != nil {
		return initFault(err)
	}
	if _, err := os.Lstat(file); err == nil {
		return fmt.Errorf("%s exists and is not overwritten: edit it, or name another with --config", file)
	}
	id, err := loadIdentity(node.State)
	if err != nil {
		return err
	}
	if err := writeNew(file, text); err != nil {
		return err
	}
	stanza := config.Stanza(node.Name, peerAddress(node), id.PublicKey())
	if c.Bool("json") {
		return printJSON(c.t.out, struct {
			identity
			Config string `json:"config"`
			Stanza string `json:"stanza"`
		}{identity{node.Name, id.PublicKey()}, file, stanza})
	}
	fmt.Fprintf(c.t.out, "# %s is written. Add this to the configuration of the other nodes:\n\n%s", file, stanza)
	return nil
}

// loadIdentity reads the node's identity, or makes it and the state directory.
func loadIdentity(state string) (*session.Identity, error) {
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	return session.LoadOrCreateIdentity(state)
}

// initFault turns faults in what the flags said into wrong usage.
func initFault(err error) error {
	var ce *config.Error
	if !errors.As(err, &ce) {
		return err
	}
	texts := make([]string, len(ce.Faults))
	for i, f := range ce.Faults {
		texts[i] = strings.Replace(f.Key, "node.", "--", 1) + ": " + f.Text
	}
	return usage("init: %s", strings.Join(texts, "; "))
}

// peerAddress is where others reach the node; of a node that listens on every
// address only the port is known.
func peerAddress(n config.Node) string {
	host, port, err := net.SplitHostPort(n.Listen)
	if err != nil {
		return n.Listen
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		return net.JoinHostPort("ADDRESS-OF-"+n.Name, port)
	}
	return n.Listen
}

// writeNew writes a file that must not exist, durably.
func writeNew(path, text string) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists and is not overwritten: edit it, or name another with --config", path)
	}
	if err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	_, err = io.WriteString(f, text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		os.Remove(path)
		return fmt.Errorf("writing the configuration: %w", err)
	}
	return nil
}

func runIdentity(c call) error {
	cfg, err := c.config()
	if err != nil {
		return err
	}
	id, err := loadIdentity(cfg.Node.State)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.t.out, identity{cfg.Node.Name, id.PublicKey()})
	}
	fmt.Fprintf(c.t.out, "%s %s\n", cfg.Node.Name, id.PublicKey())
	return nil
}

func runConfig(c call) error {
	if verb := c.Args().First(); verb != "check" {
		return usage("config: there is no %q; use qrbd config check", verb)
	}
	cfg, err := c.config()
	if err != nil {
		return err
	}
	// The key is read, not made: a check changes nothing.
	if id, err := session.LoadIdentity(cfg.Node.State); err == nil {
		if err := cfg.CheckIdentity(id.PublicKey()); err != nil {
			return err
		}
	}
	if err := cfg.CheckHooks(); err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.t.out, struct {
			File    string `json:"file"`
			Node    string `json:"node"`
			Peers   int    `json:"peers"`
			Volumes int    `json:"volumes"`
		}{cfg.File, cfg.Node.Name, len(cfg.Peers), len(cfg.Volumes)})
	}
	fmt.Fprintf(c.t.out, "%s is valid: node %s, %s, %s\n", cfg.File, cfg.Node.Name, plural(len(cfg.Peers), "peer"), plural(len(cfg.Volumes), "volume"))
	return nil
}

// runReload says what the agent did. What could not be applied is a failure; what needs a
// restart is not.
func runReload(c call) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	r, err := client.Reload(c.Context.Context)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		if err := printJSON(c.t.out, r); err != nil {
			return err
		}
	} else {
		printReload(c.t.out, r)
	}
	if len(r.Failed) > 0 {
		return fmt.Errorf("not applied: %s", strings.Join(r.Failed, "; "))
	}
	return nil
}

func printReload(w io.Writer, r control.ReloadReport) {
	if len(r.Applied)+len(r.Restart)+len(r.Resize)+len(r.Failed) == 0 {
		fmt.Fprintf(w, "%s: nothing has changed\n", r.File)
	}
	for _, line := range r.Applied {
		fmt.Fprintf(w, "applied: %s\n", line)
	}
	for _, line := range r.Restart {
		fmt.Fprintf(w, "needs a restart of the agent: %s\n", line)
	}
	for _, line := range r.Resize {
		fmt.Fprintf(w, "size: %s\n", line)
	}
}

func runVersion(c call) error {
	if c.Bool("json") {
		return printJSON(c.t.out, struct {
			Version string `json:"version"`
		}{versionText()})
	}
	fmt.Fprintf(c.t.out, "qrbd %s\n", versionText())
	return nil
}

func runAgent(c call) error {
	cfg, err := c.config()
	if err != nil {
		return err
	}
	log, err := newLogger(c.t.err, c.String("log-level"), c.String("log-format"))
	if err != nil {
		return err
	}
	reload, stop := onHangup(c.Context.Context)
	defer stop()
	return agent.Run(c.Context.Context, agent.Options{Config: cfg, Log: log, Version: versionText()}, reload)
}

func newLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, usage("agent: --log-level %q is not debug, info, warn or error", level)
	}
	o := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, o)), nil
	}
	return nil, usage("agent: --log-format %q is not text or json", format)
}

// onHangup delivers SIGHUP until stop is called.
func onHangup(ctx context.Context) (hangups <-chan struct{}, stop func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP)
	out := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		for {
			select {
			case <-signals:
				select {
				case out <- struct{}{}:
				default: // one is waiting already
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, func() {
		signal.Stop(signals)
		cancel()
	}
}
