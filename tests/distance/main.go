package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/qrbd/qrbd/tests/uml"
)

// errMissing says what this host lacks.
var errMissing = errors.New("missing")

// errGuest says that a guest failed; its output says why.
var errGuest = errors.New("the guest failed")

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := runMain(ctx, os.Args[1:])
	cancel()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "distance:", err)
		os.Exit(1)
	}
}

// options is what the command line asks for.
type options struct {
	plan
	out  string
	show string // files of raw results, comma-separated: print them, measure nothing
}

// parseOptions reads the command line.
func parseOptions(args []string) (options, error) {
	var o options
	fs := flag.NewFlagSet("distance", flag.ContinueOnError)
	rtts := fs.String("rtt", "0,1,10,40", "round trips in ms; 0 is the link as it is")
	losses := fs.String("loss", "0,0.1,1", "losses in per cent of the packets; a round trip of 0 is measured without")
	columns := fs.String("column", "", "only these columns, comma-separated (default all)")
	fs.DurationVar(&o.Runtime, "runtime", 3*time.Second, "of each of the three works of a cell")
	fs.IntVar(&o.Rounds, "rounds", 1, "how often everything is measured")
	fs.StringVar(&o.Qrbd, "qrbd", "bin/qrbd", "the program under test")
	fs.BoolVar(&o.Pause, "pause", false, "wait for a line of input before every condition: time to make the host quiet")
	fs.StringVar(&o.out, "out", "", "file for the raw results (default bin/bench/distance-DATE-TIME.json)")
	fs.StringVar(&o.show, "show", "", "print the results in these files, comma-separated, measure nothing")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	rttList, err := numbers(*rtts)
	lossList, lossErr := numbers(*losses)
	if err := errors.Join(err, lossErr); err != nil {
		return o, err
	}
	if o.Rounds < 1 || o.Runtime < 100*time.Millisecond {
		return o, fmt.Errorf("rounds %d, runtime %v: at least 1 and 100ms", o.Rounds, o.Runtime)
	}
	// Without loss first: a connection on cubic takes many seconds to forget that it lost something.
	slices.Sort(lossList)
	for _, loss := range lossList {
		for _, rtt := range rttList {
			if rtt > 0 || loss == 0 {
				o.Conditions = append(o.Conditions, condition{rtt, loss})
			}
		}
	}
	for _, k := range columnKinds {
		if *columns == "" {
			o.Columns = append(o.Columns, k.name)
		}
	}
	if *columns != "" {
		o.Columns = strings.Split(*columns, ",")
	}
	for _, name := range o.Columns {
		k, known := kindByName(name)
		if !known {
			return o, fmt.Errorf("no column %q", name)
		}
		o.DRBD = o.DRBD || k.drbd
	}
	if o.out == "" {
		o.out = filepath.Join("bin", "bench", "distance-"+time.Now().Format("20060102-150405")+".json")
	}
	o.Qrbd, err = filepath.Abs(o.Qrbd)
	return o, err
}

// runMain does what the command line asks for.
func runMain(ctx context.Context, args []string) error {
	if len(args) > 0 && args[0] == guestCommand {
		return guestMain(ctx, args[1:])
	}
	o, err := parseOptions(args)
	if err != nil {
		return err
	}
	if o.show != "" {
		res, err := loadResults(strings.Split(o.show, ","))
		if err != nil {
			return err
		}
		return res.write(os.Stdout)
	}
	if err := o.missing(); err != nil {
		return err
	}
	res, err := o.measure(ctx, os.Stderr)
	if len(res.Cells) > 0 {
		err = errors.Join(err, os.MkdirAll(filepath.Dir(o.out), 0o755), writeJSON(o.out, res))
		fmt.Fprintf(os.Stderr, "raw results: %s\n\n", o.out)
		err = errors.Join(err, res.write(os.Stdout))
	}
	return err
}

// missing names all that this host lacks.
func (o *options) missing() error {
	var faults []error
	if os.Geteuid() != 0 {
		faults = append(faults, fmt.Errorf("%w: root", errMissing))
	}
	modules := []string{"veth", "sch_netem", "tcp_bbr", "act_mirred", "cls_matchall"}
	programs := []string{"fio", "nbdkit", "ethtool", "tc", o.Qrbd}
	if o.DRBD {
		modules, programs = append(modules, "drbd", "brd"), append(programs, "drbdadm")
	}
	if what := uml.Missing(modules...); what != "" {
		faults = append(faults, fmt.Errorf("%w: %s", errMissing, what))
	}
	for _, name := range programs {
		if _, err := exec.LookPath(name); err != nil {
			faults = append(faults, fmt.Errorf("%w: %s (run tests/deps.sh distance and make build)", errMissing, name))
		}
	}
	return errors.Join(faults...)
}

// measure boots both machines and returns what alpha found.
func (o *options) measure(ctx context.Context, progress io.Writer) (res *result, err error) {
	res = &result{When: time.Now(), Runtime: o.Runtime.String(), Rounds: o.Rounds, Qrbd: programVersion(o.Qrbd)}
	if o.Shared, err = os.MkdirTemp("", "qrbd-distance-"); err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.Shared)) }()
	for i, k := range o.agents() {
		if err := o.configure(k, i); err != nil {
			return res, err
		}
	}
	if err := writeJSON(filepath.Join(o.Shared, planFile), o.plan); err != nil {
		return res, err
	}
	left, right, err := uml.Cable()
	if err != nil {
		return res, err
	}
	defer left.Close()
	defer right.Close()
	ctx, cancel := context.WithCancel(ctx) // one machine's early end is the other's
	defer cancel()
	if o.Pause {
		go o.passLines(os.Stdin) // ends with the process
	}
	var wg sync.WaitGroup
	var errs [2]error
	for i, m := range []*uml.Machine{{Name: "alpha", Cable: left}, {Name: "beta", Cable: right}} {
		wg.Go(func() {
			errs[i] = o.boot(ctx, m, i+1, progress)
			if errs[i] != nil {
				cancel()
			}
		})
	}
	wg.Wait()
	err = errors.Join(errs[:]...)
	if readErr := readJSON(filepath.Join(o.Shared, cellsFile), &res.Cells); readErr != nil {
		err = errors.Join(err, readErr)
	}
	return res, err
}

// passLines tells the guests of each line of input.
func (p *plan) passLines(in io.Reader) {
	lines := bufio.NewScanner(in)
	for i := 0; lines.Scan(); i++ {
		if err := p.tell(fmt.Sprintf("line-%d", i)); err != nil {
			return // the directory is gone
		}
	}
}

// boot runs this program as a guest in m.
func (o *options) boot(ctx context.Context, m *uml.Machine, number int, progress io.Writer) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	m.Dir = filepath.Join(o.Shared, m.Name)
	if err := os.Mkdir(m.Dir, 0o700); err != nil {
		return err
	}
	m.Memory, m.Address = "2G", fmt.Sprintf("%s%d/24", plainNet, number)
	m.Modules = linkModules
	if o.DRBD {
		m.Modules = append(m.Modules, o.drbdModules()...)
	}
	m.Env = []string{"GOMAXPROCS=1"}
	m.Command = []string{self, guestCommand, m.Name, o.Shared}
	var said bytes.Buffer
	out := io.Writer(&said)
	if number == 1 {
		out = io.MultiWriter(&said, progress)
	}
	code, err := m.Run(ctx, out)
	if err == nil && code != 0 {
		err = fmt.Errorf("%w: exit %d", errGuest, code)
	}
	if err != nil {
		return fmt.Errorf("machine %s: %w\n%s", m.Name, err, strings.ReplaceAll(said.String(), "\r", ""))
	}
	return nil
}

// programVersion is what the program says of itself.
func programVersion(path string) string {
	out, err := exec.Command(path, "--version").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}
