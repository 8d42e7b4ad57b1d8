package readme

import (
	"fmt"
	"regexp"
	"strings"
)

// A page of docs/OPERATIONS.md says in its text who does what:
//
//	**alpha dies.**  **alpha is back.**  **On beta**  **on alpha and beta**
//
// The blocks that follow are theirs, until the text names somebody else.
var (
	dies   = regexp.MustCompile(`\*\*(\w+) dies\.?\*\*`)
	isBack = regexp.MustCompile(`\*\*(\w+) is back\.\*\*`)
	onHost = regexp.MustCompile(`\*\*[Oo]n (\w+)(?: and (\w+))?\*\*`)
)

// block is one fenced block of a page, with what happens before it.
type block struct {
	step
	dead, back string // hosts
}

// pageBlocks returns the blocks of the section with that heading, "## …" or "### …", in order.
func pageBlocks(doc, title string) ([]block, error) {
	_, section, found := strings.Cut(doc, "\n"+title+"\n")
	if !found {
		return nil, fmt.Errorf("there is no section %q", title)
	}
	for _, end := range []string{"\n## ", "\n### "} {
		section, _, _ = strings.Cut(section, end)
	}
	var blocks []block
	var now block
	var text []string
	in := false
	for i, line := range strings.Split(section, "\n") {
		switch {
		case strings.HasPrefix(line, "```") && in:
			now.text = strings.Join(text, "\n") + "\n"
			blocks = append(blocks, now)
			in, text, now.dead, now.back = false, nil, "", ""
		case strings.HasPrefix(line, "```"):
			now.kind = strings.TrimPrefix(line, "```")
			if len(now.hosts) == 0 || now.kind != "sh" && now.kind != "toml" {
				return nil, fmt.Errorf("%s, line %d: a block of kind %q of %v", title, i+1, now.kind, now.hosts)
			}
			in = true
		case in:
			text = append(text, line)
		default:
			now.read(line)
		}
	}
	if in || len(blocks) == 0 {
		return nil, fmt.Errorf("%s: %d blocks, the last one open: %v", title, len(blocks), in)
	}
	return blocks, nil
}

// read takes from a line of text who is meant from there on.
func (b *block) read(line string) {
	if m := dies.FindStringSubmatch(line); m != nil {
		b.dead = m[1]
	}
	if m := isBack.FindStringSubmatch(line); m != nil {
		b.back = m[1]
	}
	for _, m := range onHost.FindAllStringSubmatch(line, -1) {
		b.hosts = []string{m[1]}
		if m[2] != "" {
			b.hosts = append(b.hosts, m[2])
		}
	}
}
