package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/volume"
)

// runArchive is qrbd archive VERB [VOLUME [ID]].
func runArchive(c call) error {
	verb, name, id := c.Args().First(), c.Args().Get(1), c.Args().Get(2)
	verbs := map[string]func(c call, cl *control.Client, name, id string) error{
		"export": exportArchive, "restore": restoreArchive, "remove": removeArchive}
	do := verbs[verb]
	switch {
	case verb == "list":
		if id != "" {
			return usage("archive: too many arguments: qrbd archive list [VOLUME]")
		}
	case do == nil:
		return usage("archive: there is no %q; use list, export, restore or remove", verb)
	case name == "" || id == "":
		return usage("archive: say which: qrbd archive %s VOLUME ID; see qrbd archive list", verb)
	}
	cl, err := c.client()
	if err != nil {
		return err
	}
	if verb == "list" {
		return listArchives(c, cl, name)
	}
	return do(c, cl, name, id)
}

// listArchives lists those of one volume, or of all that run.
func listArchives(c call, cl *control.Client, name string) error {
	names := []string{name}
	if name == "" {
		st, err := cl.Status(c.Context.Context)
		if err != nil {
			return err
		}
		names = names[:0]
		for _, v := range st.Volumes {
			if v.Disk != "diskless" { // it does not run
				names = append(names, v.Name)
			}
		}
	}
	all := []volume.ArchiveInfo{}
	for _, n := range names {
		list, err := cl.Archives(c.Context.Context, n)
		if err != nil {
			return err
		}
		all = append(all, list...)
	}
	if c.Bool("json") {
		return printJSON(c.t.out, all)
	}
	if len(all) == 0 {
		fmt.Fprintln(c.t.out, "no archives")
		return nil
	}
	for _, a := range all {
		writeLines(c.t.out, archiveLines(a, palette{c.t.colour}))
	}
	return nil
}

// archiveLines is an archive for people:
//
//	crm  20261122-165644-cdef  following  4.8 MiB kept, 5.0 MiB
//	  given up for beta on 2026-11-22 16:56:44, rule discard
//	  exact
func archiveLines(a volume.ArchiveInfo, p palette) []string {
	line := fmt.Sprintf("%s  %s  %s", p.paint(bold, clean(a.Volume)), clean(a.ID), clean(a.Phase))
	if a.Time.IsZero() {
		return []string{line, "  cannot be read: " + clean(a.Reason)}
	}
	return []string{
		fmt.Sprintf("%s  %s kept, file %s", line, bytesText(a.Blocks*4096), bytesText(a.Bytes)),
		fmt.Sprintf("  given up for %s on %s, rule %s", clean(a.Winner), a.Time.Local().Format(time.DateTime), clean(a.Why)),
		"  " + exactText(a),
	}
}

// exactText says up to when the view is the lost side.
func exactText(a volume.ArchiveInfo) string {
	switch {
	case a.Damaged:
		return "damaged: " + clean(a.Reason)
	case a.Exact:
		return "exact: it can be exported and restored"
	case a.Until != nil:
		return fmt.Sprintf("exact until %s (%s); later changes to other blocks show through", a.Until.Local().Format(time.DateTime), clean(a.Reason))
	}
	return "not exact"
}

// exportArchive serves an archive until Ctrl-C or --for.
func exportArchive(c call, cl *control.Client, name, id string) error {
	socket, ok := strings.CutPrefix(c.String("socket"), "unix:")
	if !ok || socket == "" {
		return usage("archive export: say where: --socket unix:PATH")
	}
	socket, err := filepath.Abs(socket)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	length := c.Duration("for")
	if length < 0 || c.IsSet("for") && length == 0 {
		return usage("archive export: --for %s is not more than zero", length)
	}
	r := control.ExportRequest{Socket: socket, ForSeconds: length.Seconds()}
	served := false
	err = cl.ExportArchive(c.Context.Context, name, id, r, func(p control.Progress) {
		served = true
		fmt.Fprintf(c.t.out, "archive %s of volume %s is served read-only, until this command ends, as nbd+unix:///%s?socket=%s\n", clean(id), clean(name), clean(name), clean(socket))
	})
	if served && errors.Is(err, context.Canceled) {
		return nil // Ctrl-C ends it as meant
	}
	return err
}

func restoreArchive(c call, cl *control.Client, name, id string) error {
	drawn := false
	err := cl.RestoreArchive(c.Context.Context, name, id, func(p control.Progress) {
		if c.t.live && p.TotalBytes > 0 {
			fmt.Fprintf(c.t.err, "\r%s of %s\x1b[K", bytesText(p.DoneBytes), bytesText(p.TotalBytes))
			drawn = true
		}
	})
	if drawn {
		fmt.Fprint(c.t.err, "\r\x1b[K")
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(c.t.out, "volume %s holds what was given up again. To have it win: on the other side demote the volume if it is primary and run qrbd connect %s --discard-my-data; then run here qrbd connect %s\n", name, name, name)
	return nil
}

func removeArchive(c call, cl *control.Client, name, id string) error {
	if err := cl.RemoveArchive(c.Context.Context, name, id); err != nil {
		return err
	}
	fmt.Fprintf(c.t.out, "archive %s of volume %s is removed\n", id, name)
	return nil
}
