package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/volume"
)

// errDiffers is a verify that found differences: not a success for a script, unless
// they were repaired.
var errDiffers = errors.New("the replicas differ; the blocks are marked out of sync and copied at the next connection, or now with --repair")

// verifyRequest reads the flags.
func verifyRequest(c call) (control.VerifyRequest, error) {
	r := control.VerifyRequest{Peer: c.Args().Get(1), Repair: c.Bool("repair"), From: c.String("from"), Resume: c.Bool("resume"), Stop: c.Bool("stop")}
	var err error
	if text := c.String("range"); text != "" {
		if r.Off, r.Len, err = parseRange(text); err != nil {
			return r, usage("verify: --range: %v", err)
		}
	}
	if text := c.String("rate"); text != "" {
		if r.Rate, err = config.ParseSize(text); err != nil {
			return r, usage("verify: --rate: %v", err)
		}
	}
	switch {
	case r.Stop && (r.Repair || r.Resume || r.Len > 0 || r.Rate > 0 || r.From != ""):
		return r, usage("verify: --stop ends a verify: it goes with no other flag")
	case r.From != "" && !r.Repair:
		return r, usage("verify: --from says whose data --repair copies: it needs --repair")
	case r.Resume && r.Len > 0:
		return r, usage("verify: --resume keeps the range of the verify that was interrupted: leave --range out")
	}
	return r, nil
}

// parseRange reads OFFSET:LENGTH, each a size or a number of bytes.
func parseRange(s string) (off, length int64, err error) {
	a, b, ok := strings.Cut(s, ":")
	if !ok {
		return 0, 0, fmt.Errorf("%q is not a range: write OFFSET:LENGTH, like 10GiB:1GiB or 4096:8192", s)
	}
	if off, err = parseBytes(a); err == nil {
		length, err = parseBytes(b)
	}
	if err == nil && length == 0 {
		err = fmt.Errorf("%q has no length", s)
	}
	return off, length, err
}

func parseBytes(s string) (int64, error) {
	if n, err := strconv.ParseInt(s, 10, 64); err == nil && n >= 0 {
		return n, nil
	}
	return config.ParseSize(s)
}

func runVerify(c call) error {
	req, err := verifyRequest(c)
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	start := time.Now()
	first := int64(-1) // what a resumed one had done before
	drawn := false
	reports, err := client.Verify(c.Context.Context, c.volumeName(), req, func(p control.Progress) {
		if first < 0 {
			first = 0
			if req.Resume {
				first = p.DoneBytes
			}
		}
		if c.t.live && !c.Bool("json") && p.TotalBytes > 0 {
			fmt.Fprintf(c.t.err, "\r%s\x1b[K", verifyProgress(p, first, time.Since(start), palette{c.t.colour}))
			drawn = true
		}
	})
	if drawn {
		fmt.Fprint(c.t.err, "\r\x1b[K")
	}
	if req.Stop {
		if err == nil {
			fmt.Fprintf(c.t.out, "the verify of volume %s is stopped\n", c.volumeName())
		}
		return err
	}
	return errors.Join(err, printReports(c, reports, err))
}

// printReports shows what was found, also before an error.
func printReports(c call, reports []volume.VerifyReport, cause error) error {
	if c.Bool("json") {
		if cause != nil && len(reports) == 0 {
			return nil
		}
		if reports == nil {
			reports = []volume.VerifyReport{}
		}
		if err := printJSON(c.t.out, reports); err != nil {
			return err
		}
	} else {
		for _, r := range reports {
			writeLines(c.t.out, verifyLines(r))
		}
	}
	for _, r := range reports {
		if r.Bad > 0 && r.Repaired == 0 && cause == nil {
			return fmt.Errorf("volume %s: %w", c.volumeName(), errDiffers)
		}
	}
	return nil
}

// verifyProgress is the bar of a verify. before: bytes that an earlier run compared.
func verifyProgress(p control.Progress, before int64, took time.Duration, pal palette) string {
	percent := 100 * float64(p.DoneBytes) / float64(p.TotalBytes)
	line := fmt.Sprintf("%s %5.1f%%  %s of %s", bar(pal, percent, barColumns), floorTenth(percent), bytesText(p.DoneBytes), bytesText(p.TotalBytes))
	if s := took.Seconds(); s >= 1 && p.DoneBytes > before {
		rate := float64(p.DoneBytes-before) / s
		left := time.Duration(float64(p.TotalBytes-p.DoneBytes) / rate * float64(time.Second))
		line += fmt.Sprintf("  %s/s  %s left", bytesText(int64(rate)), durationText(left))
	}
	return line
}

// rangesShown bounds the ranges printed for people; --json has up to 1000.
const rangesShown = 20

func verifyLines(r volume.VerifyReport) []string {
	if r.Bad == 0 {
		return []string{fmt.Sprintf("%s: %s compared, no difference", clean(r.Peer), bytesText(r.Checked))}
	}
	lines := []string{fmt.Sprintf("%s: %s compared, %s differ, in:", clean(r.Peer), bytesText(r.Checked), bytesText(r.Bad))}
	for i, x := range r.Ranges {
		if i == rangesShown {
			lines = append(lines, fmt.Sprintf("  … and %d more ranges (see --json)", len(r.Ranges)-i))
			break
		}
		lines = append(lines, fmt.Sprintf("  %d bytes at %d", x.Len, x.Off))
	}
	if r.Repaired > 0 {
		lines = append(lines, fmt.Sprintf("%s: %s copied, the replicas are equal again", clean(r.Peer), bytesText(r.Repaired)))
	}
	return lines
}

// verifyNote is the last verify in a line of the status, "" when there was none.
func verifyNote(v *volume.VerifyStatus) string {
	if v == nil {
		return ""
	}
	when := v.Ended
	if when.IsZero() {
		when = v.Started
	}
	text := "verified " + when.Local().Format("2006-01-02 15:04") + ": "
	switch {
	case v.Bad == 0:
		text += bytesText(v.Checked) + " equal"
	default:
		text += bytesText(v.Bad) + " of " + bytesText(v.Checked) + " differed"
	}
	if v.Repaired > 0 {
		text += ", repaired"
	}
	if v.Stopped != "" {
		text += fmt.Sprintf(", stopped at %s of %s", bytesText(v.Next-v.Off), bytesText(v.Len))
	}
	return text
}
