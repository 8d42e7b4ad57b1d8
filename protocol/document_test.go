package protocol

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestDocument: docs/PROTOCOL.md knows every type and every code, by number.
func TestDocument(t *testing.T) {
	data, err := os.ReadFile("../docs/PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(data)
	for i := range 256 {
		if typ := Type(i); typ.known() && !strings.Contains(doc, fmt.Sprintf("**%v** (%d)", typ, i)) {
			t.Errorf("type %d, %v, is not described", i, typ)
		}
	}
	for _, m := range regexp.MustCompile(`\*\*(\w+)\*\* \((\d+)\)`).FindAllStringSubmatch(doc, -1) {
		var n uint8
		if _, err := fmt.Sscan(m[2], &n); err != nil || Type(n).String() != m[1] {
			t.Errorf("%s is described as type %s, which is %v", m[1], m[2], Type(n))
		}
	}
	for c, text := range codeTexts {
		if !strings.Contains(doc, fmt.Sprintf("\n| %d | %s |\n", c, text)) {
			t.Errorf("code %d, %s, is not described", c, text)
		}
	}
	for _, limit := range []int{PayloadMax, BodyMax, smallBodyMax, BitmapWordMax, DigestsMax, DigestBlock, NameMax, TextMax, PeersMax, HistoryMax, ReadMax, ReadsMax} {
		if !regexp.MustCompile(fmt.Sprintf(`\b%d\b`, limit)).MatchString(doc) {
			t.Errorf("limit %d is not described", limit)
		}
	}
}
