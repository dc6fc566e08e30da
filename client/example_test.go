package client_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/client"
)

// exampleWorld is the authority of the examples, with two units.
type exampleWorld struct {
	AuthorityURL string
	Genesis      attest.Digest
	Units        []string
	Verifier     *attest.Verifier
	Close        func()
}

// cleaner runs clean-ups where there is no test.
type cleaner struct {
	testing.TB
	all []func()
}

func (c *cleaner) Helper()          {}
func (c *cleaner) Cleanup(f func()) { c.all = append(c.all, f) }

func startExample() exampleWorld {
	c := new(cleaner)
	w := newWorld(c, "1")
	e := exampleWorld{AuthorityURL: w.url, Genesis: w.Genesis(), Verifier: w.config().Verifier}
	for _, r := range w.replicas(2, "1") {
		e.Units = append(e.Units, r.address)
	}
	e.Close = func() {
		for _, f := range c.all {
			f()
		}
	}
	return e
}

func ExampleFetchTrust() {
	cluster := startExample()
	defer cluster.Close()

	trust, err := client.FetchTrust(context.Background(), client.TrustConfig{
		Authorities: []string{cluster.AuthorityURL},
		Genesis:     cluster.Genesis, // the one value to know in advance
		Task:        "scoring",
		Verifier:    cluster.Verifier, // of the accepted platforms
	})
	if err != nil {
		log.Fatal(err)
	}
	for _, i := range trust.Identities() {
		fmt.Println(i.Task, i.Release)
	}
	// trust.RootPEM() is the file for curl --cacert; keep trust.State().Bytes() for the
	// next start.

	// Output: scoring 1
}

func ExampleNew() {
	cluster := startExample()
	defer cluster.Close()
	trust, err := client.FetchTrust(context.Background(), client.TrustConfig{
		Authorities: []string{cluster.AuthorityURL},
		Genesis:     cluster.Genesis,
		Task:        "scoring",
		Verifier:    cluster.Verifier,
	})
	if err != nil {
		log.Fatal(err)
	}

	c, err := client.New(client.Config{Trust: trust, Addresses: cluster.Units})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	http := &http.Client{Transport: c}
	response, err := http.Get("https://scoring.clinic.example/")
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(body))

	// Output: ok
}
