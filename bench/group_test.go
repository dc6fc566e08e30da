package bench

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/systest"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/unit"
)

// pairGroup is a group of two roles, of which one calls the other.
var pairGroup = systest.Group{
	Name: "pair", KeyMode: policy.Shared, Life: time.Hour, Quorum: 2, Roles: []string{"caller", "holder"},
	Calls: map[string][]string{"caller": {"holder"}},
}

// BenchmarkPeers is a request between two units of a group over mutual TLS, kept
// alive, beside one between bare servers of crypto/tls with the same keys, both
// through net/http.
func BenchmarkPeers(b *testing.B) {
	tasks := []systest.Task{{Name: "caller", KeyMode: policy.Shared, Life: time.Hour, Programs: []string{"caller 1"}}, {Name: "holder", KeyMode: policy.Shared, Life: time.Hour, Programs: []string{"holder 1"}}}
	c := systest.New(b, tasks...)
	c.Agree("pair", c.Form(pairGroup))
	answer := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	holder, caller := c.Join("pair", "holder", "holder 1", answer), c.Join("pair", "caller", "caller 1", answer)
	config := must(caller.Unit.PeerTLS("pair", "holder"))
	own := must(config.GetClientCertificate(nil))
	pool := x509.NewCertPool()
	for _, der := range own.Certificate[1:] {
		pool.AddCert(must(x509.ParseCertificate(der)))
	}
	bare := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*own}, ClientAuth: tls.RequireAnyClientCert, NextProtos: []string{"http/1.1"}}
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	server := &http.Server{Handler: answer, TLSConfig: bare}
	go server.ServeTLS(l, "", "")
	b.Cleanup(func() { server.Close() })
	requests := func(address string, config *tls.Config) func() time.Duration {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, MaxIdleConnsPerHost: 16}}
		return func() time.Duration {
			const workers, each = 8, 50
			start := time.Now()
			var done sync.WaitGroup
			for range workers {
				done.Go(func() {
					for range each {
						r := must(client.Get("https://" + address + "/"))
						io.Copy(io.Discard, r.Body)
						r.Body.Close()
					}
				})
			}
			done.Wait()
			return time.Since(start) / (workers * each)
		}
	}
	Compare(b,
		Contender{"bare-mtls", requests(l.Addr().String(), &tls.Config{InsecureSkipVerify: true, Certificates: bare.Certificates})},
		Contender{"peers", requests(holder.Address, config)})
}

// BenchmarkLastApproval is the time from the last party's approval until all
// units of 4 tasks with 10 replicas each, which wait for it, hold the group's
// certificate.
func BenchmarkLastApproval(b *testing.B) {
	g := systest.Group{Name: "four", KeyMode: policy.Shared, Life: time.Hour, Quorum: 4, Roles: []string{"a", "b", "c", "d"}, Calls: map[string][]string{}}
	for b.Loop() {
		b.StopTimer()
		var tasks []systest.Task
		for _, role := range g.Roles {
			tasks = append(tasks, systest.Task{Name: role, KeyMode: policy.Shared, Life: time.Hour, Programs: []string{role + " 1"}})
		}
		c := systest.New(b, tasks...)
		parties := c.Form(g)
		for _, party := range g.Roles[:3] {
			must(c.Say("four", party, parties[party], nil))
		}
		var units sync.WaitGroup
		ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
		for _, role := range g.Roles {
			for range 10 {
				units.Go(func() {
					u := must(unit.Start(ctx, c.MemberConfig("four", role, role+" 1")))
					b.Cleanup(u.Close)
				})
			}
		}
		time.Sleep(2 * time.Second) // all of them wait
		b.StartTimer()
		must(c.Say("four", "d", parties["d"], nil))
		units.Wait()
		b.StopTimer()
		cancel()
		b.StartTimer()
	}
}
