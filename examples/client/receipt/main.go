// Command receipt sends a request and keeps a receipt: a unit's signature over request and
// response, which any party that has the policy history can verify later, offline.
//
//	receipt --gateway http://127.0.0.1:8090 --genesis HEX --task chat /
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/platforms"
	"github.com/cohort-tee/cohort/client"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	gateway := flag.String("gateway", "", "URL of a gateway, untrusted")
	genesis := flag.String("genesis", "", "genesis digest, from the owners of the cluster")
	task := flag.String("task", "", "task to trust")
	flag.Parse()
	if err := run(ctx, *gateway, *genesis, *task, flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, "receipt:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, gateway, genesis, task, path string) error {
	pin, err := attest.ParseDigest(genesis)
	if err != nil {
		return err
	}
	trust, err := client.FetchTrust(ctx, client.TrustConfig{
		Gateways: []string{gateway}, Genesis: pin, Task: task, Verifier: platforms.Supported().Verifier(),
	})
	if err != nil {
		return err
	}
	session, err := client.Open(ctx, client.OpenConfig{Trust: trust, Gateway: gateway, Receipts: true})
	if err != nil {
		return err
	}
	defer session.Close(context.Background())
	var record client.Record
	r, err := http.NewRequestWithContext(client.WithRecord(ctx, &record), http.MethodGet, "https://"+trust.Policy().Document().Tasks[task].Names[0]+path, nil)
	if err != nil {
		return err
	}
	response, err := session.RoundTrip(r)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	// The record is complete when the body was read to its end.
	if _, err := io.Copy(os.Stdout, response.Body); err != nil {
		return err
	}
	receipt, err := client.VerifyReceipt(record, session.Trust(), time.Now())
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "response of unit %s\n", receipt.Unit.UnitID())
	return nil
}
