package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestMain is an implementation when the environment says which.
func TestMain(m *testing.M) {
	if behaviour := os.Getenv("CONFORMANCE_PEER"); behaviour != "" {
		serve(behaviour)
		return
	}
	os.Exit(m.Run())
}

// serve responds to each line from what the cases expect, and then wrongly in one way.
func serve(behaviour string) {
	cases, err := readCases("../..", os.Getenv("CONFORMANCE_OP"))
	if err != nil {
		panic(err)
	}
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, maxLine)
	for in.Scan() {
		var r request
		if err := json.Unmarshal(in.Bytes(), &r); err != nil {
			panic(err)
		}
		c := cases[r.ID-1]
		line := map[string]any{"id": r.ID, "output": c.output}
		if c.refused != "" {
			line = map[string]any{"id": r.ID, "refused": c.refused}
		}
		switch behaviour {
		case "accepts all":
			line = map[string]any{"id": r.ID, "output": c.output}
			if c.output == nil {
				line["output"] = map[string]any{}
			}
		case "refuses all":
			line = map[string]any{"id": r.ID, "refused": "malformed"}
		case "another reason":
			if c.refused != "" {
				line["refused"] = "internal"
			}
		case "another id":
			line["id"] = r.ID + 1
		case "both":
			line["output"], line["refused"] = map[string]any{}, "malformed"
		case "neither":
			line = map[string]any{"id": r.ID}
		case "unsupported":
			line = map[string]any{"id": r.ID, "unsupported": true}
		case "a member more":
			line["name"] = "x"
		case "silent":
			continue
		case "ends":
			return
		case "text":
			fmt.Println("starting")
		case "a line of 5 MiB":
			fmt.Println(strings.Repeat("x", 5<<20))
		case "ahead":
			fmt.Println(string(encoded(line)))
		}
		fmt.Println(string(encoded(line)))
	}
	if behaviour == "fails" {
		os.Exit(1)
	}
}

// output is what a run and the implementation print.
type output struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// TestBehaviours: a right implementation passes, and each wrong one is found.
func TestBehaviours(t *testing.T) {
	for _, c := range []struct {
		behaviour string
		op        string
		code      int
		prints    string
	}{
		{"right", "", 0, "binary-http            39 passed    0 failed    0 unsupported"},
		{"unsupported", "", 0, "0 passed    0 failed   39 unsupported"},
		{"accepts all", "", 1, "FAIL session: another nonce: got output {}, want refused: digest"},
		{"refuses all", "", 1, "FAIL session: session: got refused: malformed, want output with"},
		{"another reason", "head", 1, "got refused: internal, want refused: malformed"},
		{"another id", "head", 3, "got id 2, want 1"},
		{"both", "head", 3, "got 2 of output, refused and unsupported, want 1"},
		{"neither", "head", 3, "got 0 of output, refused and unsupported, want 1"},
		{"a member more", "head", 3, "unknown field"},
		{"silent", "head", 3, "no line within"},
		{"ends", "head", 3, "its output ended"},
		{"text", "head", 3, `line "starting"`},
		{"a line of 5 MiB", "head", 3, "more than 4194304 bytes"},
		{"ahead", "head", 3, "got id 1, want 2"},
		{"fails", "head", 3, "the implementation ended with: exit status 1"},
	} {
		t.Run(c.behaviour, func(t *testing.T) {
			t.Setenv("CONFORMANCE_PEER", c.behaviour)
			t.Setenv("CONFORMANCE_OP", c.op)
			var out output
			args := []string{"-root", "../..", "-timeout", time.Minute.String(), "-op", c.op, "--", os.Args[0]}
			if c.behaviour == "silent" {
				args[3] = "200ms"
			}
			if code := run(t.Context(), args, &out, &out); code != c.code {
				t.Errorf("got code %d, want %d", code, c.code)
			}
			if !strings.Contains(out.String(), c.prints) {
				t.Errorf("got %.2000s\nwant %s", out.String(), c.prints)
			}
		})
	}
}

// TestUsage: without a command, with an unknown operation and without vectors nothing runs.
func TestUsage(t *testing.T) {
	for _, args := range [][]string{{}, {"-root", "../..", "-op", "nosuch", "--", "true"}, {"-root", t.TempDir(), "--", "true"}, {"-nosuch"}} {
		var out bytes.Buffer
		if code := run(t.Context(), args, &out, &out); code != 2 {
			t.Errorf("%q: got code %d, want 2: %s", args, code, out.String())
		}
	}
	var out bytes.Buffer
	if code := run(t.Context(), []string{"-root", "../..", "--", "/nosuch"}, &out, &out); code != 3 {
		t.Errorf("no such program: got code %d, want 3", code)
	}
	out.Reset()
	if code := run(t.Context(), []string{"-root", "../..", "-list", "-op", "head"}, &out, &out); code != 0 || strings.Count(out.String(), "\n") != 3 {
		t.Errorf("-list: got code %d, %.300s", code, out.String())
	}
}
