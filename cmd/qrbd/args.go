package main

import (
	"strings"

	"github.com/urfave/cli/v2"
)

// reorder moves flags before arguments, because urfave/cli stops looking for
// flags at the first argument:
//
//	qrbd --config F status crm --json  ─►  qrbd status --config F --json -- crm
//
// The first argument that is not a flag is the command; without one nothing is
// moved. valued names the flags that take the next argument as their value. What
// follows "--" is never a flag.
func reorder(args []string, valued map[string]bool) []string {
	if len(args) == 0 {
		return args
	}
	var flags, rest []string
	lacking := false // the last flag has no value
	for i := 1; i < len(args); i++ {
		a := args[i]
		if a == "--" {
			rest = append(rest, args[i+1:]...)
			break
		}
		if len(a) < 2 || a[0] != '-' {
			rest = append(rest, a)
			continue
		}
		flags = append(flags, a)
		name, _, hasValue := strings.Cut(strings.TrimLeft(a, "-"), "=")
		if valued[name] && !hasValue {
			if i++; i == len(args) {
				lacking = true // as the last word of out it is reported as such
				break
			}
			flags = append(flags, args[i])
		}
	}
	if len(rest) == 0 {
		return args
	}
	out := append([]string{args[0], rest[0]}, flags...)
	if len(rest) > 1 && !lacking {
		out = append(append(out, "--"), rest[1:]...)
	}
	return out
}

// valueFlags collects the names of every command's flags that take a value.
func valueFlags(app *cli.App) map[string]bool {
	valued := map[string]bool{}
	add := func(flags []cli.Flag) {
		for _, f := range flags {
			if _, isBool := f.(*cli.BoolFlag); isBool {
				continue
			}
			for _, n := range f.Names() {
				valued[n] = true
			}
		}
	}
	add(app.Flags)
	for _, c := range app.Commands {
		add(c.Flags)
	}
	return valued
}
