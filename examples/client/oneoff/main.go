// Command oneoff sends one request without a session, over Oblivious HTTP (RFC 9458): encrypted to
// keys that a unit signed, so that any unit of the cluster can serve it.
//
//	oneoff --gateway http://127.0.0.1:8090 --genesis HEX --task chat /
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"

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
		fmt.Fprintln(os.Stderr, "oneoff:", err)
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
	oneOff, err := client.NewOneOff(ctx, client.OneOffConfig{Trust: trust, Gateway: gateway})
	if err != nil {
		return err
	}
	defer oneOff.Close()
	web := &http.Client{Transport: oneOff}
	// Only safe methods: a hostile gateway can deliver a one-off request to several units.
	response, err := web.Get("https://" + trust.Policy().Document().Tasks[task].Names[0] + path)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(os.Stdout, response.Body)
	return err
}
