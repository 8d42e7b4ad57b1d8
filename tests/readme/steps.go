package readme

import (
	"fmt"
	"regexp"
	"strings"
)

// step is one fenced block of the walk.
type step struct {
	number string
	hosts  []string // "alpha", "beta" or both
	kind   string   // "sh" or "toml"
	text   string
	dies   string // the host that dies before it; "" mostly
}

// heading is how a step begins: **6. alpha dies. On beta**
var heading = regexp.MustCompile(`^\*\*(\d+)\. (?:(\w+) dies\. |(\w+) is back\. )?On (alpha|beta|both)\*\*`)

// parse returns the blocks of the section "Two hosts, step by step" in order.
func parse(readme string) ([]step, error) {
	_, section, found := strings.Cut(readme, "\n## Two hosts, step by step\n")
	if !found {
		return nil, fmt.Errorf("README.md has no section \"Two hosts, step by step\"")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var steps []step
	var now step
	var block []string
	in := false
	for i, line := range strings.Split(section, "\n") {
		switch {
		case strings.HasPrefix(line, "```") && in:
			now.text = strings.Join(block, "\n") + "\n"
			steps = append(steps, now)
			in, block, now.dies = false, nil, ""
		case strings.HasPrefix(line, "```"):
			now.kind = strings.TrimPrefix(line, "```")
			if now.number == "" || now.kind != "sh" && now.kind != "toml" {
				return nil, fmt.Errorf("line %d of the section: a block of kind %q below no step", i+1, now.kind)
			}
			in = true
		case in:
			block = append(block, line)
		case strings.HasPrefix(line, "**"):
			m := heading.FindStringSubmatch(line)
			if m == nil {
				return nil, fmt.Errorf("line %d of the section is no step's heading: %s", i+1, line)
			}
			now = step{number: m[1], dies: m[2], hosts: []string{m[4]}}
			if m[4] == "both" {
				now.hosts = []string{"alpha", "beta"}
			}
		}
	}
	if in {
		return nil, fmt.Errorf("a block does not end")
	}
	return steps, nil
}
