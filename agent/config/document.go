package config

import (
	"errors"
	"fmt"
	"sort"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// document is a parsed file: the values, and the line of every key. Keys are
// written as paths: "node.name", "peer[1].key".
type document struct {
	values map[string]any
	lines  map[string]int
}

// parseDocument returns nil after adding a fault when data is not TOML. The
// library reports one syntax error; what follows it could not be trusted.
func parseDocument(data []byte, e *Error) *document {
	d := &document{values: map[string]any{}, lines: map[string]int{}}
	if err := toml.Unmarshal(data, &d.values); err != nil {
		line := 0
		var de *toml.DecodeError
		if errors.As(err, &de) {
			line, _ = de.Position()
		}
		e.add(line, "", "%s", strings.TrimPrefix(err.Error(), "toml: "))
		return nil
	}
	d.index(data)
	return d
}

// index fills lines. The file is known to be valid.
func (d *document) index(data []byte) {
	var p unstable.Parser
	p.Reset(data)
	counts := map[string]int{} // array tables seen, by name
	prefix := ""
	for p.NextExpression() {
		n := p.Expression()
		line := 0
		key := n.Key()
		var parts []string
		for key.Next() {
			parts = append(parts, string(key.Node().Data))
			if line == 0 {
				line = p.Shape(key.Node().Raw).Start.Line
			}
		}
		path := strings.Join(parts, ".")
		switch n.Kind {
		case unstable.Table:
			prefix = d.resolve(parts, counts)
			d.lines[prefix] = line
			prefix += "."
		case unstable.ArrayTable:
			prefix = fmt.Sprintf("%s[%d]", path, counts[path])
			counts[path]++
			d.lines[prefix] = line
			prefix += "."
		case unstable.KeyValue:
			for i := range parts { // a dotted key makes tables on its way
				at := prefix + strings.Join(parts[:i+1], ".")
				if d.lines[at] == 0 {
					d.lines[at] = line
				}
			}
		}
	}
}

// resolve turns the parts of a [table] header into a path: a part that is an
// array of tables means its last element.
func (d *document) resolve(parts []string, counts map[string]int) string {
	var out strings.Builder
	for i, part := range parts {
		if i > 0 {
			out.WriteByte('.')
		}
		out.WriteString(part)
		if n := counts[strings.Join(parts[:i+1], ".")]; n > 0 {
			fmt.Fprintf(&out, "[%d]", n-1)
		}
	}
	return out.String()
}

// section is one table whose keys are taken one by one; what is left at the end
// is unknown.
type section struct {
	doc   *document
	path  string // "volume[0]"
	keys  map[string]any
	known []string
	e     *Error
}

// table returns the top-level table of that name, reporting when it is missing.
func (d *document) table(name string, e *Error) *section {
	v, ok := d.values[name]
	if !ok {
		e.add(0, name, "the section [%s] is missing", name)
	}
	m, isTable := v.(map[string]any)
	if ok && !isTable {
		e.add(d.lines[name], name, "must be a section, [%s]", name)
	}
	return &section{doc: d, path: name, keys: m, e: e}
}

// tables returns the elements of the array of tables of that name.
func (d *document) tables(name string, e *Error) []*section {
	v, ok := d.values[name]
	if !ok {
		return nil
	}
	list, ok := v.([]any)
	if !ok {
		e.add(d.lines[name], name, "must be an array of sections: write [[%s]]", name)
		return nil
	}
	var out []*section
	for i, v := range list {
		s := &section{doc: d, path: fmt.Sprintf("%s[%d]", name, i), e: e}
		if s.keys, ok = v.(map[string]any); !ok {
			e.add(d.lines[name], name, "must be an array of sections: write [[%s]]", name)
			return nil
		}
		out = append(out, s)
	}
	return out
}

// unknownSections reports every top-level key that is not one of known.
func (d *document) unknownSections(e *Error, known ...string) {
	for _, k := range sortedKeys(d.values) {
		if contains(known, k) {
			continue
		}
		line := d.lines[k]
		if line == 0 {
			line = d.lines[k+"[0]"]
		}
		e.add(line, k, "unknown: the file has the sections %s", strings.Join(known, ", "))
	}
}

// fault adds a fault at key; its line is that of the innermost part of its path
// that stands in the file (an absent key has its section's).
func (s *section) fault(key, format string, args ...any) {
	path := s.path + "." + key
	line := 0
	for at := path; line == 0 && at != ""; at = at[:max(strings.LastIndexByte(at, '.'), 0)] {
		line = s.doc.lines[at]
	}
	s.e.add(line, shown(path), format, args...)
}

// take returns the value of key and notes that the key is known.
func (s *section) take(key string) (any, bool) {
	s.known = append(s.known, key)
	v, ok := s.keys[key]
	return v, ok
}

// done reports the keys that nobody took.
func (s *section) done() {
	for _, k := range sortedKeys(s.keys) {
		if !contains(s.known, k) {
			s.fault(k, "unknown key: this section has %s", strings.Join(s.known, ", "))
		}
	}
}

// shown is a path as a reader would write it, without the element numbers.
func shown(path string) string {
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		if path[i] == '[' {
			for i < len(path) && path[i] != ']' {
				i++
			}
			continue
		}
		b.WriteByte(path[i])
	}
	return b.String()
}

func sortedKeys(m map[string]any) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}
