package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/qrbd/qrbd/tests/stack/database"
)

// options are the command line.
type options struct {
	qrbd    string        // the binary
	kind    database.Kind // of database
	sizeMiB int64         // of the volume
	clients int
	load    time.Duration // before the death; alpha dies at random in its last third
	after   time.Duration // of load on beta, before and after alpha's return each
	limit   time.Duration // for everything
	block   bool          // tell the story without root's part
	keep    bool          // leave the work directory
}

// parse reads the command line; usage gets the help that was asked for or is due.
func parse(args []string, usage io.Writer) (options, error) {
	o := options{}
	f := flag.NewFlagSet("demo", flag.ContinueOnError)
	f.SetOutput(usage)
	f.StringVar(&o.qrbd, "qrbd", "bin/qrbd", "the qrbd `binary`")
	kind := f.String("db", "postgres", "`database`: postgres or mariadb")
	f.Int64Var(&o.sizeMiB, "size", 2048, "size of the volume, `MiB`")
	f.IntVar(&o.clients, "clients", 8, "concurrent `clients`")
	f.DurationVar(&o.load, "load", 15*time.Second, "longest load before the death")
	f.DurationVar(&o.after, "after", 5*time.Second, "load on the survivor, before and after the return")
	f.DurationVar(&o.limit, "limit", 4*time.Minute, "time for everything")
	f.BoolVar(&o.block, "block", os.Getuid() != 0, "use the bare block device, as without root")
	f.BoolVar(&o.keep, "keep", false, "keep the work directory")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	var err error
	if o.kind, err = database.ParseKind(*kind); err != nil {
		return o, err
	}
	if o.qrbd, err = filepath.Abs(o.qrbd); err != nil {
		return o, err
	}
	if f.NArg() != 0 || o.clients < 1 || o.clients > 64 || o.sizeMiB < 512 && !o.block || o.sizeMiB < 64 {
		return o, fmt.Errorf("want 1 to 64 clients, at least 512 MiB (64 for --block) and no arguments: %+v %q", o, f.Args())
	}
	return o, nil
}

func main() {
	o, err := parse(os.Args[1:], os.Stderr)
	if err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "demo:", err)
		}
		os.Exit(2)
	}
	os.Exit(run(o))
}

// run tells the story, prints the report and returns the exit code. A broken pipe
// on standard output is an interruption too, and must not end the process with its
// mounts in place, as SIGPIPE would.
func run(o options) int {
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	limited, cancel := context.WithTimeout(ctx, o.limit)
	defer cancel()

	say := newNarrator(os.Stdout, stop)
	tell := databaseStory
	if o.block {
		tell = blockStory
	}
	report, err := tell(limited, o, say)
	switch {
	case ctx.Err() != nil:
		say.line("interrupted; everything is cleaned up")
		return 130
	case err != nil:
		report.fail("%v", err)
	}
	report.print(os.Stdout)
	if !report.good() {
		return 1
	}
	return 0
}
