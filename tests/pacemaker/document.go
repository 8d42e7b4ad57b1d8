package pacemaker

import (
	"fmt"
	"os"
	"regexp"
	"strings"
)

// blocks returns the marked blocks of docs/PACEMAKER.md by name:
//
//	<!-- test: name -->
//	```language
//	the block
//	```
func blocks() (map[string]string, error) {
	text, err := os.ReadFile("../../docs/PACEMAKER.md")
	if err != nil {
		return nil, fmt.Errorf("the document that the test loads: %w", err)
	}
	found := map[string]string{}
	marked := regexp.MustCompile("(?s)<!-- test: ([a-z ]+) -->\n```[a-z]*\n(.*?)```\n")
	for _, m := range marked.FindAllStringSubmatch(string(text), -1) {
		if _, twice := found[m[1]]; twice {
			return nil, fmt.Errorf("docs/PACEMAKER.md has two blocks %q", m[1])
		}
		found[m[1]] = m[2]
	}
	if n := strings.Count(string(text), "<!-- test:"); n != len(found) {
		return nil, fmt.Errorf("docs/PACEMAKER.md has %d marks, and %d blocks behind one", n, len(found))
	}
	return found, nil
}
