package groupcheck

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/bench"
	"github.com/cohort-tee/cohort/internal/loopback"
)

// BenchmarkJointRisk is the wall time of a statistic over two tables of
// 1,000,000 rows, from a user's request to the response: in the group, with trust
// and a session made anew, beside the same three programs over plain HTTP on
// loopback, and one program that reads both tables.
func BenchmarkJointRisk(b *testing.B) {
	d := startJoint(b, 0) // rows as the example has them
	plain := d.startPlain(b)
	took := func(f func() error) func() time.Duration {
		return func() time.Duration {
			start := time.Now()
			if err := f(); err != nil {
				b.Fatal(err)
			}
			return time.Since(start)
		}
	}
	bench.Compare(b,
		bench.Contender{Name: "plain-http", Cost: took(func() error { return fetch(plain + "/statistic") })},
		bench.Contender{Name: "group", Cost: took(func() error { _, err := d.statistic(b.Context()); return err })},
		bench.Contender{Name: "pooled", Cost: took(func() error { _, err := d.Bin.Pooled(b.Context()); return err })})
}

// startPlain runs the programs of the three companies without agents, and returns
// the joiner's URL.
func (d cluster) startPlain(b *testing.B) string {
	urls := map[string]string{}
	for i, m := range d.Bin.Example.Roles {
		address := loopback.FreeAddress(b)
		urls["{peer."+m.Name+"}"] = "http://" + address
		args := d.Bin.Members[i]
		cmd := exec.Command(args[0])
		for _, arg := range args[1:] {
			if url, is := urls[arg]; is {
				arg = url
			}
			cmd.Args = append(cmd.Args, arg)
		}
		_, port, _ := strings.Cut(address, ":")
		cmd.Env = append(os.Environ(), "PORT="+port)
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		for end := time.Now().Add(jointTime); fetch("http://"+address) != nil; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(end) {
				b.Fatalf("%s does not answer", m.Name)
			}
		}
	}
	return urls["{peer."+d.roleName(d.asked())+"}"]
}

// fetch reads a page, whatever its content but a fault of the server.
func fetch(url string) error {
	response, err := http.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	if err == nil && response.StatusCode >= http.StatusInternalServerError {
		err = fmt.Errorf("got %s", response.Status)
	}
	return err
}
