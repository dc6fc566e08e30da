package systest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/testworld"
)

// distant is the URL of a program's TEE that is played by another process. The TEE, like a
// machine, outlives a killed program.
type distant string

// lend serves the TEE of the cluster's chip to other processes until the test ends, and
// returns its URL by program.
func (c *Cluster) lend() (of func(program string) distant) {
	serve := func(f func(ctx context.Context, of *attesttest.Device, body []byte) ([]byte, error)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err == nil {
				body, err = f(r.Context(), c.Chip.Attester(attesttest.Measure(r.PathValue("program"))), body)
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			w.Write(body)
		}
	}
	mux := http.NewServeMux()
	mux.Handle("/{program}/attest", serve(func(ctx context.Context, of *attesttest.Device, body []byte) ([]byte, error) {
		e, err := of.Attest(ctx, attest.ReportData(body))
		return testworld.Must(json.Marshal(e)), err
	}))
	mux.Handle("/{program}/seal", serve(func(ctx context.Context, of *attesttest.Device, body []byte) ([]byte, error) {
		var order sealOrder
		if err := json.Unmarshal(body, &order); err != nil {
			return nil, err
		}
		return of.Seal(ctx, order.Secret, order.To)
	}))
	mux.Handle("/{program}/unseal", serve(func(ctx context.Context, of *attesttest.Device, body []byte) ([]byte, error) {
		return of.Unseal(ctx, body)
	}))
	server := httptest.NewServer(mux)
	c.t.Cleanup(server.Close)
	return func(program string) distant { return distant(server.URL + "/" + url.PathEscape(program)) }
}

// place returns the address, pins and TEE of the cluster's authority.
func (c *Cluster) place() authorityPlace {
	return authorityPlace{c.URL(), c.Genesis, c.Root, c.lend()("scoring 1")}
}

// sealOrder is the request to a TEE to seal a secret.
type sealOrder struct {
	Secret []byte
	To     []attest.ReferenceValue
}

func (d distant) Attest(ctx context.Context, data attest.ReportData) (e attest.Evidence, err error) {
	b, err := d.post(ctx, "/attest", data[:])
	if err != nil {
		return e, err
	}
	return e, json.Unmarshal(b, &e)
}

func (d distant) Seal(ctx context.Context, secret []byte, to []attest.ReferenceValue) ([]byte, error) {
	return d.post(ctx, "/seal", testworld.Must(json.Marshal(sealOrder{secret, to})))
}

func (d distant) Unseal(ctx context.Context, sealed []byte) ([]byte, error) {
	return d.post(ctx, "/unseal", sealed)
}

func (d distant) post(ctx context.Context, path string, body []byte) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, string(d)+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = errors.New(string(b))
	}
	return b, err
}
