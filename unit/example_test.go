package unit_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/unit"
)

// A service starts a unit, which has its task's identity, and serves HTTPS with it.
func ExampleStart() {
	// device is the TEE that the program runs in; owners publish the genesis digest.
	run := func(device attest.Attester, genesis attest.Digest) error {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		u, err := unit.Start(ctx, unit.Config{
			Authorities: []string{"https://authority-1.clinic.example:7443", "https://authority-2.clinic.example:7443"},
			Genesis:     genesis,
			Task:        "scoring",
			Attester:    device,
			Log:         slog.Default(),
		})
		if err != nil {
			return err
		}
		defer u.Close()
		l, err := net.Listen("tcp", ":8443")
		if err != nil {
			return err
		}
		return u.Serve(ctx, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "scored by "+u.ID().String())
		}))
	}
	_ = run
}

// A unit calls a task that the policy allows it to call.
func ExampleUnit_ClientTLS() {
	call := func(u *unit.Unit) error {
		config, err := u.ClientTLS("keys")
		if err != nil {
			return err
		}
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: config}}
		answer, err := client.Get("https://10.0.0.7:8443/")
		if err != nil {
			return err // with reason "identity" if the server is not a unit of "keys"
		}
		defer answer.Body.Close()
		fmt.Println(answer.Status)
		return nil
	}
	_ = call
}
