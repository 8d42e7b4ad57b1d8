package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/qrbd/qrbd/agent"
	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/attach"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
)

// call is one run of a command: its flags and arguments, and where it talks to.
type call struct {
	*cli.Context
	t *terminal
}

// command defines a command. args describes its arguments for help; least and
// most bound their number.
func command(t *terminal, name, args, does string, least, most int, flags []cli.Flag, do func(c call) error) *cli.Command {
	return &cli.Command{
		Name:            name,
		Usage:           does,
		ArgsUsage:       args,
		Flags:           append(flags, configFlag()),
		HideHelpCommand: true,
		OnUsageError: func(_ *cli.Context, err error, _ bool) error {
			return usage("%s: %v; see qrbd %s --help", name, err, name)
		},
		Action: func(c *cli.Context) error {
			switch n := c.NArg(); {
			case n < least:
				return usage("%s: an argument is missing: qrbd %s %s", name, name, args)
			case n > most:
				return usage("%s: too many arguments: qrbd %s %s", name, name, args)
			}
			return do(call{Context: c, t: t})
		},
	}
}

func hidden(c *cli.Command) *cli.Command {
	c.Hidden = true
	return c
}

// Flags are made anew for each command: urfave/cli keeps state in them.

func configFlag() cli.Flag {
	return &cli.StringFlag{Name: "config", Usage: "configuration `FILE`", Value: config.DefaultPath, EnvVars: []string{"QRBD_CONFIG"}}
}

func boolFlag(name, does string) cli.Flag {
	return &cli.BoolFlag{Name: name, Usage: does, DisableDefaultText: true}
}

func textFlag(name, does string) cli.Flag { return &cli.StringFlag{Name: name, Usage: does} }

func jsonFlag() cli.Flag { return boolFlag("json", "print JSON") }

func controlFlag() cli.Flag {
	return textFlag("control", "control `SOCKET` of the agent (default: the one in the configuration)")
}

// remote are the flags of a command that speaks with the agent.
func remote(flags ...cli.Flag) []cli.Flag { return append(flags, controlFlag()) }

func commands(t *terminal) []*cli.Command {
	return []*cli.Command{
		command(t, "init", "", "write a configuration and an identity for this node", 0, 0, []cli.Flag{
			textFlag("name", "this node's `NAME`"),
			textFlag("listen", "`ADDRESS` for peers, UDP and maybe TCP, like 10.0.0.1:7790"),
			&cli.StringFlag{Name: "state", Usage: "`DIR` for key, metadata and archives", Value: config.DefaultState},
			&cli.StringFlag{Name: "control", Usage: "control `SOCKET`", Value: config.DefaultControl},
			jsonFlag(),
		}, runInit),
		command(t, "identity", "", "print this node's name and public key", 0, 0, []cli.Flag{jsonFlag()}, runIdentity),
		command(t, "config", "check", "check the configuration", 1, 1, []cli.Flag{jsonFlag()}, runConfig),
		command(t, "reload", "", "have the agent read its configuration anew and apply what it can", 0, 0, remote(jsonFlag()), runReload),
		command(t, "agent", "", "run the node in the foreground", 0, 0, []cli.Flag{
			&cli.StringFlag{Name: "log-level", Usage: "`LEVEL`: debug, info, warn or error", Value: "info"},
			&cli.StringFlag{Name: "log-format", Usage: "`FORMAT`: text or json", Value: "text"},
		}, runAgent),
		command(t, "create", "VOLUME", "make a volume's backing store and metadata", 1, 1, remote(
			boolFlag("force", "overwrite what is there: its data are lost"),
		), runCreate),
		command(t, "resize", "VOLUME SIZE", "make this node's replica larger; on the primary last", 2, 2, remote(
			boolFlag("force", "disconnect clients for a moment"),
		), runResize),
		command(t, "destroy", "VOLUME", "remove this node's replica of a volume", 1, 1, remote(
			boolFlag("yes", "do not ask for the volume's name again"),
			boolFlag("backing", "remove the backing store too (of a block device: zero its first MiB)"),
			boolFlag("archives", "remove the archives too"),
			boolFlag("force", "also if this may be the last copy"),
		), runDestroy),
		command(t, "status", "[VOLUME]", "show roles, states, and what is out of sync", 0, 1, remote(
			jsonFlag(),
			boolFlag("watch", "keep showing it, until q or Ctrl-C"),
			boolFlag("shell", "print one volume's state as QRBD_ variables that a shell can evaluate"),
			&cli.DurationFlag{Name: "interval", Usage: "how often --watch looks", Value: defaultInterval},
		), runStatus),
		command(t, "top", "", "watch all volumes: states, throughput, latency, syncs (keys: q quit, s sort, up and down)", 0, 0, remote(
			jsonFlag(),
			boolFlag("once", "look twice, an interval apart, print what was done between, and end"),
			boolFlag("no-colour", "without colours, as with NO_COLOR set"),
			&cli.DurationFlag{Name: "interval", Usage: "how often it looks", Value: defaultInterval},
		), runTop),
		command(t, "promote", "VOLUME", "become primary", 1, 1, remote(
			boolFlag("force", "accept inconsistent or outdated data, or start a brand-new volume"),
			boolFlag("peer-fenced", "vouch that peers that cannot be reached are dead; waits until their silence is noticed"),
			boolFlag("attach", "attach the volume then, as qrbd attach does"),
		), runPromote),
		command(t, "demote", "VOLUME", "drain, flush and become secondary", 1, 1, remote(
			boolFlag("force", "disconnect clients first"),
		), runDemote),
		command(t, "switchover", "VOLUME --to PEER", "hand the primary role to a peer", 1, 1, remote(
			textFlag("to", "the `PEER` that becomes primary"),
			boolFlag("force", "disconnect clients first"),
		), runSwitchover),
		command(t, "failover", "status [VOLUME] | pause|resume|test VOLUME", "show, pause or rehearse the failover of a volume with a [volume.failover] section", 1, 2, remote(
			jsonFlag(),
			textFlag("to", "test: the `PEER` to go to and come back from (default: the next one)"),
		), runFailover),
		command(t, "attach", "VOLUME [DEVICE]", "make a block device of a volume that is primary here", 1, 2, remote(
			textFlag("method", "`METHOD`: nbd (the kernel's client) or fuse (a loop device); default: what the host has"),
			jsonFlag(),
		), runAttach),
		command(t, "detach", "VOLUME|DEVICE", "take a volume's block device away", 1, 1, []cli.Flag{
			boolFlag("force", "whatever uses it: what is not written yet is lost"),
		}, runDetach),
		command(t, "attached", "", "list the block devices of volumes, and what uses them", 0, 0, []cli.Flag{jsonFlag()}, runAttached),
		helperCommand(t),
		command(t, "connect", "VOLUME [PEER]", "connect to a peer, or to all", 1, 2, remote(
			boolFlag("discard-my-data", "after a split brain: give up what was written on this side"),
		), runConnect),
		command(t, "disconnect", "VOLUME [PEER]", "leave a peer, or all, until told to connect", 1, 2, remote(), runDisconnect),
		command(t, "replace-disk", "VOLUME", "put an empty disk in the place of one that failed; it is filled from a peer", 1, 1, remote(), runReplaceDisk),
		command(t, "invalidate", "VOLUME", "give this side's data up and copy a peer's in full", 1, 1, remote(), runInvalidate),
		command(t, "outdate", "VOLUME", "keep this side from being promoted until it has been in sync again", 1, 1, remote(
			boolFlag("fence-code", "exit as a fence-peer hook does: 4 it is outdated, 3 inconsistent, 6 this node is primary"),
		), runOutdate),
		command(t, "verify", "VOLUME [PEER]", "compare replicas while they are in use", 1, 2, remote(
			boolFlag("repair", "have what differs copied: from the primary, or from --from"),
			textFlag("from", "with --repair: the `NODE` whose data is right, where none is primary"),
			textFlag("range", "compare only `OFFSET:LENGTH`, like 10GiB:1GiB or 4096:8192"),
			textFlag("rate", "at most `SIZE` a second (default: resync_rate_max)"),
			boolFlag("resume", "go on with a verify that was interrupted"),
			boolFlag("stop", "end the one that runs; its position is kept"),
			jsonFlag(),
		), runVerify),
		command(t, "explain", "VOLUME", "what would happen on connect or promote now, and by which rule", 1, 1, remote(jsonFlag()), runExplain),
		command(t, "wait", "VOLUME --for STATE", "wait until a volume is connected, up-to-date or primary", 1, 1, remote(
			textFlag("for", "`STATE`: connected, up-to-date or primary"),
			&cli.DurationFlag{Name: "timeout", Usage: "give up after `DURATION` (default: never)"},
			jsonFlag(),
		), runWait),
		command(t, "events", "", "print a line for each state change, across restarts of the agent", 0, 0, remote(
			jsonFlag(),
			textFlag("since", "begin after event `N`, or BOOT:N as --json shows them (0: the oldest that is kept; default: from now on)"),
			boolFlag("once", "end after the last event instead of waiting for more"),
		), runEvents),
		command(t, "archive", "list [VOLUME] | export|restore|remove VOLUME ID", "what a side lost when it was given up: list, read, put back or remove it", 1, 3, remote(
			jsonFlag(),
			textFlag("socket", "export: serve on `unix:PATH`"),
			&cli.DurationFlag{Name: "for", Usage: "export: end after `DURATION` (default: when the command ends)"},
		), runArchive),
		hidden(command(t, "generate", "DIR", "write the manual page, the completion for bash and an example of a configuration", 1, 1, nil, runGenerate)),
		command(t, "doctor", "", "check this host, its files and the way to its peers, and say what to change", 0, 0, remote(jsonFlag()), runDoctor),
		command(t, "version", "", "print the version", 0, 0, []cli.Flag{jsonFlag()}, runVersion),
		command(t, "help", "[COMMAND]", "show what a command takes", 0, 1, nil, runHelp),
	}
}

// runHelp shows the help of a command, or of all.
func runHelp(c call) error {
	name := c.Args().First()
	if name == "" {
		return cli.ShowAppHelp(c.Context)
	}
	if c.App.Command(name) == nil {
		return usage("help: there is no command %q; see qrbd --help", name)
	}
	// The command's own help flag shows it: urfave/cli's function for it looks
	// below the running command.
	return c.App.RunContext(c.Context.Context, []string{c.App.Name, name, "--help"})
}

// volumeName is the command's first argument.
func (c call) volumeName() string { return c.Args().First() }

// config loads the configuration.
func (c call) config() (*config.Config, error) { return config.Load(c.String("config")) }

// client returns a client of the agent. With --control the configuration is not
// needed, so that a fault in it does not blind the operator.
func (c call) client() (*control.Client, error) {
	if path := c.String("control"); path != "" {
		return control.NewClient(path), nil
	}
	cfg, err := c.config()
	if err != nil {
		return nil, err
	}
	return control.NewClient(cfg.Node.Control), nil
}

// operate calls op and says done in a line.
func (c call) operate(done string, op func(context.Context, *control.Client, string) error) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	if err := op(c.Context.Context, client, c.volumeName()); err != nil {
		return err
	}
	fmt.Fprintln(c.t.out, done)
	return nil
}

func printJSON(w io.Writer, v any) error {
	if err := json.NewEncoder(w).Encode(v); err != nil {
		return fmt.Errorf("printing: %w", err)
	}
	return nil
}

func runCreate(c call) error {
	cfg, err := c.config()
	if err != nil {
		return err
	}
	socket := cfg.Node.Control
	if p := c.String("control"); p != "" {
		socket = p
	}
	name, force := c.volumeName(), c.Bool("force")
	err = control.NewClient(socket).Create(c.Context.Context, name, control.CreateRequest{Force: force})
	var ve *volume.Error
	switch {
	case errors.Is(err, control.ErrNotRunning):
		err = agent.CreateOffline(cfg, name, force)
	case errors.As(err, &ve) && ve.Code == protocol.CodeUnknownVolume && cfg.Volume(name) != nil:
		err = fmt.Errorf("volume %s is in %s, but the running agent does not know it yet: run qrbd reload, then create the volume", name, cfg.File)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(c.t.out, "volume %s is created; once it is on its peers too, start it on one node with: qrbd promote %s --force\n", name, name)
	return nil
}

func runResize(c call) error {
	size, err := config.ParseSize(c.Args().Get(1))
	if err != nil {
		return usage("resize: %v", err)
	}
	return c.operate(fmt.Sprintf("volume %s has %s here", c.volumeName(), c.Args().Get(1)), func(ctx context.Context, cl *control.Client, name string) error {
		if err := cl.Resize(ctx, name, control.ResizeRequest{Size: size, Force: c.Bool("force")}); err != nil {
			return err
		}
		if c.String("control") != "" {
			return nil // of a node whose state is not known here
		}
		cfg, err := c.config()
		if err != nil {
			return err
		}
		return c.host(cfg).Grow(name, size)
	})
}

// runDestroy asks once more: what it removes is not only out of sync but gone.
func runDestroy(c call) error {
	cfg, err := c.config()
	if err != nil {
		return err
	}
	name := c.volumeName()
	if !c.Bool("yes") {
		if err := c.t.confirm(fmt.Sprintf("This removes the replica of volume %s on %s. Type the volume's name to go on: ", name, cfg.Node.Name), name); err != nil {
			return err
		}
	}
	r := control.DestroyRequest{Backing: c.Bool("backing"), Archives: c.Bool("archives"), Force: c.Bool("force")}
	client, err := c.client()
	if err != nil {
		return err
	}
	if err = client.Destroy(c.Context.Context, name, r); errors.Is(err, control.ErrNotRunning) {
		err = agent.DestroyOffline(cfg, name, r)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(c.t.out, "volume %s is destroyed on %s; take it out of %s here, and this node out of its peers on the others\n", name, cfg.Node.Name, cfg.File)
	return nil
}

// confirm has word typed again.
func (t *terminal) confirm(question, word string) error {
	if t.in == nil || !term.IsTerminal(int(t.in.Fd())) {
		return fmt.Errorf("nothing was changed: say --yes, or run the command on a terminal and type the name")
	}
	fmt.Fprint(t.out, question)
	var answer string
	if _, err := fmt.Fscanln(t.in, &answer); err != nil || answer != word {
		return fmt.Errorf("nothing was changed: %q is not %s", answer, word)
	}
	return nil
}

func runPromote(c call) error {
	err := c.operate(fmt.Sprintf("volume %s is primary here", c.volumeName()), func(ctx context.Context, cl *control.Client, name string) error {
		return cl.Promote(ctx, name, control.PromoteRequest{Force: c.Bool("force"), PeerFenced: c.Bool("peer-fenced")})
	})
	if err != nil || !c.Bool("attach") {
		return err
	}
	return attachHere(c, attach.Request{Volume: c.volumeName()})
}

func runDemote(c call) error {
	return c.operate(fmt.Sprintf("volume %s is secondary here", c.volumeName()), func(ctx context.Context, cl *control.Client, name string) error {
		return cl.Demote(ctx, name, control.DemoteRequest{Force: c.Bool("force")})
	})
}

func runSwitchover(c call) error {
	to := c.String("to")
	if to == "" {
		return usage("switchover: say which peer becomes primary: qrbd switchover %s --to PEER", c.volumeName())
	}
	return c.operate(fmt.Sprintf("volume %s is primary on %s", c.volumeName(), to), func(ctx context.Context, cl *control.Client, name string) error {
		return cl.Switchover(ctx, name, control.SwitchoverRequest{To: to, Force: c.Bool("force")})
	})
}

func runConnect(c call) error {
	return c.operate(fmt.Sprintf("volume %s is connecting", c.volumeName()), func(ctx context.Context, cl *control.Client, name string) error {
		return cl.Connect(ctx, name, control.ConnectRequest{Peer: c.Args().Get(1), DiscardMyData: c.Bool("discard-my-data")})
	})
}

func runDisconnect(c call) error {
	return c.operate(fmt.Sprintf("volume %s is disconnected", c.volumeName()), func(ctx context.Context, cl *control.Client, name string) error {
		return cl.Disconnect(ctx, name, control.DisconnectRequest{Peer: c.Args().Get(1)})
	})
}

func runReplaceDisk(c call) error {
	return c.operate(fmt.Sprintf("the disk of volume %s is replaced; it is filled from a peer: qrbd wait %s --for up-to-date", c.volumeName(), c.volumeName()),
		func(ctx context.Context, cl *control.Client, name string) error { return cl.ReplaceDisk(ctx, name) })
}

func runInvalidate(c call) error {
	return c.operate(fmt.Sprintf("volume %s will be copied in full from a peer", c.volumeName()), func(ctx context.Context, cl *control.Client, name string) error {
		return cl.Invalidate(ctx, name)
	})
}

// codeError ends the command with a status of its own.
type codeError struct {
	err  error // nil: it is no failure
	code int
}

func (e *codeError) Error() string { return fmt.Sprintf("exit status %d: %v", e.code, e.err) }

// runOutdate is what a peer's fence-peer hook runs here: with --fence-code its exit
// status is the hook's.
func runOutdate(c call) error {
	const done = "volume %s is outdated here: it is not promoted before it has been in sync again"
	err := c.operate(fmt.Sprintf(done, c.volumeName()), func(ctx context.Context, cl *control.Client, name string) error {
		return cl.Outdate(ctx, name)
	})
	if !c.Bool("fence-code") {
		return err
	}
	disk := ""
	if err == nil {
		client, failed := c.client()
		if failed != nil {
			return failed
		}
		st, failed := client.Status(c.Context.Context)
		if failed != nil {
			return failed
		}
		for _, v := range st.Volumes {
			if v.Name == c.volumeName() {
				disk = v.Disk
			}
		}
	}
	if code := agent.FenceCode(err, disk); code != 0 {
		return &codeError{err, code}
	}
	return err
}

func runExplain(c call) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	e, err := client.Explain(c.Context.Context, c.volumeName())
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.t.out, e)
	}
	width, _ := c.t.size()
	writeLines(c.t.out, explainLines(e, palette{c.t.colour}, width))
	return nil
}
