// Command session sends requests to a whole cluster in one session: it attests one unit, and any
// unit of the cluster serves what follows.
//
//	session --gateway http://127.0.0.1:8090 --genesis HEX --task chat --state seen.json /chat
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/signal"
	"strings"

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
	state := flag.String("state", "seen.json", "file that keeps the newest policy seen")
	flag.Parse()
	if err := run(ctx, *gateway, *genesis, *task, *state, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "session:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, gateway, genesis, task, state string, paths []string) error {
	pin, err := attest.ParseDigest(genesis)
	if err != nil {
		return err
	}
	seen, err := readState(state)
	if err != nil {
		return err
	}
	// Everything that the gateway passes on is checked from this one pinned value.
	trust, err := client.FetchTrust(ctx, client.TrustConfig{
		Gateways: []string{gateway},
		Genesis:  pin,
		Task:     task,
		State:    seen,
		Verifier: platforms.Supported().Verifier(), // policy decides which of them it accepts
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(state, trust.State().Bytes(), 0o600); err != nil {
		return err
	}
	// The unit that opens the session proves by new evidence that it has the session's key.
	session, err := client.Open(ctx, client.OpenConfig{Trust: trust, Gateway: gateway, FreshEvidence: true})
	if err != nil {
		return err
	}
	defer session.Close(context.Background())
	web := &http.Client{Transport: session}
	for _, path := range paths {
		// The host is a name that policy gives the task. It is no address, and no DNS is used.
		name := trust.Policy().Document().Tasks[task].Names[0]
		if err := post(ctx, web, "https://"+name+path); err != nil {
			return err
		}
	}
	return nil
}

// post streams one response to standard output.
func post(ctx context.Context, web *http.Client, url string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(`{"prompt":"The keeper","max_tokens":20}`))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	response, err := web.Do(r)
	switch {
	case errors.Is(err, client.ErrOutcomeUnknown):
		return fmt.Errorf("executed once or not at all: %w", err)
	case err != nil:
		return err
	}
	defer response.Body.Close()
	// A response that is cut off ends with an error, never as if it were whole.
	_, err = io.Copy(os.Stdout, response.Body)
	return err
}

// readState reads the newest policy seen, so that an older one is refused.
func readState(path string) (client.State, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return client.State{}, nil
	}
	if err != nil {
		return client.State{}, err
	}
	return client.ParseState(b)
}
