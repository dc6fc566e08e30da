package cohort

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// quoted matches a program in a page: a comment with the path of its file, and a block of code.
var quoted = regexp.MustCompile("(?s)<!-- ((?:examples|interop)/\\S+) -->\n```[a-z]+\n(.*?)```\n")

// TestQuotedPrograms: a page shows a program as it is in its file, so that what readers copy is
// what tests run.
func TestQuotedPrograms(t *testing.T) {
	count := 0
	for _, pattern := range []string{"README.md", "docs/*.md", "docs/*/*.md"} {
		pages, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, page := range pages {
			for _, m := range quoted.FindAllStringSubmatch(readText(t, page), -1) {
				count++
				if program := readText(t, m[1]); m[2] != program {
					t.Errorf("%s: the block after %s differs from the file", page, m[1])
				}
			}
		}
	}
	if count < 3 {
		t.Errorf("got %d quoted programs, want the 3 of docs/how-to/client.md at least", count)
	}
}

func readText(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(b), "\r\n", "\n")
}
