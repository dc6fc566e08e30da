// Command bank is the bank's program of the example jointrisk: it holds a table
// of its customers and gives the joiner, and nobody else, one hashed record of each.
// It listens on 127.0.0.1 at the port in PORT, behind the agent `cohort unit`.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/cohort-tee/cohort/examples/jointrisk/risk"
)

func main() {
	path := flag.String("table", "bank.csv", "table of the customers, CSV")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *path, cmp.Or(os.Getenv("PORT"), "8080")); err != nil {
		fmt.Fprintln(os.Stderr, "bank:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, path, port string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	table, err := risk.ReadTable(risk.Bank, f)
	f.Close()
	if err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	return risk.Serve(ctx, port, risk.Holder(risk.Bank, table))
}
