package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"
)

// version is set by the build (-ldflags "-X main.version=…").
var version = ""

// Exit codes.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	keepMonitorAwake(os.Args)
	prepareHelper(os.Args)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	t := &terminal{in: os.Stdin, out: os.Stdout, err: os.Stderr}
	t.detect(int(os.Stdout.Fd()), os.Getenv)
	os.Exit(run(ctx, os.Args, t))
}

// terminal is where a command reads and writes.
type terminal struct {
	in       *os.File // nil: no keys can be read
	out, err io.Writer
	live     bool // out is a terminal: it can be redrawn
	colour   bool
	fd       int // of out, when live
}

// detect finds out what out is. NO_COLOR (https://no-color.org) and TERM=dumb
// turn colours off.
func (t *terminal) detect(fd int, env func(string) string) {
	t.fd = fd
	t.live = term.IsTerminal(fd) && env("TERM") != "dumb"
	t.colour = t.live && env("NO_COLOR") == ""
}

// size returns columns and lines; 80 by 24 when unknown.
func (t *terminal) size() (width, height int) {
	if t.live {
		if w, h, err := term.GetSize(t.fd); err == nil && w > 0 && h > 0 {
			return w, h
		}
	}
	return 80, 24
}

// usageError is a command line that makes no sense.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usage(format string, args ...any) error {
	return &usageError{text: fmt.Sprintf(format, args...)}
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string, t *terminal) int {
	app := newApp(t)
	err := app.RunContext(ctx, reorder(args, valueFlags(app)))
	var ue *usageError
	var coded *codeError
	if errors.As(err, &coded) {
		if coded.err != nil {
			fmt.Fprintf(t.err, "qrbd: %v\n", coded.err)
		}
		return coded.code
	}
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &ue):
		fmt.Fprintf(t.err, "qrbd: %s\n", ue.text)
		return exitUsage
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		fmt.Fprintln(t.err, "qrbd: interrupted; what was asked for may still happen: look at qrbd status")
		return exitFailed
	}
	for _, line := range strings.Split(err.Error(), "\n") {
		fmt.Fprintf(t.err, "qrbd: %s\n", line)
	}
	return exitFailed
}

// newApp defines the commands.
func newApp(t *terminal) *cli.App {
	return &cli.App{
		Name:            "qrbd",
		Usage:           "a virtual disk whose every acknowledged write is already on a second machine",
		Version:         versionText(),
		Writer:          t.out,
		ErrWriter:       t.err,
		HideHelpCommand: true,
		Commands:        commands(t),
		Flags:           []cli.Flag{cli.HelpFlag}, // the library adds none where a command is called help
		// Errors are run's to print, and exiting is main's.
		ExitErrHandler: func(*cli.Context, error) {},
		OnUsageError:   func(_ *cli.Context, err error, _ bool) error { return usage("%v; see qrbd --help", err) },
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usage("there is no command %q; see qrbd --help", c.Args().First())
			}
			_ = cli.ShowAppHelp(c)
			return usage("name a command")
		},
	}
}

// versionText is the build's version, or what the Go tool recorded.
func versionText() string {
	if version != "" {
		return version
	}
	if bi, ok := debug.ReadBuildInfo(); ok && bi.Main.Version != "" {
		return bi.Main.Version
	}
	return "devel"
}
