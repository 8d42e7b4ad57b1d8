package main

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/qrbd/qrbd/agent/config"
)

// runGenerate writes what a package holds besides the program and is made from the
// commands' definitions: the manual page, the completion for bash, and the example of a
// configuration.
func runGenerate(c call) error {
	dir := c.Args().First()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("generate: %w", err)
	}
	for name, text := range map[string]string{
		"qrbd.8":    manual(c.App),
		"qrbd.bash": completion(c.App),
		"example.toml": config.Template(config.Node{Name: "alpha", Listen: "10.0.0.1:7790",
			State: config.DefaultState, Control: config.DefaultControl}),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("generate: %w", err)
		}
	}
	return nil
}

// shownCommands are the commands that help lists, by name.
func shownCommands(app *cli.App) []*cli.Command {
	var list []*cli.Command
	for _, c := range app.Commands {
		if !c.Hidden {
			list = append(list, c)
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	return list
}

// roff escapes text for a manual page.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "…", "...", "'", `\(aq`).Replace(text)
	if strings.HasPrefix(text, ".") {
		text = `\&` + text
	}
	return text
}

// flagUsage is a flag as in "--config FILE" and what it does.
func flagUsage(f cli.Flag) (form, does string) {
	form = "--" + f.Names()[0]
	d, ok := f.(cli.DocGenerationFlag)
	if !ok {
		return form, ""
	}
	does = d.GetUsage()
	if before, rest, named := strings.Cut(does, "`"); named {
		word, after, _ := strings.Cut(rest, "`")
		form += " " + word
		does = before + word + after
	} else if d.TakesValue() {
		form += " VALUE"
	}
	if v := d.GetDefaultText(); d.TakesValue() && v != "" && !strings.Contains(does, "default") {
		does += " (default: " + strings.Trim(v, `"`) + ")"
	}
	return form, does
}

// manual is qrbd(8).
func manual(app *cli.App) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line(`.TH QRBD 8 "" "qrbd" "System Administration"`)
	line(".SH NAME\nqrbd \\- %s", roff(app.Usage))
	line(".SH SYNOPSIS\n.B qrbd\n.I COMMAND\n[\\fIARGUMENT\\fR]... [\\fIFLAG\\fR]...")
	line(".SH DESCRIPTION\nAn agent on each node (\\fBqrbd agent\\fR) keeps replicas of volumes, exports the primary one over NBD and sends each write to its peers.")
	line("The other commands speak with the agent of this node. Flags may stand before and after the arguments.")
	line(".SH COMMANDS")
	for _, c := range shownCommands(app) {
		line(".SS %s", roff(strings.TrimSpace("qrbd "+c.Name+" "+c.ArgsUsage)))
		line("%s.", roff(strings.ToUpper(c.Usage[:1])+c.Usage[1:]))
		for _, f := range c.Flags {
			if f == cli.HelpFlag {
				continue
			}
			form, does := flagUsage(f)
			line(".TP\n\\fB%s\\fR\n%s", roff(form), roff(does))
		}
	}
	line(".SH EXIT STATUS\n.TP\n0\ndone\n.TP\n1\nrefused or failed; one line on standard error says what to do\n.TP\n2\nwrong usage")
	line(".SH ENVIRONMENT\n.TP\n.B QRBD_CONFIG\nthe configuration, where \\fB\\-\\-config\\fR names none")
	line(".SH FILES\n.TP\n%s\nthe configuration; /etc/qrbd/example.toml shows every key\n.TP\n%s\nkey, metadata and archives\n.TP\n%s\nthe agent\\(aqs socket",
		roff(config.DefaultPath), roff(config.DefaultState), roff(config.DefaultControl))
	line(".SH SEE ALSO\n.BR systemd (1),\n.BR nbd\\-client (8)")
	return b.String()
}

// completion is a script for bash.
func completion(app *cli.App) string {
	var names, flags, volumes []string
	for _, c := range shownCommands(app) {
		names = append(names, c.Name)
		var forms []string
		for _, f := range c.Flags {
			forms = append(forms, "--"+f.Names()[0])
		}
		flags = append(flags, fmt.Sprintf("\t%s) flags=%q ;;\n", c.Name, strings.Join(forms, " ")))
		if strings.Contains(c.ArgsUsage, "VOLUME") {
			volumes = append(volumes, c.Name)
		}
	}
	return fmt.Sprintf(`# bash completion for qrbd, made from its commands
_qrbd() {
	local cur=${COMP_WORDS[COMP_CWORD]} command= flags= word
	COMPREPLY=()
	for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
		case $word in -*) ;; *) command=$word; break ;; esac
	done
	if [[ -z $command && $cur != -* ]]; then
		COMPREPLY=($(compgen -W %q -- "$cur"))
		return
	fi
	case $command in
%s	esac
	case $cur in
	-*) COMPREPLY=($(compgen -W "$flags" -- "$cur")) ;;
	*)
		case $command in
		%s)
			COMPREPLY=($(compgen -W "$(qrbd status --json 2>/dev/null | grep -o '"name":"[^"]*","size"' | cut -d'"' -f4)" -- "$cur")) ;;
		esac ;;
	esac
}
complete -o default -F _qrbd qrbd
`, strings.Join(names, " "), strings.Join(flags, ""), strings.Join(volumes, "|"))
}
