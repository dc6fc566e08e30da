// Conformance runs an implementation of the protocol, in any language, over the vectors of the
// project:
//
//	go run ./interop/conformance -- node ts/build/test/conformance.js
//
// It starts the implementation once, writes one case as one line of JSON to its standard input,
// and reads one line of JSON from its standard output. README.md beside this file specifies the
// lines and the operations. It trusts nothing that the implementation writes: lines are bounded,
// each has a deadline, and what follows the expected line is a fault. The package uses no other
// package of the project, so it is not a second way to the same mistake.
//
// Files, each using those before it: peer.go, cases.go, suites.go, report.go, main.go.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run returns the exit code: 0 when every supported case passes, 1 when one does not, 2 for wrong
// usage, 3 when the implementation does not run.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("conformance", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprintln(stderr, "usage: conformance [flags] -- COMMAND ARGS…")
		flags.PrintDefaults()
	}
	root := flags.String("root", ".", "root of the project, which contains the vectors")
	only := flags.String("op", "", "run the cases of one operation alone")
	all := flags.Bool("v", false, "print a line for each case, not for each fault alone")
	list := flags.Bool("list", false, "print the cases as lines of JSON, and start nothing")
	limit := flags.Duration("timeout", 20*time.Second, "how long the implementation may take for one case")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if flags.NArg() == 0 && !*list {
		flags.Usage()
		return 2
	}
	cases, err := readCases(filepath.Clean(*root), *only)
	if err != nil {
		fmt.Fprintf(stderr, "error: reading the vectors: %v\nhint: run it from the root of the project, or name the root with -root\n", err)
		return 2
	}
	if *list {
		return listCases(stdout, cases)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends an implementation that still runs
	p, err := startPeer(ctx, flags.Args(), stderr)
	if err != nil {
		fmt.Fprintf(stderr, "error: starting the implementation: %v\n", err)
		return 3
	}
	r := report{out: stdout, all: *all}
	for i, c := range cases {
		got, err := p.do(c.request(i+1), *limit)
		if err != nil {
			fmt.Fprintf(stderr, "error: case %q of %s: %v\n", c.name, c.op, err)
			return 3
		}
		r.add(c, got)
	}
	if err := p.stop(); err != nil {
		fmt.Fprintf(stderr, "error: the implementation ended with: %v\n", err)
		return 3
	}
	return r.finish()
}
