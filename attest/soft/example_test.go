package soft_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/cohort-tee/cohort/attest/soft"
)

// A daemon serves a socket; a launcher hands it a program, which it measures
// and runs.
func Example() {
	if err := example(); err != nil {
		fmt.Println(err)
	}
	// Output:
	// hello
	// exit code 0
}

func example() error {
	dir, err := os.MkdirTemp("", "soft")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	daemon, err := soft.NewDaemon(soft.Config{Dir: dir})
	if err != nil {
		return err
	}
	defer daemon.Close()
	socket := filepath.Join(dir, "socket")
	listener, err := soft.Listen(socket)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	defer serving.Wait()
	defer cancel()
	serving.Go(func() { daemon.Serve(ctx, listener) })

	program, err := os.Open("/bin/echo")
	if err != nil {
		return err
	}
	defer program.Close()
	process, err := soft.Launch(ctx, socket, soft.LaunchRequest{
		Program: program, Args: []string{"hello"}, Stdout: os.Stdout,
	})
	if err != nil {
		return err
	}
	exit, err := process.Wait()
	if err != nil {
		return err
	}
	fmt.Println(exit)
	return nil
}
