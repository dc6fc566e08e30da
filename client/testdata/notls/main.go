// Command notls exits with 0 when package client refuses TLS on the system that it
// is built for. TestClientRefusesTLS runs it on js/wasm.
package main

import (
	"context"
	"errors"
	"log"

	"github.com/cohort-tee/cohort/client"
)

func main() {
	_, trusting := client.FetchTrust(context.Background(), client.TrustConfig{})
	_, making := client.New(client.Config{})
	_, verifying := client.Verify(context.Background(), "unit.example:443", client.Config{})
	for name, err := range map[string]error{"FetchTrust": trusting, "New": making, "Verify": verifying} {
		if !errors.Is(err, client.ErrNoTLS) {
			log.Fatalf("%s: err = %v, want %v", name, err, client.ErrNoTLS)
		}
	}
}
