package authorityclient

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/spf13/cobra"
)

// maxReady bounds the body of a gateway's probe, in bytes.
const maxReady = 1 << 20

// Gateway is the address of a manager's gateway. It is untrusted: its
// certificate is checked for availability's sake.
type Gateway struct{ URL, CA string }

// Register adds the flags to a command, with the usage of --gateway.
func (g *Gateway) Register(cmd *cobra.Command, usage string) {
	cmd.Flags().StringVar(&g.URL, "gateway", "", usage)
	g.RegisterCA(cmd)
}

// RegisterCA adds --manager-ca alone.
func (g *Gateway) RegisterCA(cmd *cobra.Command) {
	cmd.Flags().StringVar(&g.CA, "manager-ca", "", "certificates that the gateway's chains to (PEM; default the system's)")
}

// CertPool returns the certificates that the gateway's chains to, or nil for the system's.
func (g Gateway) CertPool() (*x509.CertPool, error) {
	if g.CA == "" {
		return nil, nil
	}
	return frame.ReadPool(g.CA)
}

// Ready asks whether a manager relays, the first that does, and how many units
// it has ready.
func (g Gateway) Ready(ctx context.Context) (units int, err error) {
	for url := range strings.SplitSeq(g.URL, ",") {
		if units, err = (Gateway{url, g.CA}).readyOne(ctx); err == nil {
			break
		}
	}
	return units, err
}

func (g Gateway) readyOne(ctx context.Context) (units int, err error) {
	config := &tls.Config{MinVersion: tls.VersionTLS13}
	if config.RootCAs, err = g.CertPool(); err != nil {
		return 0, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, g.URL+api.PathReady, nil)
	if err != nil {
		return 0, frame.Usage("--gateway: %w", err)
	}
	response, err := (&http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}).Do(r)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	var ready struct{ Units int }
	if response.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("manager at %s: %s", g.URL, response.Status)
	}
	if err := json.NewDecoder(io.LimitReader(response.Body, maxReady)).Decode(&ready); err != nil {
		return 0, fmt.Errorf("manager at %s: reading its response: %w", g.URL, err)
	}
	return ready.Units, nil
}
