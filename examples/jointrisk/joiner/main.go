// Command joiner is the third program of the example jointrisk: it asks bank and
// insurer for their hashed records, joins them in its memory, and answers with sums
// over the customers both have. It listens on 127.0.0.1 at the port in PORT, behind
// the agent `cohort unit`, which also carries what it asks to the two holders.
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
	bank := flag.String("bank", "http://127.0.0.1:8081", "where the bank answers")
	insurer := flag.String("insurer", "http://127.0.0.1:8082", "where the insurer answers")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := risk.Serve(ctx, cmp.Or(os.Getenv("PORT"), "8080"), risk.Joiner(*bank, *insurer)); err != nil {
		fmt.Fprintln(os.Stderr, "joiner:", err)
		os.Exit(1)
	}
}
