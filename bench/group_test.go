package bench

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/systest"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/unit"
)

// pairGroup is a group of two roles, one of which calls the other.
var pairGroup = systest.Group{
	Name: "pair", KeyMode: policyfile.Shared, Life: time.Hour, Quorum: 2, Roles: []string{"caller", "holder"},
	Calls: map[string][]string{"caller": {"holder"}},
}

// peerRequests is the number of requests in one round.
const peerRequests = 3200

// BenchmarkPeers measures a request between two units of a group over kept-alive mutual
// TLS, against one between bare crypto/tls servers with the same keys, both through
// net/http. It measures the CPU time of both ends, and the wall time with 16 requests in
// flight, whose inverse is the request rate.
func BenchmarkPeers(b *testing.B) {
	c := systest.New(b, groupTasks(pairGroup)...)
	c.ApproveGroup("pair", c.FormGroup(pairGroup))
	answer := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	holder, caller := c.StartMember("pair", "holder", "holder 1", answer), c.StartMember("pair", "caller", "caller 1", answer)
	config := testworld.Must(caller.Unit.PeerTLS("pair", "holder"))
	own := []tls.Certificate{*testworld.Must(config.GetClientCertificate(nil))}
	l := testworld.Must(net.Listen("tcp", "127.0.0.1:0"))
	server := &http.Server{Handler: answer, TLSConfig: &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: own, ClientAuth: tls.RequireAnyClientCert, NextProtos: []string{"http/1.1"},
	}}
	go server.ServeTLS(l, "", "")
	b.Cleanup(func() { server.Close() })
	bare := peerLoad(l.Addr().String(), &tls.Config{InsecureSkipVerify: true, Certificates: own})
	peers := peerLoad(holder.Address, config)
	for name, measured := range map[string]func(func()) time.Duration{"cpu": alone, "wall": took} {
		cost := func(load func()) func() time.Duration {
			return func() time.Duration { return measured(load) / peerRequests }
		}
		b.Run(name, func(b *testing.B) {
			Compare(b, Contender{"bare-mtls", cost(bare)}, Contender{"peers", cost(peers)})
		})
	}
}

// groupTasks returns a task for each role of a group.
func groupTasks(g systest.Group) (tasks []systest.Task) {
	for _, role := range g.Roles {
		tasks = append(tasks, systest.Task{Name: role, KeyMode: policyfile.Shared, Life: time.Hour, Programs: []string{role + " 1"}})
	}
	return tasks
}

// peerLoad sends the requests of a round over kept-alive connections.
func peerLoad(address string, config *tls.Config) func() {
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, MaxIdleConnsPerHost: inFlight}}
	return func() {
		all(peerRequests, func() {
			r := testworld.Must(client.Get("https://" + address + "/"))
			io.Copy(io.Discard, r.Body)
			r.Body.Close()
		})
	}
}

// took returns the wall time of f.
func took(f func()) time.Duration {
	start := time.Now()
	f()
	return time.Since(start)
}

// fourGroup is a group of four roles that all of its parties must approve.
var fourGroup = systest.Group{Name: "four", KeyMode: policyfile.Shared, Life: time.Hour, Quorum: 4, Roles: []string{"a", "b", "c", "d"}}

// BenchmarkLastApproval measures the time from the last party's approval until all waiting
// units have the group's certificate, with 4 tasks of 10 replicas each. It compares it with
// the enrolment of as many units that start after the parties have approved.
func BenchmarkLastApproval(b *testing.B) {
	Compare(b,
		Contender{"enrol-40", func() time.Duration {
			c := systest.New(b, groupTasks(fourGroup)...)
			c.ApproveGroup("four", c.FormGroup(fourGroup))
			return took(startAll(b, c).Wait)
		}},
		Contender{"last-approval", func() time.Duration {
			c := systest.New(b, groupTasks(fourGroup)...)
			parties := c.FormGroup(fourGroup)
			for _, party := range fourGroup.Roles[:3] {
				testworld.Must(c.SubmitStatement("four", party, parties[party], nil))
			}
			units := startAll(b, c)
			time.Sleep(waiting)
			return took(func() {
				testworld.Must(c.SubmitStatement("four", "d", parties["d"], nil))
				units.Wait()
			})
		}})
}

// waiting is how long units wait for the last party: long enough for their longest retry
// interval.
const waiting = 6 * time.Second

// startAll starts 10 units of each role. The wait group ends when all of them have a
// certificate.
func startAll(b *testing.B, c *systest.Cluster) *sync.WaitGroup {
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	b.Cleanup(cancel)
	units := new(sync.WaitGroup)
	for _, role := range fourGroup.Roles {
		for range 10 {
			units.Go(func() { b.Cleanup(testworld.Must(unit.Start(ctx, c.MemberConfig("four", role, role+" 1"))).Close) })
		}
	}
	return units
}
